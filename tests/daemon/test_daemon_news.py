# SPDX-License-Identifier: Apache-2.0
"""What the daemon hears is taken in small parts: whoever waits for an answer gets it in between."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from vfioapd.daemon.feed import Kind
from vfioapd.daemon.news import AT_A_TURN, News
from vfioapd.udev.monitor import Uevent, UeventMonitor

if TYPE_CHECKING:
    from doubles import Rig

STORM = [Uevent("change", f"{queue >> 8:02x}.{queue & 255:04x}", "ap") for queue in range(5_000)]


class Storm(UeventMonitor):
    """Thousands of events that have come already; notes when it was read, and how much."""

    def __init__(self, told: list[str]) -> None:
        self._left, self._told = list(STORM), told
        self._socket, self._quiet = socket.socketpair()

    def read(self, messages: int | None = None) -> list[Uevent]:
        some, self._left = self._left[:messages], self._left[messages or len(STORM) :]
        self._told.append(f"read {len(some)}")
        return some


def test_an_answer_that_is_ready_does_not_wait_until_thousands_of_uevents_are_read(rig: Rig) -> None:
    rig.restore()
    told: list[str] = []

    async def hear() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as worker:
            news = News(loop, worker, worker, rig.standing)
            news._hear(Storm(told), 0)
            loop.call_soon(told.append, "answered")
            while told[-1] != "read 0":
                await asyncio.sleep(0)

    asyncio.run(hear())
    assert told.index("answered") <= 2, "after the first parts, not after all of them"
    assert told.count(f"read {AT_A_TURN}") == len(STORM) / AT_A_TURN
    lines = [row.text for row in rig.standing.feed.recent() if row.kind == Kind.UEVENT]
    assert len(lines) == 1, "and all of it is told as one event"
    assert "5000" in lines[0]
