# SPDX-License-Identifier: Apache-2.0
"""The FUSE protocol as far as a sysfs needs it: opcodes, flags, and the layout of its messages.

Layouts are those of the Linux ABI (include/uapi/linux/fuse.h), minor version 31, native byte order.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

MAJOR, MINOR = 7, 31
MAX_WRITE = 65536
BUFFER_SIZE = MAX_WRITE + 8192
ROOT_ID = 1


class Op(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    RENAME2 = 45


# Of INIT: O_TRUNC comes with the open; writes larger than a page; lookups in parallel.
WANTED_FLAGS = 1 << 3 | 1 << 5 | 1 << 18
# Of OPEN: no page cache; writers of one file do not wait for each other (6.2 and later).
OPEN_FLAGS = 1 << 0 | 1 << 6

IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
INIT_IN = struct.Struct("=IIII")
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
ENTRY_OUT = struct.Struct("=QQQQII")
ATTR_OUT = struct.Struct("=QII")
ACCESS_IN = struct.Struct("=II")
OPEN_IN = struct.Struct("=II")
OPEN_OUT = struct.Struct("=QII")
IO_IN = struct.Struct("=QQIIQII")
WRITE_OUT = struct.Struct("=II")
RELEASE_IN = struct.Struct("=QIIQ")
FORGET_IN = struct.Struct("=Q")
BATCH_FORGET_IN = struct.Struct("=II")
FORGET_ONE = struct.Struct("=QQ")
INTERRUPT_IN = struct.Struct("=Q")
DIRENT = struct.Struct("=QQII")
STATFS_OUT = struct.Struct("=QQQQQIIII24x")


class Header(NamedTuple):
    """Who asks for what."""

    length: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    extensions: int
    padding: int


def reply(unique: int, body: bytes = b"", error: int = 0) -> bytes:
    """A complete answer; `error` is an errno, positive."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), -error, unique) + body


def init_out(minor: int, flags: int) -> bytes:
    return INIT_OUT.pack(MAJOR, min(minor, MINOR), 0, flags & WANTED_FLAGS, 64, 48, MAX_WRITE, 1, 0, 0, 0)


def attributes(nodeid: int, mode: int, size: int, seconds: int) -> bytes:
    links = 2 if mode & 0o170000 == 0o040000 else 1
    return ATTR.pack(nodeid, size, 0, seconds, seconds, seconds, 0, 0, 0, mode, links, 0, 0, 0, 4096, 0)


def dirent(nodeid: int, offset: int, name: bytes, mode: int) -> bytes:
    padding = -(DIRENT.size + len(name)) % 8
    return DIRENT.pack(nodeid, offset, len(name), mode >> 12) + name + b"\0" * padding
