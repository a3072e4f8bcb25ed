# SPDX-License-Identifier: Apache-2.0
"""A command that changes something, from the lock to the record of it; and those that nobody types."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from vfioapd.backend.lock import ap_lock
from vfioapd.daemon.authors import author_of
from vfioapd.daemon.changes import Note
from vfioapd.daemon.confirming import check_no_wait, read_wait, wait_text
from vfioapd.plan import wishes
from vfioapd.rpc.interface import Asked, Peer
from vfioapd.rpc.types import Change, GuestChange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vfioapd.daemon.standing import Standing
    from vfioapd.domain.queue_set import QueueSet
    from vfioapd.plan.planner import Plan
    from vfioapd.plan.wish import State, Wish

logger = logging.getLogger(__name__)


def carry_out(
    standing: Standing,
    asked: Asked,
    what: str,
    wish_of: Callable[[State], Wish],
    *,
    text: str | None = None,
    adds: bool = False,
    again: bool = False,
) -> Change:
    """Make a wish true, or with ``dry_run`` say what would be done.

    ``text`` is host.toml to the letter, where that is wanted; ``adds``: another's torn definition stops it;
    ``again``: a change that waits to be confirmed does not. Blocks; raises VfioApError, with everything as
    before.
    """
    with standing.busy_with(what), ap_lock(standing.places.lock):
        _check_may_change(standing, text, adds=adds, again=again)
        if not asked.dry_run:
            standing.settle()
        state = standing.desired.state(standing.host, disrupt=asked.disrupt)
        wish = wish_of(state)
        if asked.dry_run:
            return preview(standing, wish, state, what, text)
        plan, steps = standing.changes.make(wish, state, _note(standing, asked, what, text))
        made = change_record(what, plan, steps, made_now=True)
    if made.steps:
        logger.info("%s: done in %d steps for %s", what, len(made.steps), asked.peer)
    for one in wish.target.touched:
        standing.failures.pop(one.name, None)
        standing.drifted.pop(one.name, None)
        standing.short.pop(one.name, None)
    if asked.confirm_within is not None and made.steps:
        standing.on_wait(asked.confirm_within)
        return replace(made, confirm_within=asked.confirm_within)
    return made


def preview(standing: Standing, wish: Wish, state: State, what: str, text: str | None = None) -> Change:
    """What ``carry_out`` would do; nothing is changed."""
    return change_record(what, *standing.changes.preview(wish, state, text), made_now=False)


def rename_guest(standing: Standing, old: str, new: str) -> None:
    """libvirt's guest has another name: host.toml follows. Blocks and raises as ``carry_out``."""
    asked = Asked(Peer.of_this_process(), "libvirt says so")
    what = f"rename guest {old} to {new}"
    carry_out(standing, asked, what, lambda state: wishes.rename_guest(state, old, new))


def take_back(standing: Standing) -> float | None:
    """Take back a change that was not confirmed in time. Returns the seconds still to wait, None
    when nothing waits. Raises VfioApError when it cannot be taken back; then it is tried again at
    the next start."""
    wait = read_wait(standing.places.unconfirmed)
    if wait is None:
        return None
    if left := wait.left(standing.journal.boot_id):
        return left
    text = "" if wait.revision is None else standing.history.read(wait.revision)
    new = standing.desired.parse(text, f"revision {wait.revision}")
    asked = Asked(Peer.of_this_process(), "it was not confirmed in time", disrupt=True)
    logger.warning("a change was not confirmed in time and is taken back")
    carry_out(standing, asked, "take back", lambda state: wishes.apply(state, new), text=text, again=True)
    return None


def change_record(what: str, made: Plan, steps: Iterable[str], *, made_now: bool) -> Change:
    """A plan as it travels."""
    return Change(
        name=what,
        made=made_now,
        steps=list(steps),
        guests=[
            GuestChange(one.guest, _texts(one.gains), _texts(one.keeps), _texts(one.loses))
            for one in made.guests
        ],
        handed_over=_texts(made.handed_over),
        collateral=_texts(made.collateral),
        returned=_texts(made.returned),
        victims=[str(victim) for victim in made.victims],
        least=made.exact,
        confirm_within=None,
    )


def _check_may_change(standing: Standing, text: str | None, *, adds: bool, again: bool) -> None:
    if not again:
        check_no_wait(standing.places.unconfirmed, standing.journal.boot_id)
    if text is None:
        standing.desired.check_applied()
    for torn in standing.torn() if adds else ():
        raise torn


def _note(standing: Standing, asked: Asked, what: str, text: str | None) -> Note:
    wait = None
    if asked.confirm_within is not None:
        wait = wait_text(standing.history.last(), asked.confirm_within, standing.journal.boot_id)
    return Note(what, author_of(asked), asked.reason, text, wait)


def _texts(queues: QueueSet) -> list[str]:
    return list(map(str, queues))
