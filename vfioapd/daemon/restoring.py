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
    from vfioapd.daemon.service import Service
    from vfioapd.domain.definition import Definition

logger = logging.getLogger(__name__)


LOCK_PATIENCE = 10.0  # seconds
RESTORE_AGAIN = 10.0  # seconds; whoever has the lock sends no event when it gives it back


def restore(
    service: Service, uevents: Uevents | None = None, made: Callable[[], None] = lambda: None
) -> float | None:
    """Bring the host to what is in force. Never raises: what fails is logged and shown by status.

    All matrices at once where that can be, else one by one, so that one broken matrix stops no other.
    With ``uevents`` a host that boots is first given the time to find its queues. ``made`` is called when
    guests may start, before it is read and told what became of each matrix. Returns the seconds after
    which to try again, None when only news can change anything.
    """
    before = service.failures.pop("", None)
    service.failures.clear()
    booted = not service.places.started.exists()
    try:
        with ap_lock(service.places.lock, patience=LOCK_PATIENCE):
            _settle(service)
            if booted:
                _take_up_host_file(service)
        _take_back(service)
        if booted and uevents is not None:
            wait_for_queues(service, uevents)
        with ap_lock(service.places.lock, patience=LOCK_PATIENCE):
            make_all(service)
        made()
        _tell_outcomes(service, booted=booted)
    except (VfioApError, OSError) as error:
        if str(error) != before:
            logger.error("the host could not be restored: %s", error, extra=fields(Message.NOT_RESTORED))
        service.failures[""] = str(error)
        is_locked = isinstance(error, VfioApError) and error.problem is Problem.LOCK_HELD
        return RESTORE_AGAIN if is_locked else None
    service.is_restored = True
    service.on_status(service.summary())
    return None


def make_all(service: Service) -> None:
    """Everything that should be there, as far as it can be. The caller holds the AP configuration lock."""
    wanted = service.desired.should_run()
    with service.busy_with("the restore of what should be there"):
        if not _make(service, wanted, last_try=False):
            for definition in wanted:
                _make(service, [definition], last_try=True)


def _tell_outcomes(service: Service, *, booted: bool) -> None:
    """One line for each matrix; for one that is whole, only when the host has booted."""
    service.short = outcomes.shortfalls(service.desired.applied().definitions, service.host.devices())
    for definition in service.desired.should_run():
        if why := service.failures.get(definition.name):
            outcomes.tell_not_restored(definition, why)
        elif what := service.short.get(definition.name):
            outcomes.tell_short(definition, what)
        elif booted:
            outcomes.tell_restored(definition)


def _take_back(service: Service) -> None:
    """What cannot go back yet is told and tried again at the next start: at boot libvirt comes later."""
    try:
        service.take_back()
    except (VfioApError, OSError) as error:
        logger.error("the change that was not confirmed could not be taken back: %s", error)
        service.failures[""] = f"a change that was not confirmed could not be taken back: {error}"


def _settle(service: Service) -> None:
    """A record that cannot be settled, or read, is no reason to leave guests without their queues."""
    try:
        message = recover(service.host, service.journal)
    except (VfioApError, OSError, ValueError) as error:
        message = f"the change that was cut short could not be settled: {error}"
    if message:
        logger.warning("%s", message)
    service.settle()


def _take_up_host_file(service: Service) -> None:
    """At boot host.toml is the truth, edited or not; a restarted daemon applies nothing by itself.

    A file that cannot be read does not take the guests' queues away: the newest revision stays in force.
    """
    places = service.places
    if service.desired.is_edited():
        try:
            text, _ = service.desired.read()
        except (VfioApError, OSError) as error:
            why = "%s; the newest revision of it stays in force"
            logger.error(why, error, extra=fields(Message.HOST_FILE_NOT_READ))
        else:
            author = Author(os.getuid(), os.getpid(), "vfioapd")
            service.history.record(text, author, datetime.now(UTC), reason="found at boot", summary="")
    atomic.replace(places.started, f"{os.getpid()}\n")


def _make(service: Service, definitions: list[Definition], *, last_try: bool) -> bool:
    state = service.desired.state(service.host)
    try:
        steps = service.changes.make_true(wishes.restore(state, definitions), state)
    except (VfioApError, OSError) as error:
        logger.info("not restored: %s", error)
        if last_try:
            service.failures |= {one.name: str(error) for one in definitions}
        return False
    if steps:
        logger.info("restored %d matrices in %d steps", len(definitions), len(steps))
    return True
