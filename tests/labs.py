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
