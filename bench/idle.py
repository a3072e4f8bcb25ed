# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs while nobody wants anything: memory and wake-ups."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Figure, Goal, Section
from bench.processes import VFIOAPCTL, run, running_daemon
from bench.status_time import define_demo_matrices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.inside import Options

MOST_MB = 60.0
NETLINK_KOBJECT_UEVENT = 15  # include/uapi/linux/netlink.h
# The AP bus looks at its cards every 30 s (config_time) and says then, once after masks have moved, that all
# queues are bound. That is news, and the daemon looks.
SETTLE_SECONDS = 33.0

METHOD = """\
Host rdbkvm4, the three matrices of the demo started, `vfioapctl status` and `queues` asked once, no guest,
no watchdog (WATCHDOG_USEC unset). Memory from `/proc/PID/smaps_rollup` of the daemon and of its helper
process that writes to sysfs; PSS divides shared pages among those who share them. Wake-ups are
context switches of all threads of both, voluntary and not, from `/proc/PID/task/*/status`, in {seconds:g} s
without a request, after the AP bus has settled; a thread that sleeps all the time makes none. The kernel
sends each uevent to all who listen, whatever device it is about, so one of the machine itself wakes the
daemon, which reads it and sleeps on: they are counted beside it, and a quiet machine has none. libvirtd
pings every client that has an event loop (keepalive_interval, 5 s): what that costs is shown by another
program, with a connection and a callback for guests' events and nothing else."""

LISTENER = """
import threading, libvirt
libvirt.virEventRegisterDefaultImpl()
def turn():
    while True:
        libvirt.virEventRunDefaultImpl()
threading.Thread(target=turn, daemon=True).start()
connection = libvirt.open("qemu:///system")
connection.setKeepAlive(5, 3)
connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lambda *_: None, None)
print("listens", flush=True)
threading.Event().wait()
"""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process, or of several together."""

    rss: float  # MB
    pss: float  # MB
    switches: int


def measure(options: Options) -> Section:
    """Needs a lab on host rdbkvm4."""
    with running_daemon() as daemon, _listener() as listener:
        define_demo_matrices()
        run(VFIOAPCTL, "status")
        run(VFIOAPCTL, "queues")
        time.sleep(SETTLE_SECONDS)
        family = [daemon.pid, *_children(daemon.pid)]
        with _uevent_ear() as ear:
            before, pinged_before = list(map(_usage, family)), _usage(listener)
            time.sleep(options.idle_seconds)
            after, pinged_after = list(map(_usage, family)), _usage(listener)
            uevents = _count(ear)
    woken = sum(two.switches - one.switches for one, two in zip(before, after, strict=True))
    pinged = pinged_after.switches - pinged_before.switches
    rss = sum(one.rss for one in after)
    return Section(
        "The idle daemon",
        METHOD.format(seconds=options.idle_seconds),
        [
            Figure("resident, daemon", "MB", [after[0].rss]),
            Figure("resident, daemon and helper", "MB", [rss]),
            Figure("proportional (PSS), daemon and helper", "MB", [sum(one.pss for one in after)]),
            Figure(f"wake-ups in {options.idle_seconds:g} s", "", [woken]),
            Figure("wake-ups of a program that only listens to libvirt", "", [pinged]),
            Figure("uevents of the machine meanwhile", "", [uevents]),
        ],
        [
            Goal("resident memory, daemon and helper", "MB", rss, MOST_MB, inclusive=False),
            Goal(
                f"wake-ups in {options.idle_seconds:g} s but for uevents and libvirt's pings",
                "",
                max(0, woken - uevents - pinged),
                0,
            ),
        ],
    )


@contextlib.contextmanager
def _listener() -> Iterator[int]:
    """The process id of a program that listens to guests' events as long as the block lasts."""
    with subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        process.terminate()


def _uevent_ear() -> socket.socket:
    """A socket that hears every kernel uevent (group 1 of NETLINK_KOBJECT_UEVENT)."""
    ear = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)
    ear.bind((0, 1))
    return ear


def _count(ear: socket.socket) -> int:
    """How many messages have come."""
    ear.settimeout(0)
    found = 0
    with contextlib.suppress(BlockingIOError):
        while ear.recv(1 << 16):
            found += 1
    return found


def _usage(pid: int) -> Usage:
    memory = _fields(Path(f"/proc/{pid}/smaps_rollup"))
    switches = sum(
        count
        for task in Path(f"/proc/{pid}/task").iterdir()
        for name, count in _fields(task / "status").items()
        if name.endswith("voluntary_ctxt_switches")
    )
    return Usage(memory["Rss"] / 1024, memory["Pss"] / 1024, switches)


def _fields(path: Path) -> dict[str, int]:
    """The lines `Name: 123 ...` of a proc file."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]
