# SPDX-License-Identifier: Apache-2.0
"""Writes by the helper process: in turn, up to the first that fails, in time, and never behind our back.

Files in a folder stand for the kernel's attributes; a FIFO that nobody reads hangs, as the kernel may.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from vfioapd.backend.guarded_sysfs import GuardedSysfs
from vfioapd.domain.problems import Problem, VfioApError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vfioapd.backend.sysfs import Write


@pytest.fixture
def sysfs(tmp_path: Path) -> Iterator[GuardedSysfs]:
    for name in ("one", "two", "three"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "hangs")
    guarded = GuardedSysfs(str(tmp_path), patience=0.5)
    yield guarded
    guarded.close()


def made(sysfs: GuardedSysfs, writes: Sequence[Write]) -> tuple[int, Exception | None]:
    count = 0
    try:
        for _ in sysfs.write_each(writes):
            count += 1
    except (OSError, VfioApError) as error:
        return count, error
    return count, None


def helper_of(sysfs: GuardedSysfs) -> int:
    assert sysfs._helper is not None
    return sysfs._helper.pid


def test_writes_are_made_in_turn_and_each_is_told(sysfs: GuardedSysfs, tmp_path: Path) -> None:
    assert made(sysfs, [("one", "1\n"), ("two", "2\n"), ("three", "3\n")]) == (3, None)
    assert [(tmp_path / name).read_text() for name in ("one", "two", "three")] == ["1\n", "2\n", "3\n"]


def test_nothing_is_written_after_a_write_that_failed_and_its_errno_is_told(
    sysfs: GuardedSysfs, tmp_path: Path
) -> None:
    count, error = made(sysfs, [("one", "1\n"), ("absent", "2\n"), ("three", "3\n")])
    assert count == 1
    assert isinstance(error, OSError)
    assert (error.errno, error.filename) == (errno.ENOENT, f"{tmp_path}/absent")
    assert (tmp_path / "three").read_text() == ""
    sysfs.write("three", "4\n")  # and the answers are still those to the questions
    assert (tmp_path / "three").read_text() == "4\n"


def test_a_write_that_hangs_is_left_behind_and_what_was_to_follow_is_never_made(
    sysfs: GuardedSysfs, tmp_path: Path
) -> None:
    sysfs.write("one", "0\n")
    left = helper_of(sysfs)
    count, error = made(sysfs, [("one", "1\n"), ("hangs", "2\n"), ("three", "3\n")])
    assert count == 1
    assert isinstance(error, VfioApError)
    assert error.problem is Problem.WRITE_HANGS
    assert f"{tmp_path}/hangs" in str(error)
    sysfs.write("two", "4\n")
    assert helper_of(sysfs) != left
    assert (tmp_path / "three").read_text() == ""


def test_a_helper_that_was_killed_is_told_and_the_next_write_has_another(
    sysfs: GuardedSysfs, tmp_path: Path
) -> None:
    sysfs.write("one", "0\n")
    os.kill(helper_of(sysfs), signal.SIGKILL)
    count, error = made(sysfs, [("one", "1\n"), ("two", "2\n")])
    assert count == 0
    assert "the process that writes" in str(error)
    assert (tmp_path / "two").read_text() == ""
    assert made(sysfs, [("one", "1\n"), ("two", "2\n")]) == (2, None)


DAEMON = """
import sys
from vfioapd.backend.guarded_sysfs import GuardedSysfs
sysfs = GuardedSysfs(sys.argv[1])
sysfs.write("one", "0\\n")
print(sysfs._helper.pid, flush=True)
list(sysfs.write_each([("slow", "1" * 100_000), ("after", "2\\n")]))
"""


def test_when_the_daemon_is_killed_the_helper_makes_no_write_but_the_one_it_is_in(tmp_path: Path) -> None:
    for name in ("one", "after"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "slow")
    slow = os.open(tmp_path / "slow", os.O_RDONLY | os.O_NONBLOCK)
    with subprocess.Popen([sys.executable, "-c", DAEMON, tmp_path], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        helper = os.pidfd_open(int(daemon.stdout.readline()))
        assert select.select([slow], [], [], 10)[0]
        daemon.kill()  # while the helper is in a write larger than a FIFO takes at once
    os.set_blocking(slow, True)
    with open(slow) as text:
        assert len(text.read()) == 100_000
    assert select.select([helper], [], [], 10)[0], "the helper has not ended"
    os.close(helper)
    assert (tmp_path / "after").read_text() == ""
