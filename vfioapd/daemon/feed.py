# SPDX-License-Identifier: Apache-2.0
"""What happens on the host as one stream: the newest events kept, and told to whoever listens.

What the daemon writes to its journal is in it by itself (see ``JournalLines``), uevents and libvirt's
events are told by who hears them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vfioapd.udev.monitor import Uevent

KEPT = 256  # events
FEW = 3  # uevents of one kind that are told one by one


class Kind(StrEnum):
    """Where an event comes from."""

    UEVENT = "uevent"  # the kernel
    GUEST = "guest"  # libvirt
    CHANGE = "change"  # a command, or its refusal
    HOOK = "hook"  # a guest that starts or has ended
    DRIFT = "drift"  # what others changed, and its mending
    DAEMON = "daemon"  # its start, and all else
    LOST = "lost"  # in the place of those that one who follows was too slow for


class Happening(NamedTuple):
    """One event."""

    number: int
    time: str  # UTC, as ISO 8601 has it
    kind: Kind
    text: str


Listener = Callable[[Happening], None]


class Feed:
    """The stream of one daemon. For any thread."""

    def __init__(self) -> None:
        self._kept: deque[Happening] = deque(maxlen=KEPT)
        self._number = 0
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []

    def tell(self, kind: Kind, text: str) -> None:
        """Something happened now. Never blocks for who listens."""
        with self._lock:
            self._number += 1
            one = happening(self._number, kind, text)
            self._kept.append(one)
            for listener in self._listeners:
                listener(one)

    def recent(self) -> list[Happening]:
        """The newest events, the oldest of them first."""
        with self._lock:
            return list(self._kept)

    def listen(self, listener: Listener) -> list[Happening]:
        """Tell it each event from now on, in the thread that tells; it must not block. Returns the newest
        events before that."""
        with self._lock:
            self._listeners.append(listener)
            return list(self._kept)

    def leave(self, listener: Listener) -> None:
        """Tell it nothing more."""
        with self._lock:
            self._listeners.remove(listener)


class JournalLines(logging.Handler):
    """Tells the feed what the daemon logs for people. By logger: what a line is about."""

    KINDS = (
        ("vfioapd.daemon.drift", Kind.DRIFT),
        ("vfioapd.daemon.hooking", Kind.HOOK),
        ("vfioapd.daemon.command", Kind.CHANGE),
        ("vfioapd.daemon.service", Kind.CHANGE),
        ("vfioapd.rpc", Kind.CHANGE),
        ("vfioapd.virt", Kind.GUEST),
        ("vfioapd", Kind.DAEMON),
    )

    def __init__(self, feed: Feed) -> None:
        super().__init__(logging.INFO)
        self._feed = feed

    def emit(self, record: logging.LogRecord) -> None:
        """One line of the journal. The steps of a change are left out: they are in its plan."""
        is_step = record.name == "vfioapd.engine.run" and record.levelno == logging.INFO
        kind = next((kind for name, kind in self.KINDS if record.name.startswith(name)), None)
        if kind is not None and not is_step:
            self._feed.tell(kind, record.getMessage())


def uevent_lines(events: Sequence[Uevent]) -> list[str]:
    """One line an event, but one line for many alike: a mask that moves thousands of queues sends two
    events for each of them."""
    alike: dict[tuple[object, ...], list[Uevent]] = {}
    for event in events:
        kind = (event.action, event.subsystem, "." in event.device, tuple(event.properties.items()))
        alike.setdefault(kind, []).append(event)
    lines: list[str] = []
    for found in alike.values():
        if len(found) <= FEW:
            lines += map(str, found)
        else:
            devices = sorted({event.device for event in found})
            words = str(found[0]).replace(found[0].device, f"{devices[0]} to {devices[-1]}", 1)
            lines.append(f"{words} ({len(found)} events, {len(devices)} devices)")
    return lines


def happening(number: int, kind: Kind, text: str) -> Happening:
    """An event of now."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Happening(number, now, kind, text)
