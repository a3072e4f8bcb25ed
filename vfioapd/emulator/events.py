# SPDX-License-Identifier: Apache-2.0
"""Kernel uevents: their keys in the kernel's order, and who is told."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

Keys = tuple[tuple[str, str], ...]
Callback = Callable[["Uevent"], None]


@dataclass(frozen=True, slots=True)
class Uevent:
    """One uevent. `keys` are those between SUBSYSTEM and SEQNUM, in order."""

    action: str
    devpath: str
    subsystem: str
    keys: Keys
    seqnum: int

    @property
    def env(self) -> dict[str, str]:
        """All keys in the order in which the kernel sends them."""
        head = {"ACTION": self.action, "DEVPATH": self.devpath, "SUBSYSTEM": self.subsystem}
        return {**head, **dict(self.keys), "SEQNUM": str(self.seqnum)}


class Events:
    """Sends uevents to subscribers, in the thread of whoever caused them and in order.

    A callback must not block: it runs while the kernel's lock is held.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callback] = []
        self._seqnum = 0

    def subscribe(self, callback: Callback) -> None:
        self._callbacks.append(callback)

    def unsubscribe(self, callback: Callback) -> None:
        self._callbacks.remove(callback)

    def emit(self, action: str, devpath: str, subsystem: str, keys: Iterable[tuple[str, str]] = ()) -> None:
        self._seqnum += 1
        event = Uevent(action, devpath, subsystem, tuple(keys), self._seqnum)
        for callback in tuple(self._callbacks):
            callback(event)
