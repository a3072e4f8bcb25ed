# SPDX-License-Identifier: Apache-2.0
"""Recorded sessions of the real kernel: every operation of each agrees, through both faces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import ORACLE, TRACES

from vfioapd.emulator.generation import GENERATIONS
from vfioapd.emulator.replay import main, replay

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not TRACES, reason=f"recorded sessions not found at {ORACLE}")


def _name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("trace", TRACES, ids=_name)
def test_the_emulator_does_what_the_kernel_did(trace: Path) -> None:
    outcome = replay(trace)
    assert outcome.operations > 0
    assert not outcome.differences, "\n".join(map(str, outcome.differences[:3]))


def test_all_three_kernels_were_replayed() -> None:
    assert {path.parent.name for path in TRACES} == set(GENERATIONS)


def _changed_copy(tmp_path: Path, change: dict[str, object]) -> Path:
    """A copy of a session in which the fourth operation ended otherwise."""
    lines = (ORACLE / "7.3" / "s03-masks-novfio.jsonl").read_text().splitlines()
    lines[4] = json.dumps(json.loads(lines[4]) | change)
    path = tmp_path / "changed.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    "change",
    [{"errno": 22}, {"ret": 4}, {"changed": {}}, {"uevents": []}],
    ids=lambda change: next(iter(change)),
)
def test_a_replay_notices_every_sort_of_difference(tmp_path: Path, change: dict[str, object]) -> None:
    outcome = replay(_changed_copy(tmp_path, change))
    assert outcome.agreed == outcome.operations - 1
    assert outcome.differences[0].seq == 4


def test_a_replay_says_how_much_agreed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(_changed_copy(tmp_path, {"errno": 22}))]) == 1
    said = capsys.readouterr().out
    assert "agree 27 of 28" in said
    assert "kernel:   22" in said
    assert main([str(ORACLE / "7.3" / "s14-bootparams.jsonl")]) == 0
    assert "in all: agree 13 of 13" in capsys.readouterr().out


def test_another_generation_does_not_agree() -> None:
    outcome = replay(ORACLE / "7.3" / "s19-driver_override.jsonl", kernel="6.12")
    assert outcome.differences


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "no.jsonl"
    path.write_text('{"op": "note"}\n')
    assert main([str(path)]) == 2
    assert "cannot be replayed" in capsys.readouterr().err


@pytest.mark.lab
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("kernel", tuple(GENERATIONS))
def test_the_mounted_tree_does_what_the_kernel_did(kernel: str) -> None:
    traces = [str(path) for path in TRACES if path.parent.name == kernel]
    command = [sys.executable, "-m", "vfioapd.emulator.replay", "--fuse", *traces]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    agreed, total = done.stdout.rsplit("agree ", 1)[1].split(" of ")
    assert int(agreed) == int(total) > 1000
