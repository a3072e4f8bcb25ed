# SPDX-License-Identifier: Apache-2.0
"""A lab's guest takes, keeps and gives back its vfio-ap device as a guest on IBM Z would."""

from __future__ import annotations

import contextlib
import json
import time
import uuid as uuids
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vfioapd.lab.harness import Lab, Result

CREATE = "/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create"
Guest = str
Mdev = str


def virsh(lab: Lab, *words: str, stdin: str = "", check: bool = True) -> Result:
    return lab.run("virsh", "-q", "-c", "qemu:///system", *words, stdin=stdin, check=check)


def plug(lab: Lab, what: str, guest: Guest, mdev: Mdev, *options: str, check: bool = True) -> Result:
    """attach-device or detach-device"""
    document = (
        "<hostdev mode='subsystem' type='mdev' model='vfio-ap'>"
        f"<source><address uuid='{mdev}'/></source></hostdev>"
    )
    return virsh(lab, what, guest, "/dev/stdin", *options, stdin=document, check=check)


def attached(lab: Lab, guest: Guest) -> list[str]:
    """UUIDs in the guest's live XML."""
    tree = ElementTree.fromstring(virsh(lab, "dumpxml", guest).stdout)
    return [address.attrib["uuid"] for address in tree.iterfind("devices/hostdev/source/address")]


def opened(lab: Lab) -> dict[str, str]:
    """What the emulated kernel says: guest -> UUID of the mdev it has open."""
    script = (
        "import json, os, socket\n"
        "with socket.socket(socket.AF_UNIX) as peer:\n"
        "    peer.connect(os.environ['VFIOAP_LAB_CONTROL'])\n"
        '    peer.sendall(b\'{"command": "guests"}\\n\')\n'
        "    print(peer.makefile().readline())\n"
    )
    return dict(json.loads(lab.run("python3", "-c", script).stdout)["guests"])


def behave(lab: Lab, guest: Guest, *options: str) -> None:
    lab.run("vfioap-lab", "guest", guest, *options)


@pytest.fixture
def guest(lab: Lab, mdev: Mdev) -> Iterator[Guest]:
    """A running guest; it ends before the mdev goes, which else would have to wait for it."""
    name = f"guest-{uuids.uuid4().hex[:6]}"
    behave(lab, name, "--start")
    yield name
    virsh(lab, "destroy", name, check=False)
    virsh(lab, "undefine", name)


@pytest.fixture
def mdev(lab: Lab) -> Iterator[Mdev]:
    """A mediated device without queues, which is enough to be given to a guest."""
    with created_mdev(lab) as uuid:
        yield uuid


@contextlib.contextmanager
def created_mdev(lab: Lab) -> Iterator[Mdev]:
    uuid = str(uuids.uuid4())
    lab.shell(f"echo {uuid} > {CREATE}; udevadm settle")
    yield uuid
    lab.shell(
        f"if [ -e /sys/bus/mdev/devices/{uuid} ]; then echo 1 > /sys/bus/mdev/devices/{uuid}/remove; fi"
    )


def test_a_device_is_attached_and_detached_while_the_guest_runs(lab: Lab, guest: Guest, mdev: Mdev) -> None:
    plug(lab, "attach-device", guest, mdev, "--live")
    assert attached(lab, guest) == [mdev]
    assert opened(lab) == {guest: mdev}
    started = time.monotonic()
    plug(lab, "detach-device", guest, mdev, "--live")
    assert time.monotonic() - started < 3, "libvirt waited for the event in vain"
    assert attached(lab, guest) == []
    assert opened(lab) == {}


def test_a_guest_starts_with_the_device_in_its_definition(lab: Lab, guest: Guest, mdev: Mdev) -> None:
    virsh(lab, "destroy", guest)
    plug(lab, "attach-device", guest, mdev, "--config")
    virsh(lab, "start", guest)
    assert attached(lab, guest) == [mdev]
    assert opened(lab) == {guest: mdev}
    plug(lab, "detach-device", guest, mdev, "--live", "--config")
    assert opened(lab) == {}


def test_a_second_device_is_refused_as_by_qemu(lab: Lab, guest: Guest, mdev: Mdev) -> None:
    plug(lab, "attach-device", guest, mdev, "--live")
    with created_mdev(lab) as other:
        result = plug(lab, "attach-device", guest, other, "--live", check=False)
    assert "unable to execute QEMU command 'device_add'" in result.stderr
    assert "No 'ap-bus' bus found for device 'vfio-ap'" in result.stderr
    assert attached(lab, guest) == [mdev]
    assert opened(lab) == {guest: mdev}


def test_a_device_that_somebody_else_has_open_is_busy(lab: Lab, guest: Guest, mdev: Mdev) -> None:
    open_by_another(lab, mdev)
    result = plug(lab, "attach-device", guest, mdev, "--live", check=False)
    open_by_another(lab, mdev, command="guest_close")
    assert f"vfio {mdev}: failed to open /dev/vfio/" in result.stderr
    assert "Device or resource busy" in result.stderr
    assert attached(lab, guest) == []


def test_a_guest_does_not_start_with_a_busy_device(lab: Lab, guest: Guest, mdev: Mdev) -> None:
    virsh(lab, "destroy", guest)
    plug(lab, "attach-device", guest, mdev, "--config")
    open_by_another(lab, mdev)
    result = virsh(lab, "start", guest, check=False)
    open_by_another(lab, mdev, command="guest_close")
    assert "Device or resource busy" in result.stderr
    assert virsh(lab, "domstate", guest).stdout.strip() == "shut off"


def open_by_another(lab: Lab, mdev: Mdev, command: str = "guest_open") -> None:
    """As some other process than a guest of libvirt."""
    lab.run(
        "python3",
        "-c",
        "import os, pathlib; from vfioapd.lab import wire\n"
        "path = pathlib.Path(os.environ['VFIOAP_LAB_CONTROL'])\n"
        f"answer = wire.request(path, {{'command': {command!r}, 'uuid': {mdev!r}, 'guest': 'another'}})\n"
        "assert 'error' not in answer, answer",
    )


def test_a_guest_that_refuses_keeps_its_device(lab: Lab, guest: Guest, mdev: Mdev) -> None:
    plug(lab, "attach-device", guest, mdev, "--live")
    behave(lab, guest, "--refuse-unplug")
    result = plug(lab, "detach-device", guest, mdev, "--live", check=False)
    assert "rejected by the guest" in result.stderr
    assert attached(lab, guest) == [mdev]
    assert opened(lab) == {guest: mdev}
    behave(lab, guest)
    plug(lab, "detach-device", guest, mdev, "--live")
    assert opened(lab) == {}


def test_a_slow_guest_lets_go_after_libvirt_has_stopped_waiting(
    lab: Lab, guest: Guest, mdev: Mdev, wait_until: Callable[..., None]
) -> None:
    plug(lab, "attach-device", guest, mdev, "--live")
    behave(lab, guest, "--delay-unplug", "6")
    plug(lab, "detach-device", guest, mdev, "--live")  # libvirt gives up after 5 s, and says 0
    assert attached(lab, guest) == [mdev]
    assert opened(lab) == {guest: mdev}
    wait_until(lambda: attached(lab, guest) == [], "the device is gone")
    assert opened(lab) == {}


@pytest.mark.parametrize("end", ["destroy", "crash"])
def test_the_device_is_closed_whatever_ends_the_guest(
    lab: Lab, guest: Guest, mdev: Mdev, wait_until: Callable[..., None], end: str
) -> None:
    plug(lab, "attach-device", guest, mdev, "--live")
    if end == "destroy":
        virsh(lab, "destroy", guest)
    else:
        behave(lab, guest, "--crash")
    wait_until(lambda: opened(lab) == {}, "the device is closed")
    wait_until(lambda: virsh(lab, "domstate", guest).stdout.strip() == "shut off", "libvirt knows it")


def test_a_guest_can_be_destroyed_and_started_at_once(lab: Lab, guest: Guest, mdev: Mdev) -> None:
    plug(lab, "attach-device", guest, mdev, "--live", "--config")
    for _ in range(5):
        virsh(lab, "destroy", guest)
        virsh(lab, "start", guest)
        assert opened(lab) == {guest: mdev}


def test_a_restarted_libvirtd_finds_guest_and_device_again(lab: Lab, guest: Guest, mdev: Mdev) -> None:
    plug(lab, "attach-device", guest, mdev, "--live")
    lab.run("vfioap-lab", "service", "restart", "libvirtd")
    assert attached(lab, guest) == [mdev]
    plug(lab, "detach-device", guest, mdev, "--live")
    assert opened(lab) == {}


def test_a_device_that_left_while_libvirtd_was_away_is_missed(
    lab: Lab, guest: Guest, mdev: Mdev, wait_until: Callable[..., None]
) -> None:
    plug(lab, "attach-device", guest, mdev, "--live")
    behave(lab, guest, "--delay-unplug", "6")
    plug(lab, "detach-device", guest, mdev, "--live")
    lab.run("vfioap-lab", "service", "stop", "libvirtd")
    wait_until(lambda: opened(lab) == {}, "the device is gone")
    lab.run("vfioap-lab", "service", "start", "libvirtd")
    assert attached(lab, guest) == []


def test_qemus_own_monitor_shows_the_device(lab: Lab, guest: Guest, mdev: Mdev) -> None:
    plug(lab, "attach-device", guest, mdev, "--live")
    ask = {"execute": "qom-list", "arguments": {"path": "/machine/peripheral"}}
    answer = virsh(lab, "qemu-monitor-command", guest, json.dumps(ask)).stdout
    assert {"name": "hostdev0", "type": "child<vfio-ap>"} in json.loads(answer)["return"]
    ask = {"execute": "qom-get", "arguments": {"path": "/machine/peripheral/hostdev0", "property": "type"}}
    answer = virsh(lab, "qemu-monitor-command", guest, json.dumps(ask)).stdout
    assert json.loads(answer)["return"] == "vfio-ap"


def test_libvirt_refuses_to_remove_a_device_in_use(lab: Lab, guest: Guest, mdev: Mdev) -> None:
    plug(lab, "attach-device", guest, mdev, "--live")
    result = virsh(lab, "nodedev-destroy", f"mdev_{mdev.replace('-', '_')}_matrix", check=False)
    assert "in use" in result.stderr
    assert opened(lab) == {guest: mdev}


def test_removing_the_mdev_of_a_running_guest_waits_for_the_guest(
    lab: Lab, guest: Guest, mdev: Mdev, wait_until: Callable[..., None]
) -> None:
    plug(lab, "attach-device", guest, mdev, "--live")
    writer = lab.popen("sh", "-c", f"echo 1 > /sys/bus/mdev/devices/{mdev}/remove; echo removed")
    wait_until(
        lambda: lab.run("test", "-e", f"/sys/bus/mdev/devices/{mdev}/matrix", check=False).returncode,
        "the device's files are gone",
    )
    assert writer.poll() is None
    virsh(lab, "destroy", guest)
    assert writer.communicate(timeout=10)[0] == "removed\n"


def test_a_guest_of_a_newer_qemu_lets_go_when_the_kernel_asks(
    lab: Lab, guest: Guest, mdev: Mdev, wait_until: Callable[..., None]
) -> None:
    behave(lab, guest, "--release-on-request")
    plug(lab, "attach-device", guest, mdev, "--live")
    lab.shell(f"echo 1 > /sys/bus/mdev/devices/{mdev}/remove", timeout=20)
    assert opened(lab) == {}
    wait_until(lambda: attached(lab, guest) == [], "libvirt knows it")


@pytest.mark.parametrize("name", ["", "../b", "a/b", "a b", ".a"])
def test_names_that_libvirt_or_a_shell_would_misread_are_refused(lab: Lab, name: str) -> None:
    result = lab.run("vfioap-lab", "guest", "--start", name, check=False)
    assert result.returncode == 2
