# SPDX-License-Identifier: Apache-2.0
"""The stream of events for who follows it over a socket.

Nobody who follows can hold anything up: who reads too slowly loses events and is told how many.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from vfioapd.daemon.feed import Kind, happening
from vfioapd.rpc.types import EventRow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vfioapd.daemon.feed import Feed, Happening

WAITING = 1024  # events that may wait for one who follows
SHOWN_FIRST = 10  # of those kept, to one who begins to follow


class _Follower:
    """The events that wait for one reader. Used in the event loop alone."""

    def __init__(self) -> None:
        self._waiting: deque[Happening] = deque()
        self._lost = 0
        self._news = asyncio.Event()

    def put(self, one: Happening) -> None:
        if len(self._waiting) < WAITING:
            self._waiting.append(one)
        else:
            self._lost += 1
        self._news.set()

    async def take(self) -> list[Happening]:
        """All that wait, once there is something."""
        await self._news.wait()
        self._news.clear()
        found, self._waiting = list(self._waiting), deque()
        if self._lost:
            text = f"{self._lost} events were lost: they came faster than they were read"
            found.append(happening(0, Kind.LOST, text))
            self._lost = 0
        return found


async def follow(feed: Feed) -> AsyncIterator[EventRow]:
    """The last few events, then each as it comes, without end. For the event loop."""
    loop, follower = asyncio.get_running_loop(), _Follower()

    def hear(one: Happening) -> None:
        with contextlib.suppress(RuntimeError):  # the daemon ends, the loop is closed
            loop.call_soon_threadsafe(follower.put, one)

    earlier = feed.listen(hear)
    try:
        for one in earlier[-SHOWN_FIRST:]:
            yield event_row(one)
        while True:
            for one in await follower.take():
                yield event_row(one)
    finally:
        feed.leave(hear)


def event_row(one: Happening) -> EventRow:
    """An event as it travels."""
    return EventRow(one.number, one.time, one.kind.value, one.text)
