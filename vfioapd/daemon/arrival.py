# SPDX-License-Identifier: Apache-2.0
"""At boot: wait until the AP bus has found the queues that guests are to have.

The kernel looks for cards and queues in a worker of its own, which may run later than we do, and says so
by uevents. Nothing is gained by waiting for more than that: a queue of ours needs none of the host's
drivers, so a bus that stays incomplete for want of those holds nobody up.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Protocol

from vfioapd.daemon.outcomes import Message, fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfioapd.daemon.standing import Standing

logger = logging.getLogger(__name__)

# The kernel scans within the first second and, while anything changes, again every 30 s (ap_bus.c). What
# is not there after one such time comes with the HMC, and is taken up then.
BUS_SECONDS = 30.0
NAMED = 8  # of the queues that are waited for


class Uevents(Protocol):
    """What is needed of vfioapd.udev.monitor.UeventMonitor."""

    def wait(self, seconds: float) -> bool: ...
    def close(self) -> None: ...


def wait_for_queues(standing: Standing, listen: Callable[[], Uevents | None]) -> None:
    """Block until the queues of all matrices that start by themselves are there, or the bus is complete
    without them; at most BUS_SECONDS. ``listen`` begins to hear uevents, and is called only where something
    may have to be waited for. Raises as reading the bus does."""
    if standing.host.is_complete():
        return
    uevents = listen()
    if uevents is None:
        return
    with contextlib.closing(uevents):
        _wait(standing, uevents)


def _wait(standing: Standing, uevents: Uevents) -> None:
    wanted = {str(queue) for one in standing.desired.should_run() for queue in one.matrix.queues()}
    deadline = time.monotonic() + BUS_SECONDS
    said = False
    while missing := _missing(standing, wanted):
        left = deadline - time.monotonic()
        if left > 0 and not said:
            standing.on_status(f"waiting for the AP bus, {_some(missing)} not found yet")
            said = True
        if left <= 0 or not uevents.wait(left):
            logger.warning(
                "the AP bus has not found %s within %g s; the boot goes on without",
                _some(missing),
                BUS_SECONDS,
                extra=fields(Message.BUS_LATE),
            )
            return


def _missing(standing: Standing, wanted: set[str]) -> set[str]:
    """What is still to come; empty when nothing more is to be expected."""
    return set() if standing.host.is_complete() else wanted - standing.host.queue_names()


def _some(queues: set[str]) -> str:
    named = sorted(queues)[:NAMED]
    more = [f"{len(queues) - NAMED} more"] if len(queues) > NAMED else []
    return ", ".join([*named, *more])
