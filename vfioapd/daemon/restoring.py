# SPDX-License-Identifier: Apache-2.0
"""What the daemon does when it starts: settle what was cut short, then make what should be there."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vfioapd.backend.lock import ap_lock
from vfioapd.domain.problems import VfioApError
from vfioapd.engine.run import recover
from vfioapd.plan import wishes
from vfioapd.store import atomic, host_file
from vfioapd.store.history import Author

if TYPE_CHECKING:
    from vfioapd.daemon.service import Service
    from vfioapd.domain.definition import Definition

logger = logging.getLogger(__name__)


def restore(service: Service) -> None:
    """Bring the host to what is in force. Never raises: what fails is logged and shown by status.

    All matrices at once where that can be, else one by one, so that one broken matrix stops no other.
    """
    service.failures.clear()
    try:
        with ap_lock(service.places.lock):
            _settle(service)
            _take_up_host_file(service)
        _take_back(service)
        with ap_lock(service.places.lock):
            wanted = wishes.should_run(service.desired.state(service.host))
            if not _make(service, wanted, last_try=False):
                for definition in wanted:
                    _make(service, [definition], last_try=True)
    except (VfioApError, OSError) as error:
        logger.error("the host could not be restored: %s", error)
        service.failures[""] = str(error)


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
    booted = not places.started.exists()
    if booted and service.desired.is_edited():
        try:
            text = host_file.read(places.host_file).text
        except (VfioApError, OSError) as error:
            logger.error("%s; the newest revision of it stays in force", error)
        else:
            author = Author(os.getuid(), os.getpid(), "vfioapd")
            service.history.record(text, author, datetime.now(UTC), reason="found at boot", summary="")
    if booted:
        atomic.replace(places.started, f"{os.getpid()}\n")


def _make(service: Service, definitions: list[Definition], *, last_try: bool) -> bool:
    state = service.desired.state(service.host)
    try:
        made = service.changes.make(wishes.restore(state, definitions), state, None)
    except (VfioApError, OSError) as error:
        logger.log(logging.ERROR if last_try else logging.INFO, "not restored: %s", error)
        if last_try:
            service.failures |= {one.name: str(error) for one in definitions}
        return False
    if made.steps:
        logger.info("restored %d matrices in %d steps", len(definitions), len(made.steps))
    return True
