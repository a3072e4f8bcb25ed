# SPDX-License-Identifier: Apache-2.0
"""Power cuts at any moment of a reconfiguration, and a daemon that hangs: the host comes back by itself."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from boots import NOT_BELOW_TMP, SYSTEMS, autostarted, boot, matrices, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vfioapd.lab.boot_harness import BootedLab

pytestmark = [pytest.mark.boot, NOT_BELOW_TMP]

CUTS = int(os.environ.get("VFIOAPD_BOOT_CUTS", "100"))
SEED = int(os.environ.get("VFIOAPD_BOOT_SEED", "0")) or random.randrange(1, 1 << 32)
LONGEST = 2.0  # seconds from the begin of a reconfiguration to the cut
# What stays, what moves from queue to queue, and what comes and goes.
KEPT = """\
version = 1
[[matrix]]
name = "bastion"
uuid = "825b3872-0001-0005-0011-28a403f8b357"
adapters = [1, 5]
domains = [0x11]
guest = "bastion"
"""
OLD = (
    KEPT
    + """\
[[matrix]]
name = "moves"
uuid = "825b3872-0002-0005-0011-28a403f8b357"
adapters = [2, 4]
domains = [0x0d, 0x11]
"""
)
NEW = (
    KEPT
    + """\
[[matrix]]
name = "moves"
uuid = "825b3872-0002-0005-0011-28a403f8b357"
adapters = [4, 6]
domains = [0x11]
[[matrix]]
name = "comes"
uuid = "825b3872-0003-0005-0011-28a403f8b357"
adapters = [2]
domains = [0x0d]
"""
)
WANTED = {
    OLD: {"bastion": [1, 5], "moves": [2, 4]},
    NEW: {"bastion": [1, 5], "moves": [4, 6], "comes": [2]},
}
# The cut is in the same shell, so that its moment is as near as a sleep can be.
RECONFIGURE = """
while :; do vfioapctl apply /root/new.toml; vfioapctl apply /root/old.toml; done > /root/log 2>&1 &
sleep {seconds}
systemctl reboot --force --force
sleep 60
"""
# Not every system has pgrep.
EMULATOR = "grep -lz '^vfioapd.emulator$' /proc/[0-9]*/cmdline | cut -d/ -f3"
HANG_SOON = """\
[Service]
WatchdogSec=2
"""


@pytest.fixture(scope="module", params=SYSTEMS)
def host(request: pytest.FixtureRequest) -> Iterator[BootedLab]:
    """One matrix for a guest with autostart, and others that are moved about."""
    with boot("rdbkvm4", request.param) as lab:
        lab.shell(autostarted("bastion"))
        lab.run("tee", "/root/old.toml", stdin=OLD)
        lab.run("tee", "/root/new.toml", stdin=NEW)
        lab.run("vfioapctl", "apply", "/root/new.toml")
        lab.run("vfioapctl", "apply", "/root/old.toml")
        lab.reboot()
        yield lab


def check_old_or_new(lab: BootedLab) -> str:
    """The file is one of the two to the letter, and the host is as that file wants it."""
    text = lab.run("cat", "/etc/vfioapd/host.toml").stdout
    assert text in WANTED
    assert {name: row["adapters"] for name, row in matrices(lab).items()} == WANTED[text]
    assert {row["state"] for row in matrices(lab).values()} <= {"started", "in-use"}
    for row in matrices(lab).values():
        assert row["guest_matrix"] == row["queues"], row
    assert status(lab)["problems"] == []
    devices = lab.run("ls", "/sys/bus/mdev/devices").stdout.split()
    assert devices == sorted(row["uuid"] for row in matrices(lab).values())
    assert sorted(lab.run("ls", "/etc/mdevctl.d/matrix").stdout.split()) == devices
    assert lab.run("systemctl", "--failed", "--no-legend").stdout == ""
    return text


@pytest.mark.timeout(1800)  # a hundred boots
def test_power_cuts_at_random_moments_leave_the_old_state_or_the_new_one(
    host: BootedLab, wait_until: Callable[..., None]
) -> None:
    chance = random.Random(SEED)
    found: dict[str, int] = {OLD: 0, NEW: 0}
    for number in range(CUTS):
        seconds = chance.uniform(0.05, LONGEST)
        try:
            host.shell(RECONFIGURE.format(seconds=f"{seconds:.3f}"), check=False)
            host.wait_up()
            found[check_old_or_new(host)] += 1
            wait_until(
                lambda: matrices(host)["bastion"]["live"] == "bastion", "the guest has its queues", seconds=30
            )
        except AssertionError as error:
            raise AssertionError(
                f"cut {number} after {seconds:.3f} s, VFIOAPD_BOOT_SEED={SEED}: {error}"
            ) from error
    print(f"{CUTS} cuts, seed {SEED}: {found[OLD]} times the old state, {found[NEW]} times the new")
    assert CUTS < 20 or min(found.values()) > 0, "moments of both kinds were met"


def test_a_daemon_whose_change_hangs_is_replaced_and_the_guest_keeps_its_queues(
    host: BootedLab, wait_until: Callable[..., None]
) -> None:
    """The kernel answers no more: every file of the AP bus blocks whoever touches it."""
    host.run("vfioapctl", "apply", "/root/old.toml")
    wait_until(lambda: matrices(host)["bastion"]["live"] == "bastion", "the guest has its queues", seconds=30)
    host.shell("mkdir -p /run/systemd/system/vfioapd.service.d")
    host.run("tee", "/run/systemd/system/vfioapd.service.d/hang.conf", stdin=HANG_SOON)
    host.shell("systemctl daemon-reload; systemctl restart vfioapd.service")
    daemon = host.value("vfioapd.service", "MainPID")
    guests = host.run("virsh", "-q", "list", "--name").stdout
    emulator = host.shell(EMULATOR).stdout.strip()
    host.shell(f"kill -STOP {emulator}; timeout 1 vfioapctl apply /root/new.toml", check=False)
    try:
        wait_until(lambda: host.value("vfioapd.service", "MainPID") != daemon, "it is ended", seconds=60)
    finally:
        host.shell(f"kill -CONT {emulator}")
    wait_until(lambda: host.value("vfioapd.service", "ActiveState") == "active", "the next is up", seconds=60)
    journal = host.run("journalctl", "--boot", "--unit=vfioapd.service").stdout
    assert "the thread that makes changes has hung" in journal
    assert "Watchdog timeout" in journal
    assert host.run("virsh", "-q", "list", "--name").stdout == guests
    assert matrices(host)["bastion"]["live"] == "bastion"
    assert matrices(host)["bastion"]["guest_matrix"] == ["01.0011", "05.0011"]
    check_old_or_new(host)
    host.shell("rm -r /run/systemd/system/vfioapd.service.d; systemctl daemon-reload")
