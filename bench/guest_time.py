# SPDX-License-Identifier: Apache-2.0
"""What the hook adds to a guest's start, and plugging in and out beside virsh's own commands."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Figure, Goal, Section, ratio
from bench.processes import VFIOAPCTL, milliseconds, run, running_daemon
from vfioapd.rpc.client import SOCKET, call

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.inside import Options

HOOK = Path(__file__).resolve().parents[1] / "etc/libvirt/hooks/qemu.d/vfioapd"
EMPTY_HOOK = Path("/run/empty-hook")
HOSTDEV = Path("/run/hostdev.xml")
STARTS = 200
MOST_P99_MS = 150.0
MOST_RATIO = 1.2
# What libvirt calls a hook with while a guest starts.
CALLS = (("prepare", "begin"), ("start", "begin"), ("started", "begin"))

METHOD = """\
Host rdbkvm4, guest bastion (a real QEMU, TCG), its matrix started. The hook: the three calls that libvirt
makes while a guest starts, one after the other, with the guest's document on standard input, by turns with
a shell script that ends at once; the daemon is running. Added is what the 99th of 100 takes longer than the
median of the empty script. Attach and detach: whole processes, live and in the guest's definition;
vfioapctl also takes the lock, plans, keeps its journal and host.toml, and checks the result. The calls alone
are the same from a program that already runs: what is left without the start of a Python program."""


def measure(options: Options) -> Section:
    """Needs a lab with libvirt."""
    with running_daemon():
        run("vfioap-lab", "guest", "bastion", "--start")
        run(VFIOAPCTL, "define", "vault", "--queues", "00.000d,02.000d")
        HOSTDEV.write_text(run(VFIOAPCTL, "xml", "hostdev", "vault"))
        plugging = _plugging(options.rounds)
        run(VFIOAPCTL, "attach", "vault", "bastion")
        ours, plain, empty = _hooks()
        run(VFIOAPCTL, "detach", "vault", "bastion")
    attach, their_attach, attach_call, detach, their_detach, detach_call = plugging
    late = sorted(ours.samples)[STARTS * 99 // 100 - 1]
    return Section(
        "Guests",
        METHOD,
        [ours, plain, empty, *plugging],
        [
            Goal("99 of 100 hooks add to a start", "ms", late - empty.median, MOST_P99_MS, inclusive=False),
            Goal("attach, against virsh", "×", ratio(attach, their_attach), MOST_RATIO),
            Goal("detach, against virsh", "×", ratio(detach, their_detach), MOST_RATIO),
        ],
        [
            f"The hook of a guest with a device: p50 {ours.median:.1f} ms, p99 {late:.1f} ms.",
            f"The calls alone take {ratio(attach_call, their_attach):.2f} × and"
            f" {ratio(detach_call, their_detach):.2f} × the time of virsh's commands.",
        ],
    )


def _hooks() -> tuple[Figure, Figure, Figure]:
    EMPTY_HOOK.write_text("#!/bin/sh\nexit 0\n")
    EMPTY_HOOK.chmod(0o755)
    document = run("virsh", "dumpxml", "bastion")
    without = document.replace("vfio-ap", "vfio-none")
    ours = Figure("the hook, a guest with a device", "ms", [])
    plain = Figure("the hook, a guest without", "ms", [])
    empty = Figure("an empty shell script", "ms", [])
    for _ in range(STARTS):
        for figure, program, xml in ((ours, HOOK, document), (plain, HOOK, without), (empty, EMPTY_HOOK, "")):
            figure.samples.append(milliseconds(lambda: _start(program, xml)))  # noqa: B023 - called at once
    return ours, plain, empty


def _start(program: Path, document: str) -> None:
    for operation, stage in CALLS:
        words = [str(program), "bastion", operation, stage, "-"]
        done = subprocess.run(words, input=document, text=True, capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"bench: {program} {operation}: {done.stderr.strip()}")


def _plugging(rounds: int) -> tuple[Figure, ...]:
    names = ("`vfioapctl {}`", "`virsh {}-device`", "the call `{}` alone")
    figures = {verb: [Figure(name.format(verb), "ms", []) for name in names] for verb in ("attach", "detach")}
    for _ in range(rounds):
        for number in range(len(names)):
            for verb, of_verb in figures.items():
                act = _acts(verb)[number]
                of_verb[number].samples.append(milliseconds(act))
    return (*figures["attach"], *figures["detach"])


def _acts(verb: str) -> tuple[Callable[[], object], ...]:
    """One verb in each of the ways, in the order of their names."""
    theirs = ("virsh", f"{verb}-device", "bastion", str(HOSTDEV), "--live", "--config")
    return (
        lambda: run(VFIOAPCTL, verb, "vault", "bastion"),
        lambda: run(*theirs),
        lambda: call(SOCKET, verb.capitalize(), name="vault", guest="bastion", where="both"),
    )
