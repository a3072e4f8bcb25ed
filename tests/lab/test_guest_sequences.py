# SPDX-License-Identifier: Apache-2.0
"""What guests go through in a day, on a real libvirtd and QEMU: each sequence undisturbed, with libvirtd
restarted in the middle of each of its commands, and with the daemon killed in the middle of each.

A command that was cut off is repeated, as an admin would; all of them may be. When it is over, what libvirt,
the kernel and vfioapd say must be one and the same, and what was wanted.
"""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING

import pytest
from guest_host import SYSTEMS, guest_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guest_host import GuestHost

QUEUES = {"00.000d", "02.000d"}
DEVICES = "/sys/bus/mdev/devices"
TRIES = 5
UUID = "00000000-1111-2222-3333-444444444444"
# What vfioapd, libvirt and the kernel say of the matrix.
SAY = f"""
vfioapctl show vault --json
echo ====
for guest in bastion fortress; do
    live=0
    [ "$(virsh -q domstate $guest)" = "shut off" ] || live=$(virsh dumpxml $guest | grep -c {UUID} || true)
    echo $guest $live $(virsh dumpxml $guest --inactive | grep -c {UUID} || true)
done
echo ====
cat {" ".join(f"/sys/devices/ap/card{queue[:2]}/{queue}/status" for queue in sorted(QUEUES))}
echo ====
cat /sys/devices/vfio_ap/matrix/{UUID}/guest_matrix
"""
ATTACH, DETACH = "vfioapctl attach vault bastion", "vfioapctl detach vault bastion"


def until(wanted: str, act: str) -> str:
    """A command of virsh that is an error where its end is reached already."""
    return f'test "$(virsh -q domstate bastion)" = "{wanted}" || virsh -q {act} bastion'


START, DESTROY = until("running", "start"), until("shut off", "destroy")
SEQUENCES: dict[str, tuple[str, ...]] = {
    "attach and detach ten times": (ATTACH, DETACH) * 10,
    "pause and resume": (ATTACH, until("paused", "suspend"), until("running", "resume"), DETACH),
    "detach while it is paused": (ATTACH, until("paused", "suspend"), DETACH, until("running", "resume")),
    "reboot": (ATTACH, "virsh -q reboot bastion", "virsh -q reset bastion", DETACH),
    "destroy and start": (ATTACH, DESTROY, START, DESTROY, START, DETACH),
    "to another guest and back": (
        ATTACH,
        DETACH,
        "vfioapctl attach vault fortress",
        "vfioapctl detach vault fortress",
        ATTACH,
        DETACH,
    ),
}


@pytest.fixture(scope="module", params=SYSTEMS)
def lab_host(request: pytest.FixtureRequest) -> Iterator[GuestHost]:
    with guest_host(request.param) as host:
        host.ctl("define", "vault", "--queues", ",".join(QUEUES), "--uuid", UUID)
        for name in ("bastion", "fortress"):
            host.guest(name, "--start")
        yield host


@pytest.fixture
def host(lab_host: GuestHost) -> Iterator[GuestHost]:
    yield lab_host
    lab_host.lab.shell(f"{START}; {DETACH}; vfioapctl detach vault fortress")


def nothing(_host: GuestHost) -> None:
    pass


def restart_libvirtd(host: GuestHost) -> None:
    host.libvirtd("restart")


def leave_libvirtd_to_its_socket(host: GuestHost) -> None:
    host.leave_libvirtd_to_its_socket()


def kill_daemon(host: GuestHost) -> None:
    host.kill_daemon()
    host.start_daemon()


@pytest.mark.parametrize(
    "disturb",
    [
        nothing,
        restart_libvirtd,
        pytest.param(leave_libvirtd_to_its_socket, marks=pytest.mark.boot),
        kill_daemon,
    ],
)
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_ends_as_wanted_and_everybody_says_the_same(
    host: GuestHost, name: str, disturb: Callable[[GuestHost], None], wait_until: Callable[..., None]
) -> None:
    moments = random.Random(name)
    for command in SEQUENCES[name]:
        run(host, command, disturb, moments.uniform(0, 0.3))
        if command in (ATTACH, DETACH):
            wait_until(lambda: not contradictions(host), "libvirt, kernel and daemon agree")
            assert contradictions(host) == []
            assert (host.places()[0] == "bastion") is (command == ATTACH), command
    assert host.places() == (None, [])
    assert host.lab.run("ls", DEVICES).stdout.split() == [UUID]
    assert not host.lab.shell("ls /var/lib/vfioapd/journal.left 2>/dev/null || true").stdout


def run(host: GuestHost, command: str, disturb: Callable[[GuestHost], None], after: float) -> None:
    """Disturb it once, and repeat it until it has come to its end."""
    process = host.lab.popen("sh", "-c", command)
    time.sleep(after)  # the moment is what is tried, not waited for
    disturb(host)
    tries, most = 1, 1 if disturb is nothing else TRIES
    while process.wait(60):
        assert tries < most, f"{command}: not done after {tries} tries"
        process = host.lab.popen("sh", "-c", command)
        tries += 1


def contradictions(host: GuestHost) -> list[str]:
    """Where libvirt, the kernel and vfioapd do not say the same of vault."""
    row, documents, statuses, given = (part.strip() for part in host.lab.shell(SAY).stdout.split("====\n"))
    told = json.loads(row)
    seen = {
        "live": [name for name, live, _ in map(str.split, documents.splitlines()) if live == "1"],
        "config": [name for name, _, config in map(str.split, documents.splitlines()) if config == "1"],
        "queues": set(statuses.splitlines()),
        "guest_matrix": set(given.split()),
    }
    wanted = {
        "live": [told["live"]] if told["live"] else [],
        "config": told["config"],
        "queues": {"in use" if told["live"] else "assigned"},
        "guest_matrix": QUEUES,
    }
    return [f"{what}: {seen[what]}, not {wanted[what]}" for what in seen if seen[what] != wanted[what]]
