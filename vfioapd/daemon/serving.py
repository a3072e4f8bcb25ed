# SPDX-License-Identifier: Apache-2.0
"""The daemon's event loop: two sockets, news of the host, libvirt, the watchdog; until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from asyncvarlink import get_listen_fd

from vfioapd import VERSION
from vfioapd.daemon.command import take_back
from vfioapd.daemon.libvirt_watch import LibvirtWatch
from vfioapd.daemon.news import News
from vfioapd.daemon.outcomes import Message, fields
from vfioapd.daemon.pulse import tell_systemd
from vfioapd.daemon.service import Service
from vfioapd.daemon.watchdog import Watchdog
from vfioapd.domain.problems import VfioApError
from vfioapd.rpc.server import READ_ONLY_MODE, WRITABLE_MODE, Server, listen
from vfioapd.udev.monitor import SMALL_BUFFER, UeventMonitor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor, Future
    from pathlib import Path

    from vfioapd.daemon.standing import Standing
    from vfioapd.virt.late import LateGuests

logger = logging.getLogger(__name__)

# Of the boot, before it goes on without us. Shorter than TimeoutStartSec= of the unit, at which systemd
# would kill a daemon that only waits for a slow kernel.
RESTORE_SECONDS = 90.0


async def serve(
    standing: Standing,
    guests: LateGuests,
    changes: Executor,
    restoring: Future[float | None],
    stops: Sequence[signal.Signals],
) -> None:
    """Serve until one of the signals ``stops`` comes, which the caller has blocked.

    ``changes`` is the one thread that writes, ``restoring`` what it does first. Raises OSError when there are
    no sockets to be had.
    """
    loop = asyncio.get_running_loop()
    service = Service(standing)
    # A read waits neither for a change nor for a guest that does not let go.
    with ThreadPoolExecutor(1, "reads") as reads:
        server = Server(service, reads, changes)
        places = standing.places
        server.serve(_socket(places.socket, WRITABLE_MODE), writable=True)
        server.serve(_socket(places.read_only_socket, READ_ONLY_MODE), writable=False)
        stop = _stop_on(stops)
        clock = _Clock(loop, changes, standing)
        service.hooks.worker = changes
        _keep_details(standing)
        news = News(loop, changes, reads, standing)
        news.listen()
        await _restored(asyncio.wrap_future(restoring), news)
        _say_ready(standing)
        news.look_in(0)  # what has come before anybody listened
        guests.may_wake = True
        LibvirtWatch(loop, reads, guests, news.hear).begin()
        clock.look()
        watchdog = asyncio.create_task(Watchdog(changes, standing.host.pulse).run())
        await stop.wait()
        tell_systemd("STOPPING=1")
        watchdog.cancel()
        await server.close()


def _keep_details(standing: Standing) -> None:
    """Nobody waits at this second socket: it is looked into when somebody asks for queues."""
    try:
        standing.host.keep_details(UeventMonitor(SMALL_BUFFER).devices)
    except OSError as error:
        logger.warning("uevents cannot be heard, so every queue is read for each question: %s", error)


async def _restored(restoring: asyncio.Future[float | None], news: News) -> None:
    """Until that has ended or has taken too long: then the host boots on, and what is missing may follow."""

    def look_again(done: asyncio.Future[float | None]) -> None:
        if not done.cancelled() and (seconds := done.result()) is not None:
            news.look_in(seconds)

    restoring.add_done_callback(look_again)
    _, pending = await asyncio.wait({restoring}, timeout=RESTORE_SECONDS)
    if pending:
        text = "the restore has not ended within %g s; the boot goes on without what it has not made yet"
        logger.error(text, RESTORE_SECONDS, extra=fields(Message.BOOT_GOES_ON))


def _say_ready(standing: Standing) -> None:
    summary = standing.summary()
    tell_systemd(f"READY=1\nSTATUS={summary}")
    degraded = standing.is_degraded()
    logger.log(
        logging.WARNING if degraded else logging.INFO,
        "vfioapd %s ready%s: %s",
        VERSION,
        ", but the host is not whole" if degraded else "",
        summary,
        extra=fields(Message.DEGRADED if degraded else Message.READY),
    )


class _Clock:
    """Looks again whether a change was confirmed, when its time is over; no timer runs otherwise."""

    def __init__(self, loop: asyncio.AbstractEventLoop, changes: Executor, standing: Standing) -> None:
        self._loop = loop
        self._changes = changes
        self._standing = standing
        standing.on_wait = self._look_in

    def _look_in(self, seconds: float) -> None:
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, self.look)

    def look(self) -> None:
        """In the thread that makes changes, as taking back is one."""
        self._loop.run_in_executor(self._changes, self._take_back)

    def _take_back(self) -> None:
        try:
            left = take_back(self._standing)
        except (VfioApError, OSError) as error:
            logger.error("the unconfirmed change could not be taken back: %s", error)
            return
        if left:
            self._look_in(left)


def _socket(path: Path, mode: int) -> socket.socket:
    """systemd's socket of that name when it passed one, else one of our own."""
    passed = get_listen_fd(path.name)
    if passed is None:
        return listen(path, mode=mode)
    passed.should_close = False  # the socket object closes it
    return socket.socket(fileno=passed.fileno())


def _stop_on(signals: Sequence[signal.Signals]) -> asyncio.Event:
    stop = asyncio.Event()
    for number in signals:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    return stop
