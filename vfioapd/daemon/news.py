# SPDX-License-Identifier: Apache-2.0
"""The daemon's ears: uevents and files, gathered for a moment, then one look at the host."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from vfioapd.daemon.drift import Drift, suspect_of
from vfioapd.udev.inotify import FolderWatch
from vfioapd.udev.monitor import UeventMonitor

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Executor

    from vfioapd.daemon.service import Service

logger = logging.getLogger(__name__)

GATHER = 0.3  # seconds; a mask write alone sends two events for each queue it moves


class News:
    """Wakes the drift check. Idle, it costs nothing: no timer runs until something happened."""

    def __init__(self, loop: asyncio.AbstractEventLoop, changes: Executor, service: Service) -> None:
        self._loop = loop
        self._changes = changes
        self._service = service
        self._drift = Drift(service)
        self._suspect: str | None = None
        self._timer: asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Listen from now on. What cannot be watched is said and done without."""
        with contextlib.suppress(OSError):
            uevents = UeventMonitor()
            self._loop.add_reader(uevents.fileno(), self._heard, uevents)
        places = self._service.places
        files = FolderWatch()
        for folder in (places.definitions, places.host_file.parent):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                files.add(folder)
            except OSError as error:
                logger.warning("%s is not watched: %s", folder, error)
        self._loop.add_reader(files.fileno(), self._heard, files)

    def _heard(self, source: UeventMonitor | FolderWatch) -> None:
        for one in source.read():
            logger.debug("news: %s", one)
        self._suspect = self._suspect or suspect_of(self._service)
        self._look_in(GATHER)

    def _look_in(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """In the thread that makes changes, so that our own half-made change is never taken for drift."""
        self._timer = None
        suspect, self._suspect = self._suspect, None
        future = self._loop.run_in_executor(self._changes, self._drift.look, suspect)
        future.add_done_callback(self._look_again)

    def _look_again(self, future: asyncio.Future[float | None]) -> None:
        seconds = None if future.cancelled() else future.result()
        if seconds is not None:
            self._look_in(seconds)
