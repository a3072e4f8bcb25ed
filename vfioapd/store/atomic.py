# SPDX-License-Identifier: Apache-2.0
"""Files that are either the old text or the new, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path

NEW_FILE_MODE = 0o644


def replace(path: Path, text: str | None, *, via: Path | None = None) -> None:
    """Make the file hold ``text``, durably, by one rename; ``None`` is no file at all.

    The temporary file stands in ``via``, or beside the file; both must be on one file system. ``via`` is
    for folders that others watch: mdevctl complains of every name there that is not a UUID. A file that
    is replaced keeps its mode and owner, a new one is 0644; a link is followed. Missing folders are made.

    Blocks for the fsync of file and folder. Not for two writers of one path at a time: the name of the
    temporary file is fixed, so that a killed writer leaves at most one behind and the next one reuses
    it. Raises OSError; then the old file stands and the temporary one is gone.
    """
    if text is None:
        _remove(path)
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = (via or target.parent) / f".{target.name}.new"
    temporary.unlink(missing_ok=True)
    try:
        _write(temporary, text, like=target)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def read(path: Path) -> str | None:
    """The file's text with its line ends untouched; None when there is no file. Raises OSError.

    Bytes that are not UTF-8 come as lone surrogates, and ``replace`` writes them back as they were: a
    file of somebody else must be readable, comparable and restorable whatever is in it.
    """
    try:
        return path.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        return None


def _write(temporary: Path, text: str, *, like: Path) -> None:
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        _copy_owner_and_mode(like, descriptor)
        file.write(text.encode(errors="surrogateescape"))
        file.flush()
        # Without this a crash may leave the new name with no content: the rename can reach the disk first.
        os.fsync(descriptor)


def _copy_owner_and_mode(like: Path, descriptor: int) -> None:
    try:
        old = like.stat()
    except FileNotFoundError:
        os.fchmod(descriptor, NEW_FILE_MODE)  # the umask of a service must not decide who reads /etc
        return
    os.fchown(descriptor, old.st_uid, old.st_gid)  # before the mode, since it clears the set-id bits
    os.fchmod(descriptor, old.st_mode & 0o7777)


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        return
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
