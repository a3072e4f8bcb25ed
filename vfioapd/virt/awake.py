# SPDX-License-Identifier: Apache-2.0
"""Which libvirt daemon has the guests, and whether it runs already, told without waking it.

A connection to its socket makes systemd start it, and at boot that start waits for vfioapd-ready.target,
which waits for us: whoever connects before then waits for himself.
"""

from __future__ import annotations

import os
from pathlib import Path

# Monolithic and modular; the names that libvirt's own daemons give their PID files.
DAEMONS = ("libvirtd", "virtqemud")
FOLDERS = ("usr/local/sbin", "usr/sbin", "usr/bin", "sbin")


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


def libvirt_to_start(root: Path = Path("/")) -> str | None:
    """The daemon that this host is set up with: the one that is enabled, else one that is installed. Where
    both are installed (RHEL 9), a start of the wrong one ends the other, as their units conflict."""
    tests = (_is_enabled, _is_installed)
    return next((name for test in tests for name in DAEMONS if test(root, name)), None)


def _is_enabled(root: Path, name: str) -> bool:
    """By itself or by its socket; a link that leads nowhere is one, too: its unit may be on another root."""
    units = root / "etc/systemd/system"
    links = (f"multi-user.target.wants/{name}.service", f"sockets.target.wants/{name}.socket")
    return any((units / link).is_symlink() for link in links)


def _is_installed(root: Path, name: str) -> bool:
    return any(os.access(root / folder / name, os.X_OK) for folder in FOLDERS)


def _pid(pid_file: Path, name: str, proc: Path) -> int | None:
    try:
        pid = int(pid_file.read_text())
        return pid if (proc / str(pid) / "comm").read_text().strip() == name else None
    except (OSError, ValueError):
        return None
