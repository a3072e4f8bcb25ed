# SPDX-License-Identifier: Apache-2.0
"""The in-process face: attribute access by path relative to /sys, errors as the kernel's."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .numbers import refuse
from .tree import Link

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .kernel import Kernel


class Sysfs:
    """Files of the emulated kernel. Paths have no leading slash, as in `bus/ap/apmask`."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def read(self, path: str) -> str:
        """Text of an attribute. EACCES, ENOENT, and what the driver gives."""
        with self._kernel.lock:
            return self._kernel.show(*self._kernel.open_path(path, read=True, write=False)).decode()

    def write(self, path: str, value: str) -> None:
        """One write(2) of exactly `value`. Blocks where the kernel blocks."""
        self.write_bytes(path, value.encode())

    def write_each(self, writes: Sequence[tuple[str, str]]) -> Iterator[None]:
        """Writes in turn; each is made when it is asked for."""
        for path, value in writes:
            self.write(path, value)
            yield

    def write_bytes(self, path: str, data: bytes) -> int:
        """One write(2): the number of bytes taken."""
        return self._kernel.write_file(*self._kernel.open_path(path, read=False, write=True), data)

    def names(self, directory: str) -> list[str]:
        """Names in a directory, sorted. ENOENT, ENOTDIR."""
        return sorted(name for name, _ in self._kernel.entries(self._real(directory)))

    def readlink(self, path: str) -> str:
        """Target of a link as it is stored. ENOENT; EINVAL if it is no link."""
        parent, _, name = path.rpartition("/")
        node = self._kernel.lookup(f"{self._real(parent)}/{name}")
        if not isinstance(node, Link):
            raise refuse(errno.EINVAL)
        return node.target

    def _real(self, path: str) -> str:
        with self._kernel.lock:
            return self._kernel.tree.walk(path)[0]
