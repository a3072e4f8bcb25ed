# SPDX-License-Identifier: Apache-2.0
"""s390-tools' lock by s390-tools' rules: taken by link, named by PID, cleared when its owner is dead."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING

import pytest

from vfioapd.backend import lock
from vfioapd.backend.lock import EMPTY_IS_STALE, ap_lock
from vfioapd.domain.problems import Problem, Unavailable

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock" / "s390apconfig.lock"


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def put(path: Path, text: str, *, age: float = 0) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


def names(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent))


def test_the_lock_holds_our_pid_and_a_line_end_and_is_gone_afterwards(path: Path) -> None:
    with ap_lock(path):
        assert path.read_bytes() == b"%d\n" % os.getpid()
        assert path.stat().st_mode & 0o777 == 0o644
        assert names(path) == [path.name], "no temporary file is left beside it"
    assert names(path) == []


def test_the_lock_is_readable_by_others_whatever_the_umask(path: Path) -> None:
    old = os.umask(0o077)
    try:
        with ap_lock(path):
            assert path.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(old)


def test_the_lock_is_released_when_the_work_fails(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ap_lock(path):
        raise ZeroDivisionError
    assert names(path) == []


@pytest.mark.parametrize("text", ["{dead}\n", "{dead}", "  {dead} \n"])
def test_a_dead_owner_is_cleared_at_once(path: Path, dead_pid: int, text: str) -> None:
    put(path, text.format(dead=dead_pid))
    with ap_lock(path, patience=0):
        assert path.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("text", ["99999999999999999999\n", "4194305\n"])
def test_a_number_that_no_process_can_have_is_a_dead_owner(path: Path, text: str) -> None:
    put(path, text)
    with ap_lock(path, patience=0):
        pass


def test_a_living_owner_is_waited_for_with_bounded_patience_and_named(path: Path) -> None:
    put(path, f"{os.getppid()}\n", age=1000)
    begun = time.monotonic()
    with pytest.raises(Unavailable) as error, ap_lock(path, patience=0.08):
        pass
    assert 0.08 <= time.monotonic() - begun < 2
    with open(f"/proc/{os.getppid()}/comm") as comm:
        name = comm.read().strip()
    assert error.value.problem is Problem.LOCK_HELD
    assert error.value.owners == (f"{name} (PID {os.getppid()})",)
    assert str(path) in str(error.value)
    assert path.read_text() == f"{os.getppid()}\n"
    assert names(path) == [path.name]


def test_a_lock_released_meanwhile_is_taken(path: Path) -> None:
    put(path, f"{os.getppid()}\n")
    release = threading.Timer(0.04, path.unlink)
    release.start()
    with ap_lock(path, patience=5):
        assert path.read_text() == f"{os.getpid()}\n"
    release.join()


@pytest.mark.parametrize("text", ["", "\n", "0\n", "-1\n", "chzdev\n"])
def test_a_file_without_a_pid_is_respected_while_it_is_young(path: Path, text: str) -> None:
    put(path, text, age=EMPTY_IS_STALE - 10)
    with pytest.raises(Unavailable), ap_lock(path, patience=0):
        pass
    assert path.read_text() == text


@pytest.mark.parametrize("text", ["", "0\n", "-1\n"])
def test_a_file_without_a_pid_is_stale_after_two_minutes(path: Path, text: str) -> None:
    put(path, text, age=EMPTY_IS_STALE + 1)
    with ap_lock(path, patience=0):
        pass


def test_a_lock_that_was_taken_over_from_us_is_not_released_by_us(path: Path) -> None:
    with ap_lock(path):
        put(path, f"{os.getppid()}\n")
    assert path.read_text() == f"{os.getppid()}\n"


def test_a_temporary_file_left_by_a_killed_namesake_is_no_obstacle(path: Path, monkeypatch: object) -> None:
    path.parent.mkdir()
    now = time.time()
    for offset in range(3):
        stamp = int(now + offset) & 0xFF
        path.with_name(f"{path.name}.{os.getpid():05d}{stamp:02x}").write_text("torn")
    with ap_lock(path, patience=0):
        assert path.read_text() == f"{os.getpid()}\n"


def test_a_folder_that_cannot_be_written_is_named(path: Path) -> None:
    path.parent.write_text("a file where the folder should be")
    with pytest.raises(Unavailable, match=r"s390apconfig\.lock cannot be taken"), ap_lock(path, patience=0):
        pass


def test_clearing_a_dead_owner_never_removes_a_lock_that_somebody_took_meanwhile(
    path: Path, dead_pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two find the dead owner; the slower one must not take the quicker one's fresh lock away."""
    put(path, f"{dead_pid}\n")
    is_alive = lock._is_alive

    def quicker_one_takes_it(pid: int) -> bool:
        alive = is_alive(pid)
        if pid == dead_pid:
            path.unlink(missing_ok=True)
            put(path, f"{os.getppid()}\n")
        return alive

    monkeypatch.setattr(lock, "_is_alive", quicker_one_takes_it)
    with pytest.raises(Unavailable), ap_lock(path, patience=0):
        pass
    assert path.read_text() == f"{os.getppid()}\n"


CONTENDER = textwrap.dedent(
    """
    import os, pathlib, sys
    from vfioapd.backend import lock
    path, room = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    lock.PAUSE = (0.0001, 0.0005)
    for _ in range(40):
        with lock.ap_lock(path, patience=20):
            os.mkdir(room)  # fails when somebody is inside
            os.rmdir(room)
    print("done")
    """
)


def test_processes_never_hold_the_lock_together_even_when_each_finds_a_dead_owner(
    path: Path, dead_pid: int
) -> None:
    put(path, f"{dead_pid}\n")
    command = [sys.executable, "-c", CONTENDER, str(path), str(path.parent / "room")]
    contenders = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(3)
    ]
    while any(one.poll() is None for one in contenders):
        time.sleep(0.002)
        try:  # each death leaves a lock behind; only a file that is not there is replaced
            temporary = path.parent / "dead"
            temporary.write_text(f"{dead_pid}\n")
            os.link(temporary, path)
        except FileExistsError:
            continue
    assert [one.communicate()[0] for one in contenders] == ["done\n"] * 3
