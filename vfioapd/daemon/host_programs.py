# SPDX-License-Identifier: Apache-2.0
"""What other programs of the host say of themselves: systemd of its units, mdevctl, and who runs here."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from typing import TYPE_CHECKING

from vfioapd.plan.doctor_facts import UnitFacts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

SECONDS = 5.0  # for each program; a systemd that hangs must not take the answer with it
PROPERTIES = (
    "LoadState",
    "UnitFileState",
    "ActiveState",
    "NeedDaemonReload",
    "After",
    "StateChangeTimestampMonotonic",
    "ReloadResult",
)
# Programs that remove mediated devices which are not in a list of theirs, by /proc/PID/comm.
SWEEPERS = {"virt-handler": "KubeVirt's virt-handler"}


def read_units(root: Path, names: Sequence[str]) -> dict[str, UnitFacts] | None:
    """What systemd says of these units; None where the host does not run under systemd. Blocks."""
    if not (root / "run/systemd/system").is_dir():
        return None
    answer = _run(["systemctl", "show", "--no-pager", f"--property={','.join(PROPERTIES)}", *names])
    if answer.returncode:
        raise OSError(f"systemctl show failed: {answer.stderr.strip()}")
    blocks = answer.stdout.strip("\n").split("\n\n")
    return {name: parse_unit(block) for name, block in zip(names, blocks, strict=True)}


def parse_unit(block: str) -> UnitFacts:
    """One unit's properties, as systemctl show prints them."""
    values = dict(line.partition("=")[::2] for line in block.splitlines())
    # A reload that failed has changed the state, too; then only the start of the process is certain.
    failed = values.get("ReloadResult", "success") != "success"
    moment = 0 if failed else int(values["StateChangeTimestampMonotonic"] or 0)
    return UnitFacts(
        load=values["LoadState"],
        file=values["UnitFileState"],
        active=values["ActiveState"],
        stale=values["NeedDaemonReload"] == "yes",
        after=frozenset(values["After"].split()),
        changed=_epoch(moment / 1e6, time.CLOCK_MONOTONIC),
    )


def complaint_of(program: Path) -> str | None:
    """What a program says instead of its version; None when it runs. Blocks."""
    try:
        answer = _run([str(program), "--version"])
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = (answer.stderr or answer.stdout).strip().splitlines()
    return (lines or [f"exit status {answer.returncode}"])[0] if answer.returncode else None


def running_sweepers(proc: Path) -> tuple[str, ...]:
    """Programs that may remove devices of others."""
    found = []
    for path in proc.glob("[0-9]*/comm"):
        try:
            name = path.read_text().strip()
        except OSError:  # it has ended
            continue
        if name in SWEEPERS:
            found.append(f"{SWEEPERS[name]} (PID {path.parent.name})")
    return tuple(sorted(found))


def started_at(proc: Path, pid: int) -> float | None:
    """When a process was started, in seconds since the epoch (proc(5), the 22nd field of stat)."""
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return _epoch(int(fields[19]) / os.sysconf("SC_CLK_TCK"), time.CLOCK_BOOTTIME)
    except (OSError, ValueError, IndexError):
        return None


def _epoch(seconds: float, clock: int) -> float:
    return time.time() - time.clock_gettime(clock) + seconds


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
    )
