# SPDX-License-Identifier: Apache-2.0
"""What test guests run: the smallest kernel that there can be. It waits: a guest runs and costs nothing."""

from __future__ import annotations

import struct

BASE = 0x10000  # where Linux begins on s390, and where QEMU lets such a kernel begin
FILE_OFFSET = 0x1000
EM_S390 = 22
PT_LOAD, READABLE_AND_EXECUTABLE = 1, 5

# z/Architecture Principles of Operation, LARL and LPSWE: load the PSW that stands behind this code. It has
# the wait bit with I/O and external interrupts on; a wait with all interrupts off would be a guest that
# has crashed, to QEMU.
_CODE = bytes.fromhex("c01000000008 b2b21000").ljust(16, b"\0")
_WAITING_PSW = struct.pack(">QQ", 0x0302_0001_8000_0000, BASE)
_PROGRAM = _CODE + _WAITING_PSW


def idle_kernel() -> bytes:
    """An ELF file for QEMU's s390-ccw-virtio and its option -kernel."""
    size = len(_PROGRAM)
    identity = b"\x7fELF\x02\x02\x01".ljust(16, b"\0")  # 64 bits, big-endian, version 1
    header = identity + struct.pack(">HHIQQQIHHHHHH", 2, EM_S390, 1, BASE, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack(
        ">IIQQQQQQ", PT_LOAD, READABLE_AND_EXECUTABLE, FILE_OFFSET, BASE, BASE, size, size, FILE_OFFSET
    )
    return (header + segment).ljust(FILE_OFFSET, b"\0") + _PROGRAM
