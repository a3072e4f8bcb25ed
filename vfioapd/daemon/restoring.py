# SPDX-License-Identifier: Apache-2.0
"""What the daemon does when it starts: settle what was cut short, then make what should be there."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vfioapd.backend.lock import ap_lock
from vfioapd.daemon import outcomes
from vfioapd.daemon.arrival import wait_for_queues
from vfioapd.daemon.outcomes import Message, fields
from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.engine.run import recover
from vfioapd.plan import wishes
from vfioapd.store import atomic
from vfioapd.store.history import Author

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfioapd.daemon.arrival import Uevents
    from vfioapd.daemon.standing import Standing
    from vfioapd.domain.definition import Definition

logger = logging.getLogger(__name__)


LOCK_PATIENCE = 10.0  # seconds
RESTORE_AGAIN = 10.0  # seconds; whoever has the lock sends no event when it gives it back


def restore(
    standing: Standing,
    listen: Callable[[], Uevents | None] = lambda: None,
    made: Callable[[], None] = lambda: None,
) -> float | None:
    """Bring the host to what is in force. Never raises: what fails is logged and shown by status.

    All matrices at once where that can be, else one by one, so that one broken matrix stops no other.
    A host that boots is first given the time to find its queues, where ``listen`` can hear of them. ``made``
    is called when guests may start, before it is read and told what became of each matrix. Returns the
    seconds after which to try again, None when only news can change anything.
    """
    before = standing.failures.pop("", None)
    standing.failures.clear()
    booted = not standing.places.started.exists()
    try:
        with ap_lock(standing.places.lock, patience=LOCK_PATIENCE):
            _settle(standing)
            if booted:
                _take_up_host_file(standing)
        _take_back(standing)
        if booted:
            wait_for_queues(standing, listen)
        with ap_lock(standing.places.lock, patience=LOCK_PATIENCE):
            make_all(standing)
        made()
        _tell_outcomes(standing, booted=booted)
    except (VfioApError, OSError) as error:
        if str(error) != before:
            logger.error("the host could not be restored: %s", error, extra=fields(Message.NOT_RESTORED))
        standing.failures[""] = str(error)
        is_locked = isinstance(error, VfioApError) and error.problem is Problem.LOCK_HELD
        return RESTORE_AGAIN if is_locked else None
    standing.is_restored = True
    standing.on_status(standing.summary())
    return None


def make_all(standing: Standing) -> None:
    """Everything that should be there, as far as it can be. The caller holds the AP configuration lock."""
    wanted = standing.desired.should_run()
    with standing.busy_with("the restore of what should be there"):
        if not _make(standing, wanted, last_try=False):
            for definition in wanted:
                _make(standing, [definition], last_try=True)


def _tell_outcomes(standing: Standing, *, booted: bool) -> None:
    """One line for each matrix; for one that is whole, only when the host has booted."""
    standing.short = outcomes.shortfalls(standing.desired.applied().definitions, standing.host.devices())
    for definition in standing.desired.should_run():
        if why := standing.failures.get(definition.name):
            outcomes.tell_not_restored(definition, why)
        elif what := standing.short.get(definition.name):
            outcomes.tell_short(definition, what)
        elif booted:
            outcomes.tell_restored(definition)


def _take_back(standing: Standing) -> None:
    """What cannot go back yet is told and tried again at the next start: at boot libvirt comes later."""
    if not standing.places.unconfirmed.exists():
        return
    from vfioapd.daemon.command import take_back  # seldom needed, and libvirt waits for its imports

    try:
        take_back(standing)
    except (VfioApError, OSError) as error:
        logger.error("the change that was not confirmed could not be taken back: %s", error)
        standing.failures[""] = f"a change that was not confirmed could not be taken back: {error}"


def _settle(standing: Standing) -> None:
    """A record that cannot be settled, or read, is no reason to leave guests without their queues."""
    try:
        message = recover(standing.host, standing.journal)
    except (VfioApError, OSError, ValueError) as error:
        message = f"the change that was cut short could not be settled: {error}"
    if message:
        logger.warning("%s", message)
    standing.settle()


def _take_up_host_file(standing: Standing) -> None:
    """At boot host.toml is the truth, edited or not; a restarted daemon applies nothing by itself.

    A file that cannot be read does not take the guests' queues away: the newest revision stays in force.
    """
    places = standing.places
    if standing.desired.is_edited():
        try:
            text, _ = standing.desired.read()
        except (VfioApError, OSError) as error:
            why = "%s; the newest revision of it stays in force"
            logger.error(why, error, extra=fields(Message.HOST_FILE_NOT_READ))
        else:
            author = Author(os.getuid(), os.getpid(), "vfioapd")
            standing.history.record(text, author, datetime.now(UTC), reason="found at boot", summary="")
    atomic.replace(places.started, f"{os.getpid()}\n")


def _make(standing: Standing, definitions: list[Definition], *, last_try: bool) -> bool:
    state = standing.desired.state(standing.host)
    try:
        steps = standing.changes.make_true(wishes.restore(state, definitions), state)
    except (VfioApError, OSError) as error:
        logger.info("not restored: %s", error)
        if last_try:
            standing.failures |= {one.name: str(error) for one in definitions}
        return False
    if steps:
        logger.info("restored %d matrices in %d steps", len(definitions), len(steps))
    return True
