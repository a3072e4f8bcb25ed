# SPDX-License-Identifier: Apache-2.0
"""The seam between vfioapd and a kernel: attribute I/O relative to /sys, and nothing else.

The real host and the emulated kernel differ only below it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Write = tuple[str, str]  # the path and the text of one write


class Sysfs(Protocol):
    """Attribute I/O, relative to /sys. Failures are OSError with the kernel's errno."""

    def read(self, path: str) -> str:
        """The whole text of an attribute."""

    def write(self, path: str, value: str) -> None:
        """One write of exactly this text. Blocks until the kernel has done what it asks for."""

    def write_each(self, writes: Sequence[Write]) -> Iterator[None]:
        """Writes in turn, up to the first that fails, which is raised. Yields once for each that was made,
        and may be further than that already."""

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

    def write_each(self, writes: Sequence[Write]) -> Iterator[None]:
        """Writes in turn; each is made when it is asked for."""
        for path, value in writes:
            self.write(path, value)
            yield

    def names(self, directory: str) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(os.listdir(f"{self._root}/{directory}"))

    def readlink(self, path: str) -> str:
        """The target of a link, as stored."""
        return os.readlink(f"{self._root}/{path}")
