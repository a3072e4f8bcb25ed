# SPDX-License-Identifier: Apache-2.0
"""News of the host: what drifted is said, and made true again where the admin wants that.

Woken by uevents and by changes of files, never by a clock. Assigning to a device sends no uevent
(vfio_ap_ops.c), so that alone is noticed at the next event or command.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vfioapd.backend.lock import ap_lock, holder
from vfioapd.daemon.outcomes import Message, fields, shortfalls, tell_taken_up
from vfioapd.daemon.restoring import restore
from vfioapd.domain.problems import VfioApError
from vfioapd.plan import wishes
from vfioapd.plan.drift import DEVICE_GONE, find_drift

if TYPE_CHECKING:
    from vfioapd.daemon.service import Service
    from vfioapd.plan.wish import State

logger = logging.getLogger(__name__)

# A matrix that is undone this often is somebody's to undo: two tools that mend each other's work would
# take a guest's queues away again and again.
REPAIRS = 5
FORGET = 600.0  # seconds without a repair after which earlier ones do not count


@dataclass(slots=True)
class _Repairs:
    """How often one matrix was mended of late."""

    count: int = 0
    last: float = field(default=-FORGET)

    def wait(self, now: float) -> float:
        """Seconds to wait before the next repair: none at first, then 1, 2, 4, …"""
        if now - self.last >= FORGET:
            self.count = 0
        due = self.last + 2.0 ** (self.count - 1) if self.count else now
        return max(0.0, due - now)


class Drift:
    """Compares the host with what is in force. Used by the thread that makes changes alone."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._repairs: dict[str, _Repairs] = {}

    def look(self, suspect: str | None) -> float | None:
        """Look once. ``suspect`` names who held the AP configuration lock when the news came.

        Returns the seconds after which to look again, None when only news can change anything.
        """
        service = self._service
        if not service.is_restored:
            return restore(service)
        try:
            state = service.desired.bare_state(service.host)  # a hook may wait for this thread
            found = service.changes.edited_definitions(state.desired) | find_drift(state)
        except (VfioApError, OSError) as error:
            logger.warning("drift cannot be told: %s", error)
            return None
        late = found.keys() & service.short.keys() - service.drifted.keys()
        self._say({name: what for name, what in found.items() if name not in late}, suspect)
        waiting = [*found, *(name for name in service.failures if name and name not in found)]
        owed = service.failures.keys() | late
        to_mend = [name for name in waiting if state.desired.repair or name in owed]
        again = self._mend(to_mend)
        self._tell_arrivals(None if to_mend else state)
        return again

    def _tell_arrivals(self, state: State | None) -> None:
        """Whose queues have come, and who lacks some now. The host is read unless its state is given."""
        service = self._service
        try:
            short = shortfalls(state or service.desired.bare_state(service.host))
        except (VfioApError, OSError):  # the next look will tell
            return
        for name in sorted(service.short.keys() - short.keys()):
            tell_taken_up(name, "all of its queues are there now")
        for name in sorted(short.keys() - service.short.keys() - service.drifted.keys()):
            logger.warning("matrix %s: %s", name, short[name], extra=fields(Message.SHORT, matrix=name))
        service.short = short
        service.on_status(service.summary())

    def _say(self, found: dict[str, str], suspect: str | None) -> None:
        known = self._service.drifted
        for name, what in found.items():
            if known.get(name, "").partition(" (")[0] != what:
                by = f" (while {suspect} held the AP configuration lock)" if suspect else ""
                known[name] = what + by
                if what == DEVICE_GONE:
                    self._service.removals.note(name, suspect)
                logger.warning("matrix %s drifted: %s%s", name, what, by)
        for name in known.keys() - found.keys():
            del known[name]
            logger.info("matrix %s is as defined again", name)

    def _mend(self, names: list[str]) -> float | None:
        now = time.monotonic()
        waits = []
        for name in names:
            repairs = self._repairs.setdefault(name, _Repairs())
            wait = repairs.wait(now)
            if repairs.count >= REPAIRS:
                self._give_up(name)
            elif wait:
                waits.append(wait)
            elif self._repair(name):
                repairs.count, repairs.last = repairs.count + 1, now
        return min(waits, default=None)

    def _repair(self, name: str) -> bool:
        """Try once; whether something was mended. What fails now is tried again with the next news."""
        service = self._service
        try:
            with ap_lock(service.places.lock):
                state = service.desired.bare_state(service.host)  # a hook may wait for this thread
                definition = state.desired.find(name)
                if definition is None or definition not in wishes.should_run(state):
                    service.failures.pop(name, None)
                    return False
                made = service.changes.make(wishes.restore(state, [definition]), state, None)
        except (VfioApError, OSError) as error:
            if service.failures.get(name) != str(error):
                service.failures[name] = str(error)
                logger.warning("matrix %s was not mended: %s", name, error)
            return False
        if service.failures.pop(name, None):
            tell_taken_up(name, "it could be made now")
        service.drifted.pop(name, None)
        if made.steps:
            logger.warning("matrix %s was mended: %s", name, "; ".join(made.steps))
        return bool(made.steps)

    def _give_up(self, name: str) -> None:
        sentence = f"undone {REPAIRS} times by another program; it is not mended again by itself"
        if self._service.failures.get(name) != sentence:
            self._service.failures[name] = sentence
            logger.error("matrix %s was %s", name, sentence)


def suspect_of(service: Service) -> str | None:
    """Who holds the AP configuration lock now, if it is not us: all that can be known of who did it."""
    return holder(service.places.lock)
