# SPDX-License-Identifier: Apache-2.0
"""Kernel uevents of the AP bus and of mediated devices."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import pyudev

if TYPE_CHECKING:
    from collections.abc import Mapping

SUBSYSTEMS = ("ap", "mdev", "matrix")
KERNEL = 0  # the netlink port of the kernel; whoever else sends is not believed
MESSAGE = 1 << 13  # bytes; the kernel's own limit is 2 KiB (UEVENT_BUFFER_SIZE)
BUFFER = 1 << 26  # bytes; libudev's own tools take twice as much
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; not in Python's socket module
SMALL_BUFFER = 1 << 24  # bytes; for who looks seldom and can do with knowing that something was lost
LOST = b"change@/devices/ap\0ACTION=change\0DEVPATH=/devices/ap\0SUBSYSTEM=ap\0"  # the buffer was full

# What an administrator wants to see of an event besides action and device.
_TELLING = (
    "APMASK",
    "AQMASK",
    "BINDINGS",
    "COMPLETECOUNT",
    "CONFIG",
    "DRIVER",
    "INITSCAN",
    "MDEV_STATE",
    "MODE",
    "ONLINE",
)


@dataclass(frozen=True, slots=True)
class Uevent:
    """One kernel event: what happened to which device."""

    action: str
    device: str  # its name: 05.0011, card05, ap, a UUID
    subsystem: str
    properties: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        details = " ".join(f"{name}={value}" for name, value in self.properties.items())
        return f"{self.action} {self.subsystem} {self.device} {details}".rstrip()


class UeventMonitor:
    """The kernel's own events, before udev's rules: they come without udevd too, and in order.

    libudev opens the socket. Its messages are read here: a mask that moves five thousand queues sends ten
    thousand, and as objects of libudev they take a second of the daemon's time while it makes that change.
    """

    def __init__(self, buffer: int = BUFFER) -> None:
        """Raises OSError where the kernel grants no such socket. ``buffer`` in bytes: what comes while
        nobody reads and does not fit is lost, and told as lost."""
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        monitor.start()
        self._monitor = monitor  # it closes its descriptor when it goes
        self._socket = socket.socket(fileno=os.dup(monitor.fileno()))
        self._enlarge(buffer)

    def _enlarge(self, buffer: int) -> None:
        """As far as we may: without CAP_NET_ADMIN up to net.core.rmem_max. libudev's own function gives
        up there (systemd 257), and a small buffer is better than none."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)

    def fileno(self) -> int:
        """The descriptor that becomes readable when there is an event."""
        return self._socket.fileno()

    def read(self, messages: int | None = None) -> list[Uevent]:
        """All events that have come, or those among the first so many messages. Never blocks."""
        found = []
        for message in islice(iter(self._receive, None), messages):
            event = parse_uevent(message)
            if event is not None:
                found.append(event)
        return found

    def devices(self) -> set[str] | None:
        """The names of all devices with events that have come; None: some were lost. Never blocks."""
        events = self.read()
        return None if parse_uevent(LOST) in events else {event.device for event in events}

    def wait(self, seconds: float) -> bool:
        """Block until events of ours have come, and take them all; False: none in so many seconds."""
        deadline = time.monotonic() + seconds
        while select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if self.read():
                return True
        return False

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    def _receive(self) -> bytes | None:
        try:
            message, (sender, _groups) = self._socket.recvfrom(MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return LOST
        return message if sender == KERNEL else b""


def parse_uevent(message: bytes) -> Uevent | None:
    """Read one message of the kernel (lib/kobject_uevent.c): ``ACTION@DEVPATH``, then ``KEY=VALUE``, each
    ended by a NUL. None for the devices of other subsystems."""
    words = message.decode("ascii", "replace").split("\0")
    pairs = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    subsystem = pairs.get("SUBSYSTEM", "")
    if subsystem not in SUBSYSTEMS:
        return None
    device = pairs.get("DEVPATH", "").rpartition("/")[2]
    telling = {name: pairs[name].strip() for name in _TELLING if name in pairs}
    return Uevent(pairs.get("ACTION", ""), device, subsystem, telling)
