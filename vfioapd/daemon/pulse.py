# SPDX-License-Identifier: Apache-2.0
"""Whether the thread that makes changes still gets on, for systemd's watchdog.

A change may take minutes, each of its steps may not. A thread that hangs in one (a read of a kernel file
that never returns) would leave a daemon that answers questions and changes nothing; systemd starts a new
one instead, which settles what was cut short. Guests keep their queues meanwhile: those are the kernel's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from systemd import daemon as systemd

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

logger = logging.getLogger(__name__)

WORKER = "changes"  # what the thread's name begins with
# Longer than the longest step: a kernel write is left behind after a minute (backend/guarded_sysfs.py).
PERIODS = 3


def tell_systemd(state: str) -> None:
    """One message of sd_notify(3). That it cannot be sent is no reason to end or to undo anything."""
    try:
        systemd.notify(state)
    except OSError as error:
        logger.warning("systemd was not told %s: %s", state.partition("\n")[0], error)


class Pulse:
    """The last sign of life of that thread."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def beat(self) -> None:
        """Called before and after whatever may block; what other threads do is no sign."""
        if threading.current_thread().name.startswith(WORKER):
            self._last = time.monotonic()

    def age(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._last


class Watchdog:
    """Feeds systemd's watchdog while the event loop turns and the worker gets on."""

    def __init__(self, worker: Executor, pulse: Pulse) -> None:
        self._worker = worker
        self._pulse = pulse
        self._question: Future[None] | None = None
        self._asked = 0.0
        self._hangs = False

    async def run(self) -> None:
        """Twice in each period that systemd grants; without one, never wake."""
        period = int(os.environ.get("WATCHDOG_USEC", "0")) / 1_000_000
        while period:
            if self.gets_on(PERIODS * period):
                tell_systemd("WATCHDOG=1")
            await asyncio.sleep(period / 2)

    def gets_on(self, patience: float) -> bool:
        """Whether the worker is idle, or has shown a sign of life within ``patience`` seconds."""
        if self._question is None or self._question.done():
            self._question, self._asked = self._worker.submit(self._pulse.beat), time.monotonic()
        quiet = min(self._pulse.age(), time.monotonic() - self._asked)
        is_stuck = not self._question.done() and quiet > patience
        if is_stuck and not self._hangs:
            logger.error("the thread that makes changes has hung for %.0f s; systemd ends vfioapd", patience)
        self._hangs = is_stuck
        return not is_stuck
