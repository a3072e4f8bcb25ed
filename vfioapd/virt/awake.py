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
    return any(_lives(run / f"{name}.pid", name, proc) for name in DAEMONS)


def _lives(pid_file: Path, name: str, proc: Path) -> bool:
    try:
        pid = int(pid_file.read_text())
        return (proc / str(pid) / "comm").read_text().strip() == name
    except (OSError, ValueError):
        return False
