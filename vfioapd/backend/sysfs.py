# SPDX-License-Identifier: Apache-2.0
"""The seam between vfioapd and a kernel: attribute I/O relative to /sys, and nothing else.

The real host and the emulated kernel differ only below it.
"""

from __future__ import annotations

import os
from typing import Protocol


class Sysfs(Protocol):
    """Attribute I/O, relative to /sys. Failures are OSError with the kernel's errno."""

    def read(self, path: str) -> str:
        """The whole text of an attribute."""

    def write(self, path: str, value: str) -> None:
        """One write of exactly this text. Blocks until the kernel has done what it asks for."""

    def names(self, directory: str) -> list[str]:
        """The names in a directory, sorted."""

    def readlink(self, path: str) -> str:
        """The target of a link, as stored."""


class HostSysfs:
    """The kernel's own sysfs."""

    def __init__(self, root: str = "/sys") -> None:
        self._root = root

    def read(self, path: str) -> str:
        """The whole text of an attribute; a page at most (fs/sysfs/file.c)."""
        fd = os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 65536).decode("ascii")
        finally:
            os.close(fd)

    def write(self, path: str, value: str) -> None:
        """One write(2), unbuffered: the kernel parses the buffer of a single call."""
        fd = os.open(f"{self._root}/{path}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode("ascii"))
        finally:
            os.close(fd)

    def names(self, directory: str) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(os.listdir(f"{self._root}/{directory}"))

    def readlink(self, path: str) -> str:
        """The target of a link, as stored."""
        return os.readlink(f"{self._root}/{path}")
