# SPDX-License-Identifier: Apache-2.0
"""vfioapd: restore what should be there, then serve until told to stop."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from systemd.journal import JournalHandler

from vfioapd import VERSION
from vfioapd.backend.guarded_sysfs import GuardedSysfs
from vfioapd.daemon.feed import JournalLines
from vfioapd.daemon.live_host import LiveHost
from vfioapd.daemon.places import Places
from vfioapd.daemon.pulse import WORKER, passed_sockets, tell_systemd
from vfioapd.daemon.restoring import restore
from vfioapd.daemon.standing import Standing
from vfioapd.engine.journal import Journal
from vfioapd.store.history import History
from vfioapd.virt.late import LateGuests

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vfioapd.backend.sysfs import Sysfs
    from vfioapd.daemon.arrival import Uevents

logger = logging.getLogger("vfioapd")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon until SIGTERM or SIGINT. Exit status 0, or 1 when it could not start."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parse(arguments) if arguments else None
    if options and options.doctor:
        return _doctor(Places())
    _log_to_journal_or_stderr(logging.DEBUG if options and options.debug else logging.INFO)
    if os.geteuid() != 0:
        print("vfioapd: root is needed to write the AP bus", file=sys.stderr)
        return 1
    try:
        _run(Places())
    except OSError as error:
        print(f"vfioapd: could not start: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    import argparse  # libvirt waits for a boot's imports, and at boot there are no arguments

    parser = argparse.ArgumentParser(prog="vfioapd", description=__doc__)
    parser.add_argument("--version", action="version", version=f"vfioapd {VERSION}")
    parser.add_argument("--debug", action="store_true", help="log reads and decisions too")
    parser.add_argument(
        "--doctor", action="store_true", help="print what vfioapctl doctor --json would, without a daemon"
    )
    return parser.parse_args(arguments)


def _doctor(places: Places) -> int:
    """For a host whose daemon does not run: it is looked over from here, and nothing is changed."""
    import json
    from dataclasses import asdict

    from vfioapd.backend.sysfs import HostSysfs
    from vfioapd.daemon.doctor import examine

    logging.basicConfig(level=logging.ERROR)
    answer = examine(_standing(HostSysfs(), places, LateGuests()), runs=False)
    print(json.dumps(asdict(answer), indent=2))
    return 0


# The thread that makes a change reads and writes hundreds of small files. After each of them it waits for
# the interpreter while the loop hears the uevents of that very change: Python's 5 ms for a turn make that
# a second.
TURN_SECONDS = 0.0005

# For a restore to have the processor to itself. libvirt waits for it, and most are done by then; what is
# needed to answer is loaded afterwards.
HEAD_START = 3.0  # seconds
SOCKETS = 2  # one to change things, one to read
STOPS = (signal.SIGTERM, signal.SIGINT)


def _run(places: Places) -> None:
    sys.setswitchinterval(TURN_SECONDS)
    guests = LateGuests()
    guests.may_wake = False
    sysfs = GuardedSysfs()
    standing = _standing(sysfs, places, guests)
    standing.on_status = lambda text: tell_systemd(f"STATUS={text}")
    logging.getLogger().addHandler(JournalLines(standing.feed))
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # the loop takes them when it runs
    if places.host_file.exists() and not places.started.exists():
        sysfs.prepare()  # the host has booted, so there is something to write
    with ThreadPoolExecutor(1, WORKER) as changes:
        restoring = changes.submit(restore, standing, _listen, _tell_ready)
        wait([restoring], HEAD_START)
        gc.freeze()  # what is there by now is no garbage
        gc.enable()
        import asyncio

        from vfioapd.daemon.serving import serve

        asyncio.run(serve(standing, guests, changes, restoring, STOPS))
        # leaving the block waits for the change that is under way: a signal cuts no step in two


def _tell_ready() -> None:
    """Guests may start, and whoever calls waits at the sockets that systemd holds. Without those there is
    nothing to call yet: then the loop says that we are ready, when it has made them."""
    if passed_sockets() == SOCKETS:
        tell_systemd("READY=1")


def _standing(sysfs: Sysfs, places: Places, guests: LateGuests) -> Standing:
    journal = Journal(places.journal, places.boot_id.read_text().strip())
    return Standing(LiveHost(sysfs, places, guests), places, journal, History(places.revisions))


def _listen() -> Uevents | None:
    from vfioapd.udev.monitor import SMALL_BUFFER, UeventMonitor  # a bus that is complete needs none

    try:
        return UeventMonitor(SMALL_BUFFER)
    except OSError as error:
        logger.warning("uevents cannot be heard, so queues that come late are not waited for: %s", error)
        return None


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
