# SPDX-License-Identifier: Apache-2.0
"""What every folder of tests that run in labs has in common."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vfioapd.lab.harness import Lab

DAEMON_LOG = "/run/vfioapd.log"
DAEMON_PID = "/run/vfioapd.pid"
# May stand amid a longer script, as START_DAEMON may.
DAEMON_ANSWERS = "timeout 30 sh -c 'until vfioapctl status >/dev/null 2>&1; do sleep 0.05; done'"


def start_script(options: str = "") -> str:
    """Starts it where no systemd does, and goes on when it answers."""
    return f"""
        setsid vfioapd {options} 2>>{DAEMON_LOG} </dev/null >/dev/null & echo $! > {DAEMON_PID}
        {DAEMON_ANSWERS}
    """


START_DAEMON = start_script()


def mark_as_lab(items: list[pytest.Item], folder: Path) -> None:
    """Every test in the folder needs a lab."""
    for item in items:
        if folder in item.path.parents:
            item.add_marker(pytest.mark.lab)


def skip_without_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("labs need root")


def wait(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Wait for what sends no event; fail by name when it has not come in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain until {what}"
        time.sleep(0.05)


def start_daemon(lab: Lab, options: str = "") -> None:
    lab.shell(start_script(options))


def kill_daemon(lab: Lab, pid: str = f"cat {DAEMON_PID}") -> None:
    """With SIGKILL, and until it has gone; `pid` prints which process it is."""
    lab.shell(f"p=$({pid}); kill -9 $p; while [ -d /proc/$p ]; do sleep 0.01; done")


def signal_daemon(lab: Lab, number: int) -> None:
    lab.shell(f"kill -{number} $(cat {DAEMON_PID})")
