# SPDX-License-Identifier: Apache-2.0
"""Folders watched through inotify(7), three libc calls.

No binding is packaged on RHEL, SLES and Ubuntu alike; see docs/decisions/0005-inotify.md.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# sys/inotify.h
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_CHANGES = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows

_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """Names that change in some folders. inotify does not know which program it was."""

    def __init__(self) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._folders: dict[int, Path] = {}

    def fileno(self) -> int:
        """The descriptor that becomes readable when something changed."""
        return self._fd

    def add(self, folder: Path) -> None:
        """Watch a folder, not what is below its folders. Raises OSError where there is none."""
        self._folders[_checked(_libc.inotify_add_watch(self._fd, os.fsencode(folder), _CHANGES))] = folder

    def read(self) -> list[Path]:
        """The paths that changed since the last call, each once; empty when there are none. Never blocks."""
        found: dict[Path, None] = {}
        while data := self._read_some():
            at = 0
            while at < len(data):
                descriptor, _, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                if descriptor in self._folders and name:
                    found[self._folders[descriptor] / os.fsdecode(name)] = None
        return list(found)

    def close(self) -> None:
        """End all watches."""
        os.close(self._fd)

    def _read_some(self) -> bytes:
        try:
            return os.read(self._fd, 65536)
        except BlockingIOError:
            return b""


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
