# SPDX-License-Identifier: Apache-2.0
"""What happens on the host as one stream: the newest events kept, and told to whoever follows.

What the daemon writes to its journal is in it by itself (see ``JournalLines``), uevents and libvirt's
events are told by who hears them. Nobody who follows can hold anything up: who reads too slowly loses
events and is told how many.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from vfioapd.rpc.types import EventRow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from vfioapd.udev.monitor import Uevent

KEPT = 256  # events
WAITING = 1024  # events that may wait for one who follows
SHOWN_FIRST = 10  # of those kept, to one who begins to follow
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


class _Follower:
    """The events that wait for one reader. Used in the event loop alone."""

    def __init__(self, first: Iterable[EventRow]) -> None:
        self._rows = deque(first)
        self._lost = 0
        self._news = asyncio.Event()
        self._news.set()

    def put(self, row: EventRow) -> None:
        if len(self._rows) < WAITING:
            self._rows.append(row)
        else:
            self._lost += 1
        self._news.set()

    async def take(self) -> list[EventRow]:
        """All that wait, once there is something."""
        await self._news.wait()
        self._news.clear()
        rows, self._rows = list(self._rows), deque()
        if self._lost:
            text = f"{self._lost} events were lost: they came faster than they were read"
            rows.append(_row(0, Kind.LOST, text))
            self._lost = 0
        return rows


class Feed:
    """The stream of one daemon. ``tell`` may be called in any thread, ``follow`` in the event loop."""

    def __init__(self) -> None:
        self._kept: deque[EventRow] = deque(maxlen=KEPT)
        self._number = 0
        self._lock = threading.Lock()
        self._followers: list[tuple[asyncio.AbstractEventLoop, _Follower]] = []

    def tell(self, kind: Kind, text: str) -> None:
        """Something happened now. Never blocks for a reader."""
        with self._lock:
            self._number += 1
            row = _row(self._number, kind, text)
            self._kept.append(row)
            for loop, follower in self._followers:
                with contextlib.suppress(RuntimeError):  # the daemon ends, the loop is closed
                    loop.call_soon_threadsafe(follower.put, row)

    def recent(self) -> list[EventRow]:
        """The newest events, the oldest of them first."""
        with self._lock:
            return list(self._kept)

    async def follow(self) -> AsyncIterator[EventRow]:
        """The last few events, then each as it comes, without end."""
        with self._lock:
            entry = (asyncio.get_running_loop(), _Follower(list(self._kept)[-SHOWN_FIRST:]))
            self._followers.append(entry)
        try:
            while True:
                for row in await entry[1].take():
                    yield row
        finally:
            with self._lock:
                self._followers.remove(entry)


class JournalLines(logging.Handler):
    """Tells the feed what the daemon logs for people. By logger: what a line is about."""

    KINDS = (
        ("vfioapd.daemon.drift", Kind.DRIFT),
        ("vfioapd.daemon.hooking", Kind.HOOK),
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


def _row(number: int, kind: Kind, text: str) -> EventRow:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return EventRow(number, now, kind.value, text)
