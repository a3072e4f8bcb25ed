# SPDX-License-Identifier: Apache-2.0
"""News of the host: what drifted is said, and made true again where the admin wants that.

Woken by uevents, libvirt's events and changes of files, never by a clock. Assigning to a device sends no
uevent (vfio_ap_ops.c), so that alone is noticed at the next event or command.

A guest that was just defined, reverted or started gets what host.toml says without being asked: nobody
has taken anything from it. What somebody took from a guest or changed in its definition is drift.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vfioapd.backend.lock import ap_lock, holder
from vfioapd.daemon.command import rename_guest
from vfioapd.daemon.outcomes import Message, fields, shortfalls, tell_taken_up
from vfioapd.daemon.restoring import restore
from vfioapd.domain.problems import VfioApError
from vfioapd.plan import wishes
from vfioapd.plan.drift import DEVICE_GONE, find_drift, find_guest_drift

if TYPE_CHECKING:
    from vfioapd.daemon.standing import Standing
    from vfioapd.domain.snapshot import Guest, Mdev
    from vfioapd.plan.wish import State

logger = logging.getLogger(__name__)

# A matrix that is undone this often is somebody's to undo: two tools that mend each other's work would
# take a guest's queues away again and again.
REPAIRS = 5
FORGET = 600.0  # seconds without a repair after which earlier ones do not count


@dataclass(slots=True)
class GuestNews:
    """What libvirt has told since the last look."""

    new: set[str] = field(default_factory=set)  # guests that were defined, reverted or started
    all_new: bool = False  # libvirt is there again: nobody told what happened meanwhile
    robbed: set[str] = field(default_factory=set)  # guests that had come by then, and lost a device since
    renamed: list[tuple[str, str]] = field(default_factory=list)  # the old name and the new


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

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._repairs: dict[str, _Repairs] = {}
        self._guests: tuple[Guest, ...] | None = None
        self._missed_news = False  # guests came anew before the host was restored
        self._of_guests: dict[str, str] = {}  # what was found when libvirt answered last

    def look(
        self, suspect: str | None, news: GuestNews | None = None, guests: tuple[Guest, ...] | None = None
    ) -> float | None:
        """Look once. ``suspect`` names who held the AP configuration lock when the news came; ``guests``
        are those of libvirt, read elsewhere: a hook may wait for this thread, and libvirt for that hook.

        Returns the seconds after which to look again, None when only news can change anything.
        """
        standing, news = self._standing, news or GuestNews()
        self._guests = guests
        if not standing.is_restored:
            again = restore(standing)
            self._missed_news |= news.all_new or bool(news.new)
            if not standing.is_restored:
                return again
        news.all_new |= self._missed_news
        self._missed_news = False
        try:
            self._take_up(news)
            self._forget_unplugged(news)
            state = self._state()
            found = self._find(state)
        except (VfioApError, OSError) as error:
            logger.warning("drift cannot be told: %s", error)
            return None
        late = found.keys() & standing.short.keys() - standing.drifted.keys()
        self._say({name: what for name, what in found.items() if name not in late}, suspect)
        unasked = self._unasked(state, news)
        owed = unasked | late | standing.failures.keys() - {""}
        to_mend = sorted(owed | (found.keys() if state.desired.repair else set()))
        again = self._mend(to_mend, unasked)
        self._tell_arrivals(None if to_mend else state.snapshot.mdevs)
        return again

    def _unasked(self, state: State, news: GuestNews) -> set[str]:
        """The matrices that are missing in guests which came anew, and from which nobody has taken one."""
        return {
            one.name
            for one in state.desired.definitions
            if one.name in self._of_guests
            and (news.all_new or one.guest in news.new)
            and one.guest not in news.robbed
        }

    def _tell_arrivals(self, mdevs: tuple[Mdev, ...] | None) -> None:
        """Whose queues have come, and who lacks some now. Devices that may have changed are read anew."""
        standing = self._standing
        try:
            short = shortfalls(
                standing.desired.applied().definitions, standing.host.devices() if mdevs is None else mdevs
            )
        except (VfioApError, OSError):  # the next look will tell
            return
        for name in sorted(standing.short.keys() - short.keys()):
            tell_taken_up(name, "all of its queues are there now")
        for name in sorted(short.keys() - standing.short.keys() - standing.drifted.keys()):
            logger.warning("matrix %s: %s", name, short[name], extra=fields(Message.SHORT, matrix=name))
        standing.short = short
        standing.on_status(standing.summary())

    def _state(self) -> State:
        state = self._standing.desired.bare_state(self._standing.host)
        return replace(state, snapshot=replace(state.snapshot, guests=self._guests))

    def _take_up(self, news: GuestNews) -> None:
        if news.all_new:
            with ap_lock(self._standing.places.lock):
                self._standing.settle()
        for old, new in news.renamed:
            if any(one.guest == old for one in self._standing.desired.applied().definitions):
                self._rename(old, new)

    def _rename(self, old: str, new: str) -> None:
        try:
            rename_guest(self._standing, old, new)
        except VfioApError as error:
            logger.error("guest %s is %s now, but host.toml cannot follow: %s", old, new, error)

    def _forget_unplugged(self, news: GuestNews) -> None:
        """What an admin took from a running guest stays out until that guest has ended or started anew."""
        unplugged = self._standing.desired.unplugged()
        if not unplugged or self._guests is None:
            return
        running = {guest.name for guest in self._guests if guest.running} - news.new
        definitions = self._standing.desired.applied().definitions
        still = unplugged & {one.name for one in definitions if one.guest in running}
        if still != unplugged:
            self._standing.desired.note_unplugged(still)

    def _find(self, state: State) -> dict[str, str]:
        if state.snapshot.guests is not None:
            self._of_guests = find_guest_drift(state)
        found = self._standing.changes.edited_definitions(state.desired) | find_drift(state)
        return {name: why for name, why in self._of_guests.items() if state.desired.find(name)} | found

    def _say(self, found: dict[str, str], suspect: str | None) -> None:
        known = self._standing.drifted
        for name, what in found.items():
            if known.get(name, "").partition(" (while ")[0] != what:
                by = f" (while {suspect} held the AP configuration lock)" if suspect else ""
                known[name] = what + by
                if what == DEVICE_GONE:
                    self._standing.removals.note(name, suspect)
                logger.warning("matrix %s drifted: %s%s", name, what, by)
        for name in known.keys() - found.keys():
            del known[name]
            logger.info("matrix %s is as defined again", name)

    def _mend(self, names: list[str], unasked: set[str]) -> float | None:
        now = time.monotonic()
        waits = []
        for name in names:
            repairs = self._repairs.setdefault(name, _Repairs())
            wait = repairs.wait(now)
            if name in unasked:  # a guest that is new is in no war with us
                self._repair(name)
            elif repairs.count >= REPAIRS:
                self._give_up(name)
            elif wait:
                waits.append(wait)
            elif self._repair(name):
                repairs.count, repairs.last = repairs.count + 1, now
        return min(waits, default=None)

    def _repair(self, name: str) -> bool:
        """Try once; whether something was mended. What fails now is tried again with the next news."""
        standing = self._standing
        try:
            with ap_lock(standing.places.lock):
                steps = self._make(name)
        except (VfioApError, OSError) as error:
            if standing.failures.get(name) != str(error):
                logger.warning("matrix %s was not mended: %s", name, error)
            standing.failures[name] = str(error)
            return False
        if standing.failures.pop(name, None):
            tell_taken_up(name, "it could be made now")
        if steps:
            standing.drifted.pop(name, None)
            self._of_guests.pop(name, None)
            logger.warning("matrix %s was mended: %s", name, "; ".join(steps))
        return bool(steps)

    def _make(self, name: str) -> list[str]:
        state = self._state()
        definition = state.desired.find(name)
        if definition is None or definition not in wishes.should_run(state):
            return []
        if name not in self._of_guests:
            return self._standing.changes.make_true(wishes.restore(state, [definition]), state)
        wish = wishes.keep_guest(state, definition)
        # The guests were read before this thread was free: what it did meanwhile may have plugged it in.
        plugs = tuple(plug for plug in wish.target.plugs if not self._standing.host.holds(plug))
        wish = replace(wish, target=replace(wish.target, plugs=plugs))
        return self._standing.changes.make_true(wish, state)

    def _give_up(self, name: str) -> None:
        sentence = f"undone {REPAIRS} times by another program; it is not mended again by itself"
        if self._standing.failures.get(name) != sentence:
            self._standing.failures[name] = sentence
            logger.error("matrix %s was %s", name, sentence)


def suspect_of(standing: Standing) -> str | None:
    """Who holds the AP configuration lock now, if it is not us: all that can be known of who did it."""
    return holder(standing.places.lock)
