# SPDX-License-Identifier: Apache-2.0
"""Kernel uevents of the AP bus and of mediated devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyudev

if TYPE_CHECKING:
    from collections.abc import Mapping

SUBSYSTEMS = ("ap", "mdev", "matrix")

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
    """The kernel's own events, before udev's rules: they come without udevd too, and in order."""

    def __init__(self) -> None:
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        for subsystem in SUBSYSTEMS:
            monitor.filter_by(subsystem)
        monitor.start()
        self._monitor = monitor

    def fileno(self) -> int:
        """The descriptor that becomes readable when there is an event."""
        return int(self._monitor.fileno())

    def read(self) -> list[Uevent]:
        """All events that have come. Never blocks."""
        found = []
        while (device := self._monitor.poll(timeout=0)) is not None:
            # libudev looks a property that the event lacks up in its database, a file for each device:
            # with thousands of queues moving only those events are asked that have something to tell.
            asked = _TELLING if device.action == "change" else ()
            telling = {name: str(device.get(name)).strip() for name in asked if device.get(name)}
            found.append(Uevent(device.action, device.sys_name, device.subsystem, telling))
        return found
