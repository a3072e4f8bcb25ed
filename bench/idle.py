# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs while nobody wants anything: memory and wake-ups."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Figure, Goal, Section
from bench.processes import VFIOAPCTL, run, running_daemon
from bench.status_time import define_demo_matrices

if TYPE_CHECKING:
    from bench.inside import Options

MOST_MB = 60.0
SETTLE_SECONDS = 3.0  # for what the last answer leaves behind: a closed connection, a thread going to sleep

METHOD = """\
Host rdbkvm4, the three matrices of the demo started, `vfioapctl status` and `queues` asked once, no guest,
no watchdog (WATCHDOG_USEC unset). Memory from `/proc/PID/smaps_rollup` of the daemon and of its helper
process that writes to sysfs; PSS divides shared pages among those who share them. Wake-ups are
context switches of all threads of both, voluntary and not, from `/proc/PID/task/*/status`, in {seconds:g} s
without a request; a thread that sleeps all the time makes none."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process, or of several together."""

    rss: float  # MB
    pss: float  # MB
    switches: int


def measure(options: Options) -> Section:
    """Needs a lab on host rdbkvm4."""
    with running_daemon() as daemon:
        define_demo_matrices()
        run(VFIOAPCTL, "status")
        run(VFIOAPCTL, "queues")
        time.sleep(SETTLE_SECONDS)
        family = [daemon.pid, *_children(daemon.pid)]
        before = list(map(_usage, family))
        time.sleep(options.idle_seconds)
        after = list(map(_usage, family))
    woken = sum(two.switches - one.switches for one, two in zip(before, after, strict=True))
    rss = sum(one.rss for one in after)
    return Section(
        "The idle daemon",
        METHOD.format(seconds=options.idle_seconds),
        [
            Figure("resident, daemon", "MB", [after[0].rss]),
            Figure("resident, daemon and helper", "MB", [rss]),
            Figure("proportional (PSS), daemon and helper", "MB", [sum(one.pss for one in after)]),
            Figure(f"wake-ups in {options.idle_seconds:g} s", "", [woken]),
        ],
        [
            Goal("resident memory, daemon and helper", "MB", rss, MOST_MB, inclusive=False),
            Goal(f"wake-ups in {options.idle_seconds:g} s", "", woken, 0),
        ],
    )


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
