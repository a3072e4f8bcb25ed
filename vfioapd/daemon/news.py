# SPDX-License-Identifier: Apache-2.0
"""The daemon's ears: uevents and files, gathered for a moment, then one look at the host."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from vfioapd.daemon.drift import Drift, GuestNews, suspect_of
from vfioapd.daemon.feed import Kind, uevent_lines
from vfioapd.udev.inotify import FolderWatch
from vfioapd.udev.monitor import UeventMonitor

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Executor

    from vfioapd.daemon.standing import Standing
    from vfioapd.udev.monitor import Uevent
    from vfioapd.virt.connection import GuestEvent

logger = logging.getLogger(__name__)

GATHER = 0.3  # seconds; a mask write alone sends two events for each queue it moves
LISTEN = 0.02  # seconds; events that come in thousands are taken many at a time, not one at each turn
AT_A_TURN = 200  # messages; some milliseconds of reading
BUSY_TURNS = 250  # of LISTEN, at most, that a change of our own is let go on without hearing its own events


class News:
    """Wakes the drift check. Idle, it costs nothing: no timer runs until something happened."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, changes: Executor, reads: Executor, standing: Standing
    ) -> None:
        self._loop = loop
        self._changes = changes
        self._reads = reads
        self._standing = standing
        self._drift = Drift(standing)
        self._suspect: str | None = None
        self._of_guests = GuestNews()
        self._unnamed = ""  # the old name of a guest whose new one comes with the next event
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[float | None] | None = None
        self._looking = False
        self._missed = False  # something came while it was being looked

    def listen(self) -> None:
        """Listen from now on. What cannot be watched is said and done without."""
        with contextlib.suppress(OSError):
            uevents = UeventMonitor()
            self._loop.add_reader(uevents.fileno(), self._rings, uevents)
        places = self._standing.places
        files = FolderWatch()
        for folder in (places.definitions, places.host_file.parent):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                files.add(folder)
            except OSError as error:
                logger.warning("%s is not watched: %s", folder, error)
        self._loop.add_reader(files.fileno(), self._rings, files)

    def hear(self, what: str, event: GuestEvent | None = None, *, all_new: bool = False) -> None:
        """What libvirt tells."""
        logger.debug("news: %s", what)
        self._standing.feed.tell(Kind.GUEST, what)
        if all_new:
            self._of_guests = GuestNews(all_new=True, renamed=self._of_guests.renamed)
        if event is not None:
            self._note(event)
        self._look_in(GATHER)

    def look_in(self, seconds: float) -> None:
        """Look at the host although nothing was heard."""
        self._look_in(seconds)

    def _note(self, event: GuestEvent) -> None:
        if event.is_new:
            self._of_guests.new.add(event.guest)
            self._of_guests.robbed.discard(event.guest)
        elif event.is_loss:
            self._of_guests.robbed.add(event.guest)
        elif event.what == "unnamed":
            self._unnamed = event.guest
        elif event.what == "renamed":
            self._of_guests.renamed.append((self._unnamed, event.guest))

    def _rings(self, source: UeventMonitor | FolderWatch) -> None:
        self._loop.remove_reader(source.fileno())
        self._loop.call_later(LISTEN, self._hear, source, BUSY_TURNS)

    def _hear(self, source: UeventMonitor | FolderWatch, turns: int) -> None:
        if self._standing.running and turns:
            self._loop.call_later(LISTEN, self._hear, source, turns - 1)
        elif isinstance(source, UeventMonitor):
            self._take_uevents(source, [])
        else:
            paths = source.read()
            logger.debug("files changed: %s", paths)
            self._heard(source, is_news=bool(paths))

    def _take_uevents(self, source: UeventMonitor, taken: list[Uevent]) -> None:
        """A few at each turn: an answer that is ready must not wait until thousands are read."""
        some = source.read(AT_A_TURN)
        taken += some
        if some:
            self._loop.call_soon(self._take_uevents, source, taken)
            return
        for line in uevent_lines(taken):
            self._standing.feed.tell(Kind.UEVENT, line)
        self._heard(source, is_news=bool(taken))  # none: they were of other subsystems

    def _heard(self, source: UeventMonitor | FolderWatch, *, is_news: bool) -> None:
        self._loop.add_reader(source.fileno(), self._rings, source)
        if is_news:
            self._suspect = self._suspect or suspect_of(self._standing)
            self._look_in(GATHER)

    def _look_in(self, seconds: float) -> None:
        """One look at a time: while one waits for a long change, more of them would only queue up."""
        if self._looking:
            self._missed = True
        elif self._timer is None:
            self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        """In the thread that makes changes, so that our own half-made change is never taken for drift."""
        self._timer, self._looking = None, True
        self._task = self._loop.create_task(self._look_now())
        self._task.add_done_callback(self._looked)

    async def _look_now(self) -> float | None:
        suspect, self._suspect = self._suspect, None
        news, self._of_guests = self._of_guests, GuestNews()
        guests = await self._loop.run_in_executor(self._reads, self._standing.host.guests)
        return await self._loop.run_in_executor(self._changes, self._drift.look, suspect, news, guests)

    def _looked(self, future: asyncio.Task[float | None]) -> None:
        missed, self._missed, self._looking = self._missed, False, False
        seconds = None if future.cancelled() else future.result()
        if missed:
            self._look_in(GATHER)
        elif seconds is not None:
            self._look_in(seconds)
