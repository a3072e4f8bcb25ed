# SPDX-License-Identifier: Apache-2.0
"""Whether a libvirt daemon runs already, told without waking it.

A connection to its socket makes systemd start it, and at boot that start waits for vfioapd-ready.target,
which waits for us: whoever connects before then waits for himself.
"""

from __future__ import annotations

from pathlib import Path

# Monolithic and modular; the names that libvirt's own daemons give their PID files.
DAEMONS = ("libvirtd", "virtqemud")


def libvirt_runs(run: Path = Path("/run"), proc: Path = Path("/proc")) -> bool:
    """True when a PID file names a living daemon; one that was killed leaves its file behind."""
    return running_libvirt(run, proc) is not None


def running_libvirt(run: Path = Path("/run"), proc: Path = Path("/proc")) -> tuple[str, int] | None:
    """The daemon that runs, and its PID."""
    for name in DAEMONS:
        pid = _pid(run / f"{name}.pid", name, proc)
        if pid is not None:
            return name, pid
    return None


def _pid(pid_file: Path, name: str, proc: Path) -> int | None:
    try:
        pid = int(pid_file.read_text())
        return pid if (proc / str(pid) / "comm").read_text().strip() == name else None
    except (OSError, ValueError):
        return None
