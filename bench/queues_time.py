# SPDX-License-Identifier: Apache-2.0
"""How long an admin waits for ``vfioapctl queues`` on a full host, and how soon it shows an event."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Figure, Goal, Section, ratio
from bench.processes import VFIOAPCTL, milliseconds, run, running_daemon, time_whole_processes
from vfioapd.rpc.client import READ_ONLY_SOCKET, call

if TYPE_CHECKING:
    from bench.inside import Options

MOST_MS = 300.0
MOST_EVENT_MS = 100.0
CARD = Path("/sys/devices/ap/card00")

METHOD = """\
{host}, all queues the host's. Whole processes, from fork to exit; `lszcrypt`'s part would be a read of each
queue's files, which `cat` of one file of each queue stands for here. The first call after the daemon's start
reads two files of every queue, later ones what uevents say may have changed. Event: from the write that
sets one queue offline until the call `Queues` has answered that it is."""


def measure(options: Options) -> Section:
    """Needs a lab with thousands of queues."""
    first = Figure("the first call `Queues` of a daemon", "ms", [])
    queues = Figure("`vfioapctl queues`", "ms", [])
    grid = Figure("`vfioapctl queues --grid`", "ms", [])
    cat = Figure("`cat` of one file of each queue", "ms", [])
    event = Figure("event until `Queues` shows it", "ms", [])
    with running_daemon() as daemon:
        for _ in range(options.rounds):
            first.samples.append(milliseconds(lambda: call(READ_ONLY_SOCKET, "Queues")))
            daemon.stop()
            daemon.start()
        call(READ_ONLY_SOCKET, "Queues")
        time_whole_processes(
            (
                (queues, (VFIOAPCTL, "queues")),
                (grid, (VFIOAPCTL, "queues", "--grid")),
                (cat, ("sh", "-c", "cat /sys/devices/ap/card*/*.*/config")),
            ),
            options.rounds,
        )
        queue = min(path for path in CARD.iterdir() if path.name.startswith("00."))
        for number in range(options.rounds):
            event.samples.append(milliseconds(lambda: _switch(queue, "01"[number % 2])))  # noqa: B023
        run("sh", "-c", f"echo 1 > {queue}/online")
    size = options.host_words.partition(" (")[0]
    return Section(
        f"vfioapctl queues, {options.host_words}",
        METHOD.format(host=options.host_words),
        [first, queues, grid, cat, event],
        [
            Goal(f"{size}: `vfioapctl queues`", "ms", queues.median, MOST_MS, inclusive=False),
            Goal(
                f"{size}: event until `Queues` shows it", "ms", event.median, MOST_EVENT_MS, inclusive=False
            ),
        ],
        [f"`vfioapctl queues` takes {ratio(queues, cat):.2f} × the time of `cat` of one file of each queue."],
    )


def _switch(queue: Path, state: str) -> None:
    """Set the queue on or offline, and ask until that is what is told."""
    descriptor = os.open(queue / "online", os.O_WRONLY)
    os.write(descriptor, state.encode())
    os.close(descriptor)
    wanted = "online" if state == "1" else "offline"
    while _told(queue.name) != wanted:
        time.sleep(0.001)


def _told(queue: str) -> object:
    rows = call(READ_ONLY_SOCKET, "Queues")["queues"]
    assert isinstance(rows, list)
    return next(row["state"] for row in rows if row["queue"] == queue)
