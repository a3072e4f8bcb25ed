# SPDX-License-Identifier: Apache-2.0
"""What the daemon does for libvirt's hook: a guest's matrices made ready before it starts, or a refusal.

While the hook runs libvirt holds the guest's lock, and a call of ours that reads that guest would wait
for the hook, which waits for us. So nothing here calls libvirt; the kernel says whether a device is in
use. A hook that finds everything ready, as it is with start = "auto", waits for nobody.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import TYPE_CHECKING

from vfioapd.backend.lock import ap_lock
from vfioapd.domain.apqn import format_apqns
from vfioapd.domain.definition import Require, Start, parse_uuid
from vfioapd.domain.problems import Problem, Refused, Unavailable, VfioApError
from vfioapd.domain.queue_set import QueueSet
from vfioapd.plan import wishes
from vfioapd.plan.planner import plan
from vfioapd.store import atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Executor

    from vfioapd.daemon.standing import Standing
    from vfioapd.domain.definition import Definition
    from vfioapd.domain.snapshot import Mdev
    from vfioapd.plan.wish import State

logger = logging.getLogger(__name__)

PATIENCE = 8.0  # seconds until a start is refused because something else is being changed
LOCK_PATIENCE = 3.0  # of these, for another program to give back the AP configuration lock


class Hooks:
    """Answers the hook. Each method blocks, for at most PATIENCE seconds or two."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self.worker: Executor | None = None  # the thread that makes changes; None: the caller's own
        self._settling: dict[str, Future[None]] = {}  # guest: what its end set going

    def prepare(self, guest: str, uuids: Iterable[str]) -> list[str]:
        """Make the matrices ready that are ours among the guest's devices; the names of those that had
        to be. Raises VfioApError when the guest had better not start."""
        self._standing.hook_called = time.time()
        wanted = self._ours(uuids)
        self._take_back_settling(guest)
        lacking = [one.name for one in wanted if not self._is_made(one)]
        trouble = self._make_in_time(guest, lacking) if lacking else ""
        for one in wanted:
            self._check_required(guest, one, trouble)
        return lacking

    def release(self, guest: str, uuids: Iterable[str]) -> list[str]:
        """The guest has ended, or its start has failed: what has start = "manual" and was started for it
        alone is stopped again. Returns the names at once; the work is done afterwards."""
        ours = {one.name for one in self._ours(uuids)}
        names = [name for name, owner in self._noted().items() if owner == guest and name in ours]
        if names:
            self._settling[guest] = self._submit(lambda: self._stop(guest, names))
        return names

    def forget(self, names: Iterable[str]) -> None:
        """The admin has decided about these himself: the end of a guest changes nothing any more."""
        self._note({name: owner for name, owner in self._noted().items() if name not in set(names)})

    def _ours(self, uuids: Iterable[str]) -> list[Definition]:
        desired = self._standing.desired.applied()
        found = (desired.by_uuid(parse_uuid(uuid)) for uuid in uuids)
        return [one for one in found if one is not None]

    def _state(self) -> State:
        return self._standing.desired.bare_state(self._standing.host)

    def _is_made(self, definition: Definition) -> bool:
        state = self._state()
        return not plan(state.snapshot, wishes.restore(state, [definition]).target).steps

    # --- prepare

    def _make_in_time(self, guest: str, names: Sequence[str]) -> str:
        """Empty, or why it could not be done although every device is there: the policy decides then."""
        future = self._submit(lambda: self._make(guest, names))
        try:
            future.result(PATIENCE)
        except TimeoutError:
            future.cancel()
            raise Unavailable(
                Problem.LOCK_HELD,
                f"matrix {', '.join(names)} is not ready, and vfioapd is busy with another change"
                f"{self._what_runs()}",
                hint="start the guest again when that is done",
            ) from None
        except VfioApError as error:
            state = self._state()
            if any(one.name in names and not state.is_active(one) for one in state.desired.definitions):
                raise
            logger.warning("the matrix of guest %s was not made as defined: %s", guest, error)
            return f": {error}"
        return ""

    def _what_runs(self) -> str:
        return f": {self._standing.running}" if self._standing.running else ""

    def _make(self, guest: str, names: Sequence[str]) -> None:
        standing = self._standing
        with ap_lock(standing.places.lock, patience=LOCK_PATIENCE):
            state = self._state()
            wanted = [one for one in state.desired.definitions if one.name in names]
            absent = [one for one in wanted if not state.is_active(one)]
            wish = replace(wishes.restore(state, wanted), stopped=state.stopped - set(names))
            steps = standing.changes.make_true(wish, state)
        logger.info("started for guest %s: %s", guest, "; ".join(steps))
        by_hand = {one.name: guest for one in absent if one.start is Start.MANUAL}
        self._note(self._noted() | by_hand)
        for name in names:
            standing.failures.pop(name, None)
            standing.drifted.pop(name, None)

    def _check_required(self, guest: str, definition: Definition, trouble: str) -> None:
        mdev = self._standing.host.bus().mdev(definition.uuid)
        if _is_met(definition, mdev):
            return
        missing = QueueSet.of_matrix(definition.matrix) - _given(mdev)
        raise Refused(
            Problem.MATRIX_NOT_STARTED,
            f"it requires {definition.require} of the queues of {definition}, and"
            f" {format_apqns(missing)} cannot be had{trouble}",
            hint=f"vfioapctl why {definition.name}",
            queues=missing,
            owners=[guest],
        )

    # --- release

    def _take_back_settling(self, guest: str) -> None:
        """The guest starts again before its end was settled: leave its devices, or let that finish."""
        future = self._settling.pop(guest, None)
        if future is not None and not future.cancel():
            wait([future], PATIENCE)

    def _stop(self, guest: str, names: Sequence[str]) -> None:
        standing = self._standing
        try:
            with ap_lock(standing.places.lock):
                for name in names:
                    self._stop_one(name)
        except (VfioApError, OSError) as error:  # nobody waits for the answer
            logger.warning("what was started for guest %s was not stopped: %s", guest, error)
            return
        self.forget(names)

    def _stop_one(self, name: str) -> None:
        state = self._state()
        definition = state.desired.find(name)
        mdev = state.snapshot.mdev(definition.uuid) if definition else None
        if definition is None or definition.start is not Start.MANUAL or mdev is None or mdev.in_use:
            return
        wish = replace(wishes.stop(state, [name], guest_ended=True), stopped=state.stopped)
        steps = self._standing.changes.make_true(wish, state)
        logger.info("its guest has ended: %s", "; ".join(steps))

    def _submit(self, act: Callable[[], None]) -> Future[None]:
        if self.worker is not None:
            return self.worker.submit(act)
        future: Future[None] = Future()
        try:
            act()
            future.set_result(None)
        except (VfioApError, OSError) as error:
            future.set_exception(error)
        return future

    def _noted(self) -> dict[str, str]:
        """Matrix: the guest that it was started for by us. Gone after a reboot, as the devices are."""
        lines = (atomic.read(self._standing.places.started_for) or "").splitlines()
        pairs = (line.partition(" ") for line in lines)
        return {name: guest for name, _, guest in pairs if guest}

    def _note(self, noted: dict[str, str]) -> None:
        if noted != self._noted():
            text = "".join(f"{name} {guest}\n" for name, guest in sorted(noted.items()))
            atomic.replace(self._standing.places.started_for, text or None)


def _is_met(definition: Definition, mdev: Mdev | None) -> bool:
    """Whether the policy of the definition lets its guest start with this device."""
    wanted = QueueSet.of_matrix(definition.matrix)
    if definition.require is Require.NONE or (mdev is not None and mdev.guest_matrix is None):
        return True  # what cannot be read cannot be required
    got = _given(mdev) & wanted
    return got == wanted if definition.require is Require.ALL else bool(got)


def _given(mdev: Mdev | None) -> QueueSet:
    """What a guest gets of the device."""
    return QueueSet.of((mdev.guest_matrix or ()) if mdev else ())
