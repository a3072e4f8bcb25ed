# SPDX-License-Identifier: Apache-2.0
"""What ``make demo`` shows is what happens."""

from __future__ import annotations

import subprocess
import sys


def test_the_demo_plays_to_its_end() -> None:
    """It looks for what it tells in the output of every command, and ends at the first that is otherwise."""
    lab = [sys.executable, "-m", "vfioapd.lab.main", "run", "rdbkvm4", "--"]
    played = subprocess.run(
        [*lab, sys.executable, "-m", "vfioapd.lab.demo"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert played.returncode == 0, played.stderr or played.stdout
    assert "What you have seen" in played.stdout
