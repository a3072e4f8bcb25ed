# SPDX-License-Identifier: Apache-2.0
"""How long an admin waits for ``vfioapctl status``, beside programs that ask less or answer less."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bench.figures import Figure, Goal, Section, ratio
from bench.processes import VFIOAPCTL, milliseconds, run, running_daemon, time_whole_processes
from vfioapd.rpc.client import READ_ONLY_SOCKET, call

if TYPE_CHECKING:
    from bench.inside import Options

MOST_MS = 50.0
MOST_INTERPRETERS = 4.0

METHOD = """\
Whole processes, from fork to exit, on host rdbkvm4 (16 queues) with the three matrices of the demo
started. One process of each kind in every round, the order turning. `python3` is the interpreter that
runs `vfioapctl`, from the same virtual environment; `virsh` asks the lab's private libvirtd. The call
alone is the same question over a socket from a program that already runs: what the daemon needs, nearly
all of it reads of the emulated bus."""


def measure(options: Options) -> Section:
    """Needs a lab on host rdbkvm4."""
    status = Figure("`vfioapctl status`", "ms", [])
    bare = Figure("`python3 -c pass`", "ms", [])
    virsh = Figure("`virsh nodedev-list`", "ms", [])
    alone = Figure("the call `Status` alone", "ms", [])
    with running_daemon():
        define_demo_matrices()
        time_whole_processes(
            (
                (bare, (sys.executable, "-c", "pass")),
                (status, (VFIOAPCTL, "status")),
                (virsh, ("virsh", "nodedev-list")),
            ),
            options.rounds,
        )
        alone.samples.extend(
            milliseconds(lambda: call(READ_ONLY_SOCKET, "Status")) for _ in range(options.rounds)
        )
    return Section(
        "vfioapctl status",
        METHOD,
        [status, bare, virsh, alone],
        [
            Goal("`vfioapctl status`", "ms", status.median, MOST_MS, inclusive=False),
            Goal(
                "`vfioapctl status` / bare interpreter",
                "×",
                ratio(status, bare),
                MOST_INTERPRETERS,
                inclusive=False,
            ),
        ],
        [f"`vfioapctl status` takes {ratio(status, virsh):.2f} × the time of `virsh nodedev-list`."],
    )


def define_demo_matrices() -> None:
    """Scenarios S1 and S3 of the demo."""
    for name, adapters, domains in (
        ("thirteen", "5,7", "13"),
        ("seventeen", "5,7", "17"),
        ("accel", "1,3", "17"),
    ):
        run(VFIOAPCTL, "define", name, "--adapters", adapters, "--domains", domains, "--disrupt")
