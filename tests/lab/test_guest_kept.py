# SPDX-License-Identifier: Apache-2.0
"""``guest = `` in host.toml is kept true on a real libvirtd, whatever is done to the guest with virsh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from guest_host import SYSTEMS, guest_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guest_host import GuestHost

BOTH = ("bastion", ["bastion"])


@pytest.fixture(scope="module", params=SYSTEMS)
def lab_host(request: pytest.FixtureRequest) -> Iterator[GuestHost]:
    with guest_host(request.param) as host:
        yield host


@pytest.fixture
def host(lab_host: GuestHost, wait_until: Callable[..., None]) -> Iterator[GuestHost]:
    """Guest bastion runs with its matrix; its document from before is kept beside."""
    lab_host.guest("bastion")
    lab_host.lab.shell("virsh dumpxml bastion > /run/before.xml")
    lab_host.virsh("start", "bastion")
    wait_until(lambda: "connected to libvirt" in lab_host.log(), "the daemon listens to libvirt")
    lab_host.ctl("define", "vault", "--queues", "00.000d,02.000d", "--guest", "bastion")
    yield lab_host
    for name in lab_host.virsh("list", "--all", "--name").split():
        lab_host.virsh("destroy", name, check=False)
        lab_host.virsh("undefine", name, check=False)
    lab_host.ctl("undefine", "vault")


def test_a_guest_defined_from_an_old_document_has_its_matrix_again(
    host: GuestHost, wait_until: Callable[..., None]
) -> None:
    host.virsh("destroy", "bastion")
    host.virsh("undefine", "bastion")
    wait_until(lambda: host.places() == (None, []), "the guest is gone")
    host.virsh("define", "/run/before.xml")
    wait_until(lambda: host.places() == (None, ["bastion"]), "the new guest has it in its definition")
    host.virsh("start", "bastion")
    assert host.places() == BOTH


def test_a_transient_guest_gets_it_when_it_runs(host: GuestHost, wait_until: Callable[..., None]) -> None:
    host.virsh("destroy", "bastion")
    host.virsh("undefine", "bastion")
    host.virsh("create", "/run/before.xml")
    wait_until(lambda: host.places() == ("bastion", []), "the transient guest has it")


def test_a_guest_that_crashes_and_starts_again_has_it(
    host: GuestHost, wait_until: Callable[..., None]
) -> None:
    host.lab.run("vfioap-lab", "guest", "bastion", "--crash")
    wait_until(lambda: host.places() == (None, ["bastion"]), "the crash is seen")
    host.virsh("start", "bastion")
    assert host.places() == BOTH


def test_host_toml_follows_virsh_domrename(host: GuestHost, wait_until: Callable[..., None]) -> None:
    host.virsh("destroy", "bastion")
    host.virsh("domrename", "bastion", "fortress")
    wait_until(lambda: host.show("vault")["guest"] == "fortress", "host.toml has the new name")
    assert "rename guest bastion to fortress" in host.ctl("history").stdout
    host.virsh("start", "fortress")
    assert host.places() == ("fortress", ["fortress"])


def test_what_virsh_took_from_a_running_guest_is_shown_not_fought(
    host: GuestHost, wait_until: Callable[..., None]
) -> None:
    host.lab.shell("vfioapctl xml hostdev vault > /run/hostdev.xml")
    host.virsh("detach-device", "bastion", "/run/hostdev.xml", "--live")
    wait_until(lambda: "(live)" in str(host.show("vault")["problem"]), "the drift is shown")
    assert host.places() == (None, ["bastion"])
    host.ctl("apply")
    assert host.places() == BOTH


def test_a_live_detach_of_ours_lasts_over_libvirts_and_our_own_restart_until_the_guest_starts_anew(
    host: GuestHost, wait_until: Callable[..., None]
) -> None:
    host.ctl("detach", "vault", "bastion", "--live")
    seen = host.log().count("connected to libvirt")
    host.libvirtd("restart")
    wait_until(lambda: host.log().count("connected to libvirt") > seen, "libvirt is there again")
    host.kill_daemon()
    host.start_daemon()
    wait_until(lambda: host.log().count("connected to libvirt") > seen + 1, "for the new daemon too")
    host.ctl("apply", "--dry-run")  # in the thread that looks, so that look is over
    assert host.places() == (None, ["bastion"])
    host.virsh("destroy", "bastion")
    host.virsh("start", "bastion")
    assert host.places() == BOTH


def test_a_copy_of_the_guest_does_not_get_its_device(
    host: GuestHost, wait_until: Callable[..., None]
) -> None:
    edits = "/<uuid>/d; s/<name>bastion/<name>copy/; /<address type=/d"
    host.lab.shell(f"virsh dumpxml bastion | sed '{edits}' > /run/copy.xml")
    host.virsh("define", "/run/copy.xml")
    assert "copy" in host.places()[1], "it is seen"
    started = host.lab.run("virsh", "-q", "start", "copy", check=False)
    assert started.returncode
    assert host.places()[0] == "bastion"
