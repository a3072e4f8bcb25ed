# SPDX-License-Identifier: Apache-2.0
"""Random operations: the invariants hold, and both faces agree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from agreement import in_process_only, run

HERE = Path(__file__).parent


def test_no_operation_breaks_an_invariant() -> None:
    run(in_process_only)


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_both_faces_agree_on_random_operations() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"}
    done = subprocess.run(
        [sys.executable, str(HERE / "agreement.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
