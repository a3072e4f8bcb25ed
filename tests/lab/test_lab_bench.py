# SPDX-License-Identifier: Apache-2.0
"""The measurements can be made, and each has figures and goals; what they say is not tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench import __main__ as bench
from bench import hosts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("subject", ["status_time", "queues_time", "start_time", "guest_time"])
def test_what_make_bench_measures_on_a_small_host_can_be_measured(tmp_path: Path, subject: str) -> None:
    (run,) = (
        run for run in bench._runs(tmp_path, 2) if run.subject == subject and run.host is not hosts.FULL
    )
    section = bench._measure(run, idle_seconds=1.0)
    assert all(figure.samples for figure in section.figures)
    assert section.goals
