# SPDX-License-Identifier: Apache-2.0
"""Both faces of a kernel behind one set of calls, each telling which system call was refused.

For replay and for comparing the faces; `Mounted` uses nothing but real system calls.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from .tree import File, Kind, Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .kernel import Kernel
    from .tree import Wait

ListEntry = dict[str, object]


def failed_call(error: OSError) -> str:
    """The system call that was refused: `open`, `read` or `write`, if the access had such steps."""
    return "".join(getattr(error, "__notes__", [])[:1])


class Blocked(Exception):
    """A write that did not return. `kill` sends its writer SIGKILL and waits for its end."""

    def __init__(self, kill: Callable[[], None]) -> None:
        super().__init__("the write blocks")
        self.kill = kill


class Face(Protocol):
    def read(self, path: str) -> str: ...

    def write_bytes(self, path: str, data: bytes) -> int: ...

    def names(self, directory: str) -> list[str]: ...

    def entries(self, directory: str) -> list[ListEntry]: ...

    def readlink(self, path: str) -> str: ...


@contextmanager
def _at(call: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.add_note(call)
        raise


class InProcess:
    """Calls into the kernel object."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def read(self, path: str) -> str:
        call = "open"
        try:
            with self._kernel.lock:
                real, opened = self._kernel.open_path(path, read=True, write=False)
                call = "read"
                return self._kernel.show(real, opened).decode()
        except OSError as error:
            error.add_note(call)
            raise

    def write_bytes(self, path: str, data: bytes) -> int:
        with _at("open"):
            real, opened = self._kernel.open_path(path, read=False, write=True)
        with _at("write"):
            written, wait = self._kernel.begin_write(real, opened, data)
        if wait is not None:
            self._block(wait)
        return written

    def _block(self, wait: Wait) -> None:
        """Let a thread of its own sleep as the writer, and tell that it does."""
        killed = threading.Event()

        def sleep() -> None:
            with contextlib.suppress(OSError):
                self._kernel.sleep(wait, killed.is_set)

        asleep = self._kernel.sleepers + 1
        thread = threading.Thread(target=sleep, daemon=True)
        thread.start()
        while thread.is_alive() and self._kernel.sleepers < asleep:
            thread.join(0.001)

        def kill() -> None:
            killed.set()
            thread.join()

        raise Blocked(kill)

    def names(self, directory: str) -> list[str]:
        return self._kernel.sysfs.names(directory)

    def entries(self, directory: str) -> list[ListEntry]:
        real = self._real(directory)
        return [
            _describe_node(self._kernel, f"{real}/{name}", name) for name in self._kernel.sysfs.names(real)
        ]

    def readlink(self, path: str) -> str:
        return self._kernel.sysfs.readlink(path)

    def _real(self, path: str) -> str:
        with self._kernel.lock:
            return self._kernel.tree.walk(path)[0]


def _describe_node(kernel: Kernel, path: str, name: str) -> ListEntry:
    node = kernel.lookup(path)
    if isinstance(node, Link):
        return {"name": name, "mode": "0777", "type": "link", "target": node.target}
    if isinstance(node, File):
        entry: ListEntry = {"name": name, "mode": f"{node.mode:04o}", "type": node.kind.value}
        return entry | ({"size": 4096} if node.kind is Kind.FILE else {})
    return {"name": name, "mode": "0755", "type": "dir"}


class Mounted:
    """Real system calls on a mounted tree."""

    def __init__(self, mountpoint: Path) -> None:
        self._root = mountpoint

    def read(self, path: str) -> str:
        with _at("open"):
            file = os.open(self._root / path, os.O_RDONLY)
        try:
            with _at("read"):
                return os.read(file, 8192).decode()
        finally:
            os.close(file)

    def write_bytes(self, path: str, data: bytes) -> int:
        with _at("open"):
            file = os.open(self._root / path, os.O_WRONLY)
        try:
            with _at("write"):
                return os.write(file, data)
        finally:
            os.close(file)

    def write_expecting_block(self, path: str, data: bytes) -> None:
        """A write by a process that can be killed. Raises Blocked, or returns when it did not block."""
        writer = subprocess.Popen(["dd", f"of={self._root / path}", "conv=notrunc", "status=none"], stdin=-1)
        assert writer.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            writer.stdin.write(data)
            writer.stdin.close()

        def kill() -> None:
            writer.kill()
            writer.wait()

        try:
            writer.wait(1.0)
        except subprocess.TimeoutExpired:
            raise Blocked(kill) from None

    def names(self, directory: str) -> list[str]:
        return sorted(os.listdir(self._root / directory))

    def entries(self, directory: str) -> list[ListEntry]:
        with os.scandir(self._root / directory) as found:
            return [self._describe(entry) for entry in sorted(found, key=lambda entry: entry.name)]

    def readlink(self, path: str) -> str:
        return os.readlink(self._root / path)

    def _describe(self, entry: os.DirEntry[str]) -> ListEntry:
        status = entry.stat(follow_symlinks=False)
        described: ListEntry = {"name": entry.name, "mode": f"{stat.S_IMODE(status.st_mode):04o}"}
        if entry.is_symlink():
            return described | {"type": "link", "target": os.readlink(entry.path)}
        if entry.is_dir(follow_symlinks=False):
            return described | {"type": "dir"}
        if entry.is_file(follow_symlinks=False) and not entry.path.startswith(f"{self._root}/dev/"):
            return described | {"type": "file", "size": status.st_size}
        return described | {"type": "other"}
