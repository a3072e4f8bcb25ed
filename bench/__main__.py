# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``, as root: all measurements, each in a lab of its own, one after the other."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import boot_time, hosts, machine, plan_time
from bench.figures import Section, decode_section, goals_table

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "RESULTS.md"

HEAD = """\
# Results

Written by `make bench`; a run writes this file anew. **Nothing here ran on IBM Z.** The AP bus, its queues
and vfio_ap were emulated in Python and served over FUSE, where each read or write of a file costs far
more than in a kernel; libvirtd, virsh, mdevctl, udevd and Python were the real ones. So ratios between
programs of the same run say more than milliseconds, and what reads many files is slower here than on Z.
Each row gives the smallest, the middle and the largest of n samples."""


@dataclass(frozen=True, slots=True)
class Run:
    """One subject on one host."""

    subject: str
    host: hosts.Host
    rounds: int


def main() -> int:
    """Measure, print, write RESULTS.md. Exit status 1 when a measurement could not be made."""
    options = _options()
    if os.geteuid() != 0:
        print("bench: root is needed, since each measurement runs in a lab", file=sys.stderr)
        return 1
    parts = [HEAD, "\n".join(f"* {name}: {value}" for name, value in machine.facts())]
    sections = [plan_time.measure()]
    print(f"{sections[0].markdown()}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for run in _runs(Path(folder), options.rounds):
            section = _measure(run, options.idle_seconds)
            sections.append(section)
            print(f"{section.markdown()}\n", flush=True)
    sections.append(boot_time.measure(max(2, options.rounds // 6)))
    print(f"{sections[-1].markdown()}\n", flush=True)
    parts += ["## Goals", goals_table([goal for section in sections for goal in section.goals])]
    parts += [section.markdown() for section in sections]
    parts += _emulator()
    options.output.write_text("\n\n".join(parts) + "\n")
    print(f"written: {options.output.name}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="of the cheapest subject (default: 30)")
    parser.add_argument(
        "--idle-seconds", type=float, default=60.0, help="watching the idle daemon (default: 60)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: bench/RESULTS.md")
    return parser.parse_args()


def _runs(folder: Path, rounds: int) -> Iterator[Run]:
    few = max(2, rounds // 4)  # of twenty starts each
    yield Run("status_time", hosts.REDBOOK, rounds)
    yield Run("queues_time", hosts.REDBOOK, few)
    yield Run("queues_time", hosts.FULL, few)
    yield Run("start_time", hosts.medium(folder), few)
    yield Run("start_time", hosts.FULL, max(2, few // 2))
    yield Run("apply_time", hosts.FULL, max(2, few // 2))
    yield Run("guest_time", hosts.REDBOOK, few)
    yield Run("idle", hosts.REDBOOK, 1)


def _measure(run: Run, idle_seconds: float) -> Section:
    lab = [str(Path(sys.executable).with_name("vfioap-lab")), "run", run.host.file, "--"]
    inside = [sys.executable, "-m", "bench.inside", run.subject, "--rounds", str(run.rounds)]
    inside += ["--idle-seconds", str(idle_seconds), "--host-words", run.host.words]
    done = subprocess.run(
        [*lab, *inside], cwd=FOLDER.parent, env=_environment(), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"bench: {run.subject} on {run.host.words} ended with {done.returncode}")
    return decode_section(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    """As an installed package has it, with compiled bytecode; an editable install compiles at first use."""
    hindrances = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if name not in hindrances}


def _emulator() -> list[str]:
    """The emulator's own measurement; it needs no lab and prints its section itself."""
    module = [sys.executable, "-m", "bench.emulator"]
    done = subprocess.run(module, cwd=FOLDER.parent, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    return [done.stdout.strip()] if done.returncode == 0 else []


if __name__ == "__main__":
    sys.exit(main())
