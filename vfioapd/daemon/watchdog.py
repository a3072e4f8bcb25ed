# SPDX-License-Identifier: Apache-2.0
"""systemd's watchdog, fed while the event loop turns and the thread that makes changes gets on."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

from vfioapd.daemon.pulse import tell_systemd

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from vfioapd.daemon.pulse import Pulse

logger = logging.getLogger(__name__)

# Longer than the longest step: a kernel write is left behind after a minute (backend/guarded_sysfs.py).
PERIODS = 3


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
