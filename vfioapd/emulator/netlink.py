# SPDX-License-Identifier: Apache-2.0
"""Sends the emulator's uevents as real kernel uevents into this process's network namespace.

Root may hand a NETLINK_KOBJECT_UEVENT message to the kernel (Linux 4.18 and later), which adds SEQNUM
and broadcasts it to every listener of the same network namespace as if a driver had sent it.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .events import Uevent

NETLINK_KOBJECT_UEVENT = 15
_NLM_F_REQUEST = 1
_NLMSG_MIN_TYPE = 0x10

# Devices that are not in the tree; udevd would only complain about them.
_NOT_SERVED = ("/devices/virtual/", "/module/kvm", "/module/vfio_iommu")


def is_private_network() -> bool:
    """Whether this network namespace is not the machine's own, that of PID 1."""
    try:
        return os.stat("/proc/self/ns/net").st_ino != os.stat("/proc/1/ns/net").st_ino
    except OSError:
        # PID 1 cannot be looked at. A namespace without any network is a private one.
        return [name for _, name in socket.if_nameindex()] == ["lo"]


class Injector:
    """A subscriber for `Events`. Never blocks: the kernel drops what a slow listener cannot take."""

    def __init__(self) -> None:
        """OSError where there is no netlink."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)
        self._socket.bind((0, 0))

    def __call__(self, event: Uevent) -> None:
        if event.devpath.startswith(_NOT_SERVED):
            return
        body = [f"{event.action}@{event.devpath}"]
        body += [f"{key}={value}" for key, value in event.env.items() if key != "SEQNUM"]
        payload = b"".join(line.encode() + b"\0" for line in body)
        header = struct.pack("=IHHII", 16 + len(payload), _NLMSG_MIN_TYPE, _NLM_F_REQUEST, event.seqnum, 0)
        # A driver does not hear whether anybody got its uevent, so a write must not fail by it.
        with suppress(OSError):
            self._socket.sendto(header + payload, (0, 0))

    def close(self) -> None:
        self._socket.close()
