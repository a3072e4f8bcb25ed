# SPDX-License-Identifier: Apache-2.0
"""The mounted face: the emulated kernel's files for real tools, by the FUSE protocol itself.

Spoken directly to /dev/fuse: it takes a fifth of the time that a path-based library needs, and a writer
that blocks costs nothing but its own thread. Names may stay in the kernel's cache, since every other
request about them is answered from the live tree; contents and attributes are never cached.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from . import fuse_protocol as protocol
from .fuse_protocol import Header, Op
from .numbers import refuse
from .tree import File, Kind, Link

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .kernel import Kernel
    from .tree import Node

NAMES_VALID = 3600  # seconds for which the kernel may keep a name

_TYPES = {
    Kind.DIRECTORY: stat.S_IFDIR | 0o755,
    Kind.LINK: stat.S_IFLNK | 0o777,
    Kind.FILE: stat.S_IFREG,
    # Opening a real device node would never reach us, and libvirt tries whether a group is in use.
    Kind.DEVICE: stat.S_IFREG,
}


class NoAnswer(Exception):
    """The request gets no answer, now or ever."""


@dataclass(slots=True)
class _Handle:
    path: str
    file: File
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class _Listing:
    """A directory as readdir gives it, and where each of its entries ends."""

    content: bytes
    ends: tuple[int, ...]

    def part(self, offset: int, size: int) -> bytes:
        """What fits, without cutting an entry."""
        last = bisect_right(self.ends, offset + size) - 1
        return self.content[offset : self.ends[last]] if last >= 0 else b""


@dataclass(slots=True)
class _Name:
    """A path that the kernel knows by number, and how often it was told so."""

    path: str
    nodeid: int
    lookups: int = 0


class Names:
    """Numbers for paths. A number stays with its path while the kernel knows it."""

    def __init__(self) -> None:
        root = _Name("", protocol.ROOT_ID, 1)
        self._by_id = {root.nodeid: root}
        self._by_path = {root.path: root}
        self._next = protocol.ROOT_ID + 1

    def path(self, nodeid: int) -> str:
        name = self._by_id.get(nodeid)
        if name is None:
            raise refuse(errno.ESTALE)
        return name.path

    def looked_up(self, path: str) -> int:
        name = self._by_path.get(path)
        if name is None:
            name = _Name(path, self._next)
            self._next += 1
            self._by_path[path] = self._by_id[name.nodeid] = name
        name.lookups += 1
        return name.nodeid

    def forget(self, nodeid: int, lookups: int) -> None:
        name = self._by_id.get(nodeid)
        if name is None or nodeid == protocol.ROOT_ID:
            return
        name.lookups -= lookups
        if name.lookups <= 0:
            del self._by_id[nodeid], self._by_path[name.path]


class Server:
    """Answers one FUSE connection. `answer` runs in one thread; blocked writers have their own."""

    def __init__(self, kernel: Kernel, device: int, started: threading.Event) -> None:
        self._kernel = kernel
        self._device = device
        self._started = started
        self._names = Names()
        self._handles: dict[int, _Handle] = {}
        self._listings: dict[int, _Listing] = {}
        self._next_handle = 1
        self._since = int(time.time())
        self._waiting: dict[int, threading.Event] = {}  # interrupt of each blocked write
        self._requests: dict[int, Callable[[Header, memoryview], bytes]] = {
            Op.INIT: self._init,
            Op.LOOKUP: self._lookup,
            Op.FORGET: self._forget,
            Op.BATCH_FORGET: self._batch_forget,
            Op.GETATTR: self._getattr,
            Op.SETATTR: self._getattr,  # chmod, utimes and truncate are taken without effect
            Op.READLINK: self._readlink,
            Op.OPEN: self._open,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.RELEASE: self._release,
            Op.OPENDIR: self._opendir,
            Op.READDIR: self._readdir,
            Op.RELEASEDIR: self._releasedir,
            Op.ACCESS: self._access,
            Op.STATFS: lambda _header, _body: protocol.STATFS_OUT.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0),
            Op.INTERRUPT: self._interrupt,
            Op.DESTROY: lambda _header, _body: b"",
        }
        self._refusals = dict.fromkeys(
            (Op.MKDIR, Op.RMDIR, Op.UNLINK, Op.RENAME, Op.RENAME2, Op.SYMLINK, Op.LINK, Op.MKNOD), errno.EPERM
        )
        self._refusals[Op.CREATE] = errno.EACCES

    def run(self) -> None:
        """Answer requests until the tree is unmounted."""
        buffer = bytearray(protocol.BUFFER_SIZE)
        view = memoryview(buffer)
        while True:
            try:
                length = os.readv(self._device, [buffer])
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.ENOENT:  # the request was taken back meanwhile
                    continue
                return  # ENODEV: unmounted
            header = Header(*protocol.IN_HEADER.unpack_from(view))
            self._answer(header, view[protocol.IN_HEADER.size : length])

    def _answer(self, header: Header, body: memoryview) -> None:
        request = self._requests.get(header.opcode)
        try:
            if request is None:
                raise refuse(self._refusals.get(Op(header.opcode), errno.ENOSYS))
            answer = protocol.reply(header.unique, request(header, body))
        except NoAnswer:
            return
        except ValueError:
            answer = protocol.reply(header.unique, error=errno.ENOSYS)  # an opcode that is not known here
        except OSError as error:
            answer = protocol.reply(header.unique, error=error.errno or errno.EIO)
        self._send(answer)

    def _send(self, answer: bytes) -> None:
        try:
            os.write(self._device, answer)
        except OSError as error:
            # ENOENT: whoever asked is gone; ENODEV: unmounted.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    # --- names and attributes

    def _init(self, _header: Header, body: memoryview) -> bytes:
        _, minor, _, flags = protocol.INIT_IN.unpack_from(body)
        self._started.set()
        return protocol.init_out(minor, flags)

    def _lookup(self, header: Header, body: memoryview) -> bytes:
        parent = self._names.path(header.nodeid)
        name = bytes(body[:-1]).decode(errors="surrogateescape")
        path = f"{parent}/{name}" if parent else name
        node = self._kernel.lookup(path)
        nodeid = self._names.looked_up(path)
        entry = protocol.ENTRY_OUT.pack(nodeid, 0, NAMES_VALID, 0, 0, 0)
        return entry + self._attributes(nodeid, node)

    def _attributes(self, nodeid: int, node: Node) -> bytes:
        mode, size = _TYPES[node.kind], 0
        if isinstance(node, File):
            mode |= node.mode
            size = 4096 if node.kind is Kind.FILE else 0
        elif isinstance(node, Link):
            size = len(node.target)
        return protocol.attributes(nodeid, mode, size, self._since)

    def _getattr(self, header: Header, _body: memoryview) -> bytes:
        node = self._kernel.lookup(self._names.path(header.nodeid))
        return protocol.ATTR_OUT.pack(0, 0, 0) + self._attributes(header.nodeid, node)

    def _access(self, header: Header, body: memoryview) -> bytes:
        node = self._kernel.lookup(self._names.path(header.nodeid))
        wanted, _ = protocol.ACCESS_IN.unpack_from(body)
        if header.uid != 0 and isinstance(node, File) and wanted & ~node.mode & 0o007:
            raise refuse(errno.EACCES)
        return b""

    def _readlink(self, header: Header, _body: memoryview) -> bytes:
        node = self._kernel.lookup(self._names.path(header.nodeid))
        if not isinstance(node, Link):
            raise refuse(errno.EINVAL)
        return node.target.encode()

    def _forget(self, header: Header, body: memoryview) -> bytes:
        self._names.forget(header.nodeid, protocol.FORGET_IN.unpack_from(body)[0])
        raise NoAnswer

    def _batch_forget(self, _header: Header, body: memoryview) -> bytes:
        count, _ = protocol.BATCH_FORGET_IN.unpack_from(body)
        start = protocol.BATCH_FORGET_IN.size
        end = start + count * protocol.FORGET_ONE.size
        for nodeid, lookups in protocol.FORGET_ONE.iter_unpack(body[start:end]):
            self._names.forget(nodeid, lookups)
        raise NoAnswer

    # --- files

    def _open(self, header: Header, body: memoryview) -> bytes:
        flags, _ = protocol.OPEN_IN.unpack_from(body)
        access = flags & os.O_ACCMODE
        path = self._names.path(header.nodeid)
        opened = self._kernel.open_file(
            path, read=access != os.O_WRONLY, write=access != os.O_RDONLY, is_root=header.uid == 0
        )
        handle = self._new_handle()
        self._handles[handle] = _Handle(path, opened)
        return protocol.OPEN_OUT.pack(handle, protocol.OPEN_FLAGS, 0)

    def _new_handle(self) -> int:
        self._next_handle += 1
        return self._next_handle

    def _read(self, _header: Header, body: memoryview) -> bytes:
        number, offset, size, *_ = protocol.IO_IN.unpack_from(body)
        handle = self._handles[number]
        if offset == 0:  # a seek to the start renews the content, as seq_file does
            handle.content = self._kernel.read_file(handle.path, handle.file)
        return handle.content[offset : offset + size]

    def _write(self, header: Header, body: memoryview) -> bytes:
        number, _, size, *_ = protocol.IO_IN.unpack_from(body)
        handle = self._handles[number]
        data = bytes(body[protocol.IO_IN.size : protocol.IO_IN.size + size])
        written, wait = self._kernel.begin_write(handle.path, handle.file, data)
        if wait is None:
            return protocol.WRITE_OUT.pack(written, 0)
        interrupt = self._waiting[header.unique] = threading.Event()

        def finish() -> None:
            try:
                self._kernel.sleep(wait, lambda: interrupt.is_set() and _is_dying(header.pid))
                answer = protocol.reply(header.unique, protocol.WRITE_OUT.pack(written, 0))
            except OSError as error:
                answer = protocol.reply(header.unique, error=error.errno or errno.EIO)
            self._waiting.pop(header.unique, None)
            self._send(answer)

        threading.Thread(target=finish, name="blocked writer", daemon=True).start()
        raise NoAnswer

    def _interrupt(self, _header: Header, body: memoryview) -> bytes:
        waiting = self._waiting.get(protocol.INTERRUPT_IN.unpack_from(body)[0])
        if waiting:
            waiting.set()
        raise NoAnswer

    def _release(self, _header: Header, body: memoryview) -> bytes:
        self._handles.pop(protocol.RELEASE_IN.unpack_from(body)[0], None)
        return b""

    # --- directories

    def _opendir(self, header: Header, _body: memoryview) -> bytes:
        entries = self._kernel.entries(self._names.path(header.nodeid))
        handle = self._new_handle()
        self._listings[handle] = _listing(tuple(entries))
        return protocol.OPEN_OUT.pack(handle, 0, 0)

    def _readdir(self, _header: Header, body: memoryview) -> bytes:
        number, offset, size, *_ = protocol.IO_IN.unpack_from(body)
        return self._listings[number].part(offset, size)

    def _releasedir(self, _header: Header, body: memoryview) -> bytes:
        self._listings.pop(protocol.RELEASE_IN.unpack_from(body)[0], None)
        return b""


@lru_cache(maxsize=16)
def _listing(entries: tuple[tuple[str, Kind], ...]) -> _Listing:
    """Kept for directories that are read again as they were: the bus lists thousands of devices."""
    found = [(b".", stat.S_IFDIR), (b"..", stat.S_IFDIR)]
    found += [(name.encode(), _TYPES[kind]) for name, kind in entries]
    content = bytearray()
    ends = []
    # libudev silently skips entries whose type readdir does not tell.
    for index, (name, mode) in enumerate(found):
        end = len(content) + (protocol.DIRENT.size + len(name) + 7) // 8 * 8
        content += protocol.dirent(index + 2, end, name, mode)
        ends.append(end)
    return _Listing(bytes(content), tuple(ends))


def _is_dying(pid: int) -> bool:
    """Whether a fatal signal waits for the process: other signals do not end a wait in the kernel."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            pending = [int(line.split()[1], 16) for line in file if line.startswith(("SigPnd:", "ShdPnd:"))]
    except OSError:
        return True
    return any(mask >> 8 & 1 for mask in pending)  # SIGKILL is signal 9


# --- mounting

_MNT_DETACH = 2
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MS_REC_PRIVATE = 0x4000 | 0x40000
_CLONE_NEWNS = 0x00020000


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def enter_private_mounts() -> None:
    """Give this process a mount namespace of its own, so that nobody else sees its mounts. Needs root."""
    libc = _libc()
    if libc.unshare(_CLONE_NEWNS) or libc.mount(None, b"/", None, _MS_REC_PRIVATE, None):
        raise refuse(ctypes.get_errno())


class Mount:
    """One mounted tree. Needs root and /dev/fuse."""

    def __init__(self, kernel: Kernel, mountpoint: Path) -> None:
        self._kernel = kernel
        self._mountpoint = mountpoint
        self._device = -1
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Mount and return when the tree answers. OSError if it cannot be mounted."""
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40755,user_id=0,group_id=0,allow_other"
        if _libc().mount(
            b"vfioapd-emulator",
            os.fsencode(self._mountpoint),
            b"fuse",
            _MS_NOSUID_NODEV_NOEXEC,
            options.encode(),
        ):
            code = ctypes.get_errno()
            os.close(self._device)
            raise OSError(code, os.strerror(code), str(self._mountpoint))
        started = threading.Event()
        server = Server(self._kernel, self._device, started)
        self._thread = threading.Thread(target=server.run, name="fuse", daemon=True)
        self._thread.start()
        started.wait()
        (self._mountpoint / "bus" / "ap").lstat()

    def stop(self) -> None:
        """Unmount and end, writers that are blocked included."""
        self._kernel.shut_down()
        _libc().umount2(os.fsencode(self._mountpoint), _MNT_DETACH)
        if self._thread:
            self._thread.join(5)
            if not self._thread.is_alive():
                os.close(self._device)
