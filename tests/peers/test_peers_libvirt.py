# SPDX-License-Identifier: Apache-2.0
"""libvirt's node devices, 9.0 (this machine's) and 11.3 (Debian 13's), with the events that virsh prints."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from newer_stack import NewerStack

    from vfioapd.lab.harness import Lab

UUID = "825b3872-0001-0003-0011-28a403f8b357"
NAME = f"mdev_{UUID.replace('-', '_')}_matrix"
XML = f"""<device><parent>ap_matrix</parent><capability type='mdev'><type id='vfio_ap-passthrough'/>
<uuid>{UUID}</uuid><attr name='assign_adapter' value='0x01'/><attr name='assign_adapter' value='0x03'/>
<attr name='assign_domain' value='0x0011'/></capability></device>"""
CARDS = [f"ap_card{n:02x}" for n in range(8)]
QUEUES = [f"ap_{n:02x}_{domain}" for n in range(8) for domain in ("000d", "0011")]
MATRIX = "/sys/devices/vfio_ap/matrix"


@dataclass(frozen=True, slots=True)
class Virsh:
    lab: Lab
    command: tuple[str, ...]

    def __call__(self, *words: str) -> str:
        return self.lab.run(*self.command, *words).stdout

    def names(self, *words: str) -> list[str]:
        return self("nodedev-list", *words).split()

    def define(self, verb: str) -> None:
        file = "/run/device.xml"
        self.lab.run("sh", "-c", f"cat > {file}", stdin=XML)
        self(verb, file)


@pytest.fixture(params=["9.0", "11.3"])
def virsh(request: pytest.FixtureRequest) -> Virsh:
    if request.param == "9.0":
        made = Virsh(request.getfixturevalue("libvirt_lab"), ("virsh", "-q", "-c", "nodedev:///system"))
    else:
        stack: NewerStack = request.getfixturevalue("newer")
        stack.start_libvirtd()
        made = Virsh(
            request.getfixturevalue("lab"), ("/run/newer/bin/virsh", "-q", "-c", "nodedev:///system")
        )
    version = made("--version").strip()
    if not version.startswith(f"{request.param}."):
        pytest.skip(f"this machine's libvirt is {version}, not {request.param}")
    made.lab.shell("echo -1,-3 > /sys/bus/ap/apmask")
    return made


@pytest.fixture
def events(virsh: Virsh) -> Iterator[list[str]]:
    """Grows with each node device event; filled by a thread that reads what virsh prints."""
    ours, its = pty.openpty()  # to a pipe it would print in blocks of 4 KiB
    line = virsh.lab.command_line(*virsh.command, "nodedev-event", "--event", "lifecycle", "--loop")
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=its)
    os.close(its)
    seen: list[str] = []
    thread = Thread(target=_collect, args=(ours, seen), daemon=True)
    thread.start()
    yield seen
    process.terminate()
    process.wait()
    thread.join()


def _collect(terminal: int, seen: list[str]) -> None:
    with suppress(OSError), os.fdopen(terminal) as lines:  # EIO when the other side is closed
        for line in lines:
            found = re.match(r"event '(\S+)' for node device (\S+?)(?:: (\w+))?$", line.strip())
            if found:
                seen.append(" ".join(filter(None, found.group(2, 1, 3))))


def test_devices_are_listed_by_capability(virsh: Virsh) -> None:
    assert virsh.names("--cap", "ap_card") == CARDS
    assert virsh.names("--cap", "ap_queue") == QUEUES
    assert virsh.names("--cap", "ap_matrix") == ["ap_matrix"]
    assert virsh.names("--cap", "mdev_types") == ["ap_matrix"]
    assert virsh.names("--cap", "mdev") == []


def test_a_queue_tells_its_place(virsh: Virsh) -> None:
    text = virsh("nodedev-dumpxml", "ap_01_0011")
    for part in ("<parent>ap_card01</parent>", "<name>vfio_ap</name>", "<ap-adapter>0x01</ap-adapter>"):
        assert part in text
    assert "<ap-domain>0x0011</ap-domain>" in text


def test_a_defined_device_is_started_and_ended(virsh: Virsh, wait_until: Callable[..., None]) -> None:
    virsh.define("nodedev-define")
    assert virsh.names("--cap", "mdev", "--inactive") == [NAME]
    virsh("nodedev-start", NAME)
    assert virsh.lab.run("cat", f"{MATRIX}/{UUID}/matrix").stdout == "01.0011\n03.0011\n"
    # libvirt waits for mdevctl, and hears of what that did from udev, later.
    wait_until(lambda: virsh.names("--cap", "mdev") == [NAME], "libvirt lists the device as active")
    assert "<availableInstances>65535</availableInstances>" in virsh("nodedev-dumpxml", "ap_matrix")
    virsh("nodedev-destroy", NAME)
    virsh("nodedev-undefine", NAME)
    wait_until(lambda: virsh.names("--cap", "mdev", "--all") == [], "libvirt forgets the device")


def test_events_tell_of_devices_that_come_and_go(
    virsh: Virsh, events: list[str], wait_until: Callable[..., None]
) -> None:
    _wait_for_listener(virsh, events, wait_until)
    virsh.define("nodedev-create")
    wait_until(lambda: f"{NAME} lifecycle Created" in events, "virsh told of the new device")
    virsh("nodedev-destroy", NAME)
    wait_until(lambda: f"{NAME} lifecycle Deleted" in events, "virsh told of its end")


def test_an_adapter_that_leaves_and_comes_is_an_event(
    virsh: Virsh, events: list[str], wait_until: Callable[..., None]
) -> None:
    _wait_for_listener(virsh, events, wait_until)
    virsh.lab.run("vfioap-lab", "play", "remove-adapter", "adapter=6")
    gone = [f"{name} lifecycle Deleted" for name in ("ap_card06", "ap_06_000d", "ap_06_0011")]
    wait_until(lambda: set(gone) <= set(events), "virsh told of the adapter's end")
    assert virsh.names("--cap", "ap_card") == [card for card in CARDS if card != "ap_card06"]


def _wait_for_listener(virsh: Virsh, events: list[str], wait_until: Callable[..., None]) -> None:
    """virsh does not tell when it listens: let another device come and go until it is heard of.

    libvirt has to see it before it goes. It waits a whole second for the files of a device that has gone
    already, then reports nothing of it, and all other events stand in line behind it.
    """
    other = "99999999-0000-4000-8000-000000000009"
    node_device = f"mdev_{other.replace('-', '_')}_matrix"
    create = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create"

    def heard() -> bool:
        virsh.lab.shell(f"echo {other} > {create}")
        wait_until(lambda: node_device in virsh.names("--cap", "mdev"), "libvirt lists the other device")
        virsh.lab.shell(f"echo 1 > {MATRIX}/{other}/remove")
        wait_until(lambda: node_device not in virsh.names("--cap", "mdev"), "libvirt forgets it")
        return bool(events)

    wait_until(heard, "virsh listens")
