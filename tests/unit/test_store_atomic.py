# SPDX-License-Identifier: Apache-2.0
"""A file is either the old text or the new, and nothing is left lying about."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from vfioapd.store import atomic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def full_disk() -> Iterator[None]:
    """Files may grow to 4096 bytes: a real error of the kernel (EFBIG) in the middle of a write.

    For the call alone: pytest's own output may be a file that is longer by now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_new_file_is_readable_by_all_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "host.toml"
    umask = os.umask(0o077)
    try:
        atomic.replace(path, "größer\r\n")
    finally:
        os.umask(umask)

    assert path.stat().st_mode & 0o7777 == 0o644
    assert atomic.read(path) == "größer\r\n"
    assert names(path.parent) == ["host.toml"]


def test_a_replaced_file_keeps_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_text("old")
    owner = (12345, 54321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)
    path.chmod(0o640)

    atomic.replace(path, "new")

    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o7777 == 0o640
    assert (path.stat().st_uid, path.stat().st_gid) == owner


def test_none_is_no_file_and_may_be_asked_for_twice(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    atomic.replace(path, "text")

    atomic.replace(path, None)
    atomic.replace(path, None)

    assert names(tmp_path) == []
    assert atomic.read(path) is None


def test_the_temporary_file_stands_in_the_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "matrix"
    folder.mkdir()
    seen: list[tuple[list[str], list[str]]] = []
    fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.append((names(tmp_path), names(folder)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    atomic.replace(folder / "uuid", "text", via=tmp_path)

    # Synced twice: the text under its temporary name, then the folder with the final one.
    assert seen == [([".uuid.new", "matrix"], []), (["matrix"], ["uuid"])]


def test_a_disk_that_fills_up_leaves_the_old_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    atomic.replace(path, "old")

    with full_disk(), pytest.raises(OSError, match="File too large") as error:
        atomic.replace(path, "x" * 10_000)

    assert error.value.errno == errno.EFBIG
    assert path.read_text() == "old"
    assert names(tmp_path) == ["host.toml"]


@pytest.mark.parametrize("call", ["fsync", "fchmod", "fchown"])
def test_any_error_leaves_the_old_text_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "host.toml"
    atomic.replace(path, "old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output error"):
        atomic.replace(path, "new")

    assert path.read_text() == "old"
    assert names(tmp_path) == ["host.toml"]


def test_a_folder_in_the_way_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "host.toml" / "inside").mkdir(parents=True)

    with pytest.raises(IsADirectoryError):
        atomic.replace(tmp_path / "host.toml", "new")

    assert names(tmp_path) == ["host.toml"]


def test_what_a_killed_writer_left_is_used_up_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    program = (
        "import os, signal, sys, pathlib\n"
        "from vfioapd.store import atomic\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic.replace(pathlib.Path(sys.argv[1]), 'half')\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".host.toml.new"]

    atomic.replace(path, "whole")

    assert names(tmp_path) == ["host.toml"]
    assert path.read_text() == "whole"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "git").mkdir()
    (tmp_path / "git" / "real.toml").write_text("old")
    link = tmp_path / "host.toml"
    link.symlink_to("git/real.toml")

    atomic.replace(link, "new")

    assert link.is_symlink()
    assert (tmp_path / "git" / "real.toml").read_text() == "new"
    assert names(tmp_path / "git") == ["real.toml"]
