# SPDX-License-Identifier: Apache-2.0
"""vfioapd: listen, restore what should be there, serve until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

from asyncvarlink import get_listen_fd
from systemd.journal import JournalHandler

from vfioapd import VERSION
from vfioapd.backend.details import QueueDetails
from vfioapd.backend.guarded_sysfs import GuardedSysfs
from vfioapd.backend.sysfs import HostSysfs
from vfioapd.daemon.feed import JournalLines
from vfioapd.daemon.libvirt_watch import LibvirtWatch
from vfioapd.daemon.live_host import LiveHost
from vfioapd.daemon.news import News
from vfioapd.daemon.outcomes import Message, fields
from vfioapd.daemon.places import Places
from vfioapd.daemon.pulse import WORKER, Watchdog, tell_systemd
from vfioapd.daemon.restoring import restore
from vfioapd.daemon.service import Service
from vfioapd.domain.problems import VfioApError
from vfioapd.engine.journal import Journal
from vfioapd.rpc.server import READ_ONLY_MODE, WRITABLE_MODE, Server, listen
from vfioapd.store.history import History
from vfioapd.udev.monitor import SMALL_BUFFER, UeventMonitor
from vfioapd.virt.late import LateGuests

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

logger = logging.getLogger("vfioapd")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon until SIGTERM or SIGINT. Exit status 0, or 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="vfioapd", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vfioapd {VERSION}")
    parser.add_argument("--debug", action="store_true", help="log reads and decisions too")
    parser.add_argument(
        "--doctor", action="store_true", help="print what vfioapctl doctor --json would, without a daemon"
    )
    options = parser.parse_args(arguments)
    if options.doctor:
        return _doctor(Places())
    _log_to_journal_or_stderr(logging.DEBUG if options.debug else logging.INFO)
    if os.geteuid() != 0:
        print("vfioapd: root is needed to write the AP bus", file=sys.stderr)
        return 1
    try:
        asyncio.run(_serve(Places()))
    except OSError as error:
        print(f"vfioapd: could not start: {error}", file=sys.stderr)
        return 1
    return 0


def _doctor(places: Places) -> int:
    """For a host whose daemon does not run: it is looked over from here, and nothing is changed."""
    from vfioapd.daemon.doctor import examine  # a boot must not wait for it to be loaded

    logging.basicConfig(level=logging.ERROR)
    sysfs = HostSysfs()
    journal = Journal(places.journal, places.boot_id.read_text().strip())
    service = Service(LiveHost(sysfs, places, LateGuests()), places, journal, History(places.revisions))
    answer = examine(service, runs=False)
    print(json.dumps(asdict(answer), indent=2))
    return 0


# The thread that makes a change reads and writes hundreds of small files. After each of them it waits for
# the interpreter while the loop hears the uevents of that very change: Python's 5 ms for a turn make that
# a second.
TURN_SECONDS = 0.0005

# Of the boot, before it goes on without us. Shorter than TimeoutStartSec= of the unit, at which systemd
# would kill a daemon that only waits for a slow kernel.
RESTORE_SECONDS = 90.0


async def _serve(places: Places) -> None:
    sys.setswitchinterval(TURN_SECONDS)
    journal = Journal(places.journal, places.boot_id.read_text().strip())
    guests = LateGuests()
    guests.may_wake = False
    sysfs = GuardedSysfs()
    host = LiveHost(sysfs, places, guests, QueueDetails(sysfs, _changed_devices()))
    service = Service(host, places, journal, History(places.revisions))
    logging.getLogger().addHandler(JournalLines(service.feed))
    # One thread writes; a read waits neither for a change nor for a guest that does not let go.
    with ThreadPoolExecutor(1, WORKER) as changes, ThreadPoolExecutor(1, "reads") as reads:
        server = Server(service, reads, changes)
        server.serve(_socket(places.socket, WRITABLE_MODE), writable=True)
        server.serve(_socket(places.read_only_socket, READ_ONLY_MODE), writable=False)
        stop = _stop_on_signals()
        loop = asyncio.get_running_loop()
        clock = _Clock(loop, changes, service)
        service.hooks.worker = changes
        news = News(loop, changes, reads, service)
        news.listen()
        service.on_status = lambda text: tell_systemd(f"STATUS={text}")
        await _restored(loop.run_in_executor(changes, _restore, service), news)
        _say_ready(service)
        guests.may_wake = True
        LibvirtWatch(loop, reads, guests, news.hear).begin()
        clock.look()
        watchdog = asyncio.create_task(Watchdog(changes, host.pulse).run())
        await stop.wait()
        tell_systemd("STOPPING=1")
        watchdog.cancel()
        await server.close()
        # leaving the block waits for the change that is under way: a signal cuts no step in two


def _restore(service: Service) -> float | None:
    """In the thread that makes changes."""
    try:
        uevents = UeventMonitor(SMALL_BUFFER)
    except OSError as error:
        logger.warning("uevents cannot be heard, so queues that come late are not waited for: %s", error)
        return restore(service, made=_boot_goes_on)
    with contextlib.closing(uevents):
        return restore(service, uevents, _boot_goes_on)


def _boot_goes_on() -> None:
    tell_systemd("READY=1")


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


def _say_ready(service: Service) -> None:
    summary = service.summary()
    tell_systemd(f"READY=1\nSTATUS={summary}")
    degraded = service.is_degraded()
    logger.log(
        logging.WARNING if degraded else logging.INFO,
        "vfioapd %s ready%s: %s",
        VERSION,
        ", but the host is not whole" if degraded else "",
        summary,
        extra=fields(Message.DEGRADED if degraded else Message.READY),
    )


def _changed_devices() -> Callable[[], set[str] | None] | None:
    """Nobody waits at this second socket: it is looked into when somebody asks for queues."""
    try:
        return UeventMonitor(SMALL_BUFFER).devices
    except OSError as error:
        logger.warning("uevents cannot be heard, so every queue is read for each question: %s", error)
        return None


class _Clock:
    """Looks again whether a change was confirmed, when its time is over; no timer runs otherwise."""

    def __init__(self, loop: asyncio.AbstractEventLoop, changes: Executor, service: Service) -> None:
        self._loop = loop
        self._changes = changes
        self._service = service
        service.on_wait = self._look_in

    def _look_in(self, seconds: float) -> None:
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, self.look)

    def look(self) -> None:
        """In the thread that makes changes, as taking back is one."""
        self._loop.run_in_executor(self._changes, self._take_back)

    def _take_back(self) -> None:
        try:
            left = self._service.take_back()
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


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _log_to_journal_or_stderr(level: int) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if "JOURNAL_STREAM" in os.environ:
        handler = JournalHandler(SYSLOG_IDENTIFIER="vfioapd")
        handler.setFormatter(logging.Formatter("%(message)s"))  # level and logger are fields of their own
    else:
        handler.setFormatter(logging.Formatter("vfioapd: %(levelname)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    for library in ("asyncio", "asyncvarlink"):  # how they do it, --debug is not about
        logging.getLogger(library).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
