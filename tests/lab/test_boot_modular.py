# SPDX-License-Identifier: Apache-2.0
"""What is peculiar to libvirt's modular daemons: each sleeps when it is idle, its socket wakes it, and
libvirtd lies beside them and must not be woken. All else is tried by the tests of booted hosts and guests."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from boots import MODULAR
from guest_host import guest_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guest_host import GuestHost

UUID = "825b3872-0001-0003-0011-28a403f8b357"
NODE_DEVICE = f"mdev_{UUID.replace('-', '_')}_matrix"
BOTH = ("bastion", ["bastion"])
IDLE_SECONDS = 2
SLEEPY = f"""\
[Service]
Environment="VIRTQEMUD_ARGS=--timeout {IDLE_SECONDS}" "VIRTNODEDEVD_ARGS=--timeout {IDLE_SECONDS}"
"""
OURS = "vfioapd.service vfioapd.socket vfioapd-ro.socket vfioapd-ready.target"


@pytest.fixture(scope="module", params=MODULAR)
def lab_host(request: pytest.FixtureRequest) -> Iterator[GuestHost]:
    """The daemons are as idle as they like after two seconds, and not after two minutes."""
    with guest_host(request.param) as host:
        for name in ("virtqemud", "virtnodedevd"):
            host.lab.shell(f"mkdir -p /etc/systemd/system/{name}.service.d")
            host.lab.run("tee", f"/etc/systemd/system/{name}.service.d/sleepy.conf", stdin=SLEEPY)
        host.lab.shell("systemctl daemon-reload; systemctl restart virtqemud virtnodedevd")
        host.guest("bastion")
        host.lab.shell("virsh -q dumpxml bastion > /run/before.xml")
        host.ctl("define", "vault", "--queues", "00.000d,02.000d", "--uuid", UUID, "--guest", "bastion")
        yield host


@pytest.fixture
def host(lab_host: GuestHost) -> Iterator[GuestHost]:
    yield lab_host
    lab_host.start_daemon()
    lab_host.virsh("destroy", "bastion", check=False)


def state(host: GuestHost, unit: str) -> str:
    """Its ActiveState."""
    return host.lab.run("systemctl", "show", "--value", "--property=ActiveState", unit).stdout.strip()


def invocation(host: GuestHost, unit: str) -> str:
    return host.lab.run("systemctl", "show", "--value", "--property=InvocationID", unit).stdout.strip()


def connections(host: GuestHost) -> int:
    return host.log().count("connected to libvirt")


def sleeps(host: GuestHost, daemon: str) -> bool:
    return state(host, f"{daemon}.service") == "inactive"


def test_virtqemud_serves_and_libvirtd_stays_down(host: GuestHost) -> None:
    assert host.libvirts_daemon == "virtqemud"
    host.ctl("attach", "vault", "bastion")
    host.ctl("doctor")
    assert host.lab.run("vfioapctl", "status", "--check").returncode == 0
    assert state(host, "virtqemud.service") == "active"
    assert invocation(host, "libvirtd.service") == "", "it was never started"


def test_systemd_finds_no_cycle_between_our_units_and_libvirts(host: GuestHost) -> None:
    units = f"{OURS} virtqemud.service virtnodedevd.service virtproxyd.socket libvirt-guests.service"
    verified = host.lab.shell(f"systemd-analyze verify --man=no {units} 2>&1 || true").stdout
    assert "cycle" not in verified
    assert "vfioapd" not in verified, verified
    assert "cycle" not in host.lab.run("journalctl", "--boot", "--output=cat", "_PID=1").stdout


def test_virtqemud_does_not_fall_asleep_under_a_connected_daemon(
    host: GuestHost, wait_until: Callable[..., None]
) -> None:
    """Else it would be woken by its socket for the next event's sake, and what was before that be lost."""
    host.ctl("status")
    before = invocation(host, "virtqemud.service")
    time.sleep(3 * IDLE_SECONDS)  # what is tried is that nothing happens in time
    assert (state(host, "virtqemud.service"), invocation(host, "virtqemud.service")) == ("active", before)
    host.virsh("start", "bastion")
    wait_until(lambda: "news: guest bastion started" in host.log(), "its start is heard")
    assert host.places() == BOTH


def test_a_virtqemud_that_sleeps_is_not_woken_by_our_start_and_found_when_a_guest_starts(
    host: GuestHost, wait_until: Callable[..., None]
) -> None:
    host.take_down_daemon()
    wait_until(lambda: sleeps(host, "virtqemud"), "it has gone to sleep", seconds=30)
    host.lab.shell("systemctl start vfioapd.service")
    seen = connections(host)
    time.sleep(IDLE_SECONDS)  # time enough to wake it
    assert sleeps(host, "virtqemud")
    host.virsh("start", "bastion")
    wait_until(lambda: connections(host) > seen, "the daemon is connected")
    assert host.places() == BOTH
    host.virsh("destroy", "bastion")
    wait_until(lambda: "news: guest bastion stopped" in host.log(), "its end is heard")


def test_what_happened_to_guests_while_we_were_away_is_found_when_virtqemud_wakes(
    host: GuestHost, wait_until: Callable[..., None]
) -> None:
    host.take_down_daemon()
    host.lab.shell("virsh -q undefine bastion; virsh -q define /run/before.xml")
    wait_until(lambda: sleeps(host, "virtqemud"), "it has gone to sleep", seconds=30)
    host.lab.shell("systemctl start vfioapd.service")
    host.virsh("list")  # wakes it
    wait_until(lambda: host.places() == (None, ["bastion"]), "the guest has its matrix again")
    host.virsh("start", "bastion")
    assert host.places() == BOTH


def test_a_stopped_virtqemud_is_woken_by_a_command_of_ours_and_guests_run_on(host: GuestHost) -> None:
    host.virsh("start", "bastion")
    for command in ("detach", "attach"):
        host.lab.shell("systemctl stop virtqemud.service virtnodedevd.service")
        host.ctl(command, "vault", "bastion")
        assert host.places() == (BOTH if command == "attach" else (None, []))
    assert host.virsh("domstate", "bastion").strip() == "running"


def test_a_virtqemud_that_an_admin_stopped_stays_down_until_it_is_needed(host: GuestHost) -> None:
    """Its socket would take a connection of ours for a need."""
    host.virsh("start", "bastion")
    host.lab.shell("systemctl stop virtqemud.service")
    time.sleep(2)  # what is tried is that nothing happens in time
    assert sleeps(host, "virtqemud")
    host.ctl("status")
    assert state(host, "virtqemud.service") == "active"


def test_a_busy_virtqemud_that_is_stopped_is_not_started_again_by_us(host: GuestHost) -> None:
    """It ends its connections at once and itself some seconds later, when a thread waits for a guest."""
    host.guest("bastion", "--delay-unplug", "6")
    host.virsh("start", "bastion")
    host.lab.shell("vfioapctl xml hostdev vault > /run/hostdev.xml")
    unplug = host.lab.popen("virsh", "-q", "detach-device", "bastion", "/run/hostdev.xml", "--live")
    try:
        time.sleep(1)  # it waits for the guest by now
        host.lab.shell("systemctl stop virtqemud.service")
        time.sleep(1)  # what is tried is that nothing happens in time
        assert sleeps(host, "virtqemud")
    finally:
        unplug.wait(20)
        host.guest("bastion")


def test_without_sockets_commands_name_virtqemud_as_what_is_to_be_started(host: GuestHost) -> None:
    host.libvirtd("stop")
    try:
        refused = host.ctl("attach", "vault", "bastion", check=False)
        why = host.ctl("why", "vault").stdout
        doctor = json.loads(host.ctl("doctor", "--json", check=False).stdout)
    finally:
        host.libvirtd("start")
    assert "systemctl start virtqemud" in refused.stderr
    assert "systemctl start virtqemud" in why
    (finding,) = (one for subject in doctor["subjects"] for one in subject["findings"])
    assert finding["command"] == "systemctl restart virtqemud.service"


def test_node_devices_come_and_go_under_a_virtnodedevd_that_sleeps(
    host: GuestHost, wait_until: Callable[..., None]
) -> None:
    wait_until(lambda: sleeps(host, "virtnodedevd"), "it has gone to sleep", seconds=30)
    host.ctl("stop", "vault")
    assert NODE_DEVICE not in host.virsh("nodedev-list", "--cap", "mdev")
    listener = host.lab.popen(
        "virsh", "-q", "nodedev-event", "--event", "lifecycle", "--loop", "--timeout", "10"
    )
    try:
        wait_until(lambda: not sleeps(host, "virtnodedevd"), "the listener has woken it")
        time.sleep(0.5)  # it says nothing when it is registered
        host.ctl("start", "vault")
        wait_until(lambda: NODE_DEVICE in host.virsh("nodedev-list", "--cap", "mdev"), "it is listed")
        heard = listener.communicate(timeout=20)[0]
    finally:
        listener.kill()
    assert f"event 'lifecycle' for node device {NODE_DEVICE}: Created" in heard


def test_a_restart_of_virtnodedevd_in_the_middle_of_changes_disturbs_none(host: GuestHost) -> None:
    host.virsh("start", "bastion")
    restarts = host.lab.popen(
        "sh", "-c", "for _ in 1 2 3 4 5 6; do systemctl reset-failed virtnodedevd.service;"
        " systemctl restart virtnodedevd.service; sleep 0.3; done"
    )  # fmt: skip
    while restarts.poll() is None:
        for command in ("detach", "attach"):
            host.ctl(command, "vault", "bastion")
    assert restarts.returncode == 0
    assert host.places() == BOTH
    assert NODE_DEVICE in host.virsh("nodedev-list", "--cap", "mdev")
