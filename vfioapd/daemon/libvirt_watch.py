# SPDX-License-Identifier: Apache-2.0
"""Keeps the connection to libvirt: made when libvirt comes, made again when it comes back.

Nothing here starts libvirt: a socket of systemd's would be woken by a connection, so libvirt is only
called when its PID file names a living daemon, and not while that may be one that is about to end: it
closes its connections first, and a busy one takes seconds for the rest. While it is away the folder of that
file is watched and, should that miss it, tried again after growing pauses; while it is there, no timer runs.
"""

from __future__ import annotations

import contextlib
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vfioapd.udev.inotify import FolderWatch
from vfioapd.virt.awake import DAEMONS, running_libvirt

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from concurrent.futures import Executor

    from vfioapd.virt.connection import GuestEvent

logger = logging.getLogger(__name__)

RUN, PROC = Path("/run"), Path("/proc")
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 60.0  # seconds
# What libvirt's daemons give their threads to end is 30 s (virnetdaemon.c). Who still lives after that has
# closed the connection for another reason.
ENDING_SECONDS = 40.0


class GuestRoom(Protocol):
    """What is needed of vfioapd.virt.guests.Guests."""

    def connect(self) -> bool: ...
    def listen(self, heard: Callable[[GuestEvent], None], lost: Callable[[], None]) -> None: ...


class Tell(Protocol):
    """What is told: words, and the guest's event or whether all may have changed."""

    def __call__(self, what: str, event: GuestEvent | None = None, *, all_new: bool = False) -> None: ...


class LibvirtWatch:
    """Belongs to the event loop; ``news`` is called there for each event, and once whenever libvirt is
    there again, since what happened meanwhile was told to nobody."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        worker: Executor,
        guests: GuestRoom,
        news: Tell,
    ) -> None:
        self._loop = loop
        self._worker = worker
        self._guests = guests
        self._news = news
        self._pause = FIRST_PAUSE
        self._timer: asyncio.TimerHandle | None = None
        self._folder: FolderWatch | None = None
        self._trying = False
        self._served_by: tuple[str, int] | None = None  # the daemon of the last connection
        self._lost_at = -math.inf

    def begin(self) -> None:
        """Watch from now on."""
        self._guests.listen(
            lambda event: self._in_loop(lambda: self._news(str(event), event)),
            lambda: self._in_loop(self._lost),
        )
        self._try()

    def _in_loop(self, act: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the daemon is ending, the loop is closed
            self._loop.call_soon_threadsafe(act)

    def _lost(self) -> None:
        self._news("libvirt has gone")
        self._lost_at = self._loop.time()
        self._pause = FIRST_PAUSE
        self._try_later()

    def _try(self) -> None:
        self._cancel_timer()
        if not self._trying:
            self._trying = True
            self._loop.run_in_executor(self._worker, self._connect).add_done_callback(self._tried)

    def _connect(self) -> bool:
        daemon = running_libvirt(RUN, PROC)
        if daemon is None or self._may_be_ending(daemon) or not self._guests.connect():
            return False
        self._served_by = daemon
        return True

    def _may_be_ending(self, daemon: tuple[str, int]) -> bool:
        """Its socket is systemd's and would take a connection, for which it would be started again."""
        return daemon == self._served_by and self._loop.time() - self._lost_at < ENDING_SECONDS

    def _tried(self, done: asyncio.Future[bool]) -> None:
        self._trying = False
        if done.cancelled():
            return
        if done.exception() is None and done.result():
            self._stop_looking_out()
            self._news("libvirt is there", all_new=True)
        else:
            self._look_out()
            self._try_later()

    def _try_later(self) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(self._pause, self._try)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_out(self) -> None:
        if self._folder is not None:
            return
        self._folder = FolderWatch()
        try:
            self._folder.add(RUN)
        except OSError as error:
            logger.warning("%s is not watched: %s", RUN, error)
        self._loop.add_reader(self._folder.fileno(), self._seen)

    def _seen(self) -> None:
        names = {path.name for path in self._folder.read()} if self._folder else set()
        if names & {f"{daemon}.pid" for daemon in DAEMONS}:
            self._pause = FIRST_PAUSE  # its socket may come a moment after its PID file
            self._try()

    def _stop_looking_out(self) -> None:
        self._pause = FIRST_PAUSE
        if self._folder is not None:
            self._loop.remove_reader(self._folder.fileno())
            self._folder.close()
            self._folder = None
