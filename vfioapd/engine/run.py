# SPDX-License-Identifier: Apache-2.0
"""Run a plan: journal, act, and undo in reverse when a step fails.

A step that failed changed nothing, since it is one write, one rename or one libvirt call. Whether a
step is in effect is read from the host, never guessed: after a crash nobody knows whether the last
write came through.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.plan.steps import (
    Assign,
    CreateMdev,
    Plug,
    SetMatrix,
    Unplug,
    WriteFile,
    describe,
    inverse,
    survives_reboot,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from uuid import UUID

    from vfioapd.engine.journal import Journal
    from vfioapd.plan.steps import KernelStep, Step

logger = logging.getLogger(__name__)

BURST = 256  # steps; those that the kernel is given at once have the time limit of one write
FILLING = CreateMdev | SetMatrix | Assign


class Host(Protocol):
    """What carries out steps. All methods block; all raise OSError or VfioApError."""

    def execute(self, step: Step) -> None:
        """Make the change."""

    def execute_each(self, steps: Sequence[KernelStep]) -> Iterator[KernelStep]:
        """Make changes in turn that the kernel may be given at once. Yields each that was made."""

    def holds(self, step: Step) -> bool:
        """Whether the host is now as the step leaves it."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """A step that could not be undone."""

    step: Step
    cause: Exception

    def __str__(self) -> str:
        return f"{describe(self.step)} ({self.cause})"


class ApplyError(VfioApError):
    """A step or the check after them failed. What was done was undone, but for what ``stuck`` lists."""

    def __init__(self, step: Step | None, cause: Exception, stuck: Sequence[Stuck]) -> None:
        failed = f"could not {describe(step)}: {cause}" if step else str(cause)
        left = f"could not be undone: {_listed(stuck)}" if stuck else "everything done before was undone"
        super().__init__(
            cause.problem if isinstance(cause, VfioApError) else Problem.STEP_FAILED,
            f"{failed}; {left}",
            hint=cause.hint if isinstance(cause, VfioApError) else None,
        )
        self.stuck = tuple(map(str, stuck))


def run(
    steps: Sequence[Step], commit: Sequence[Step], host: Host, journal: Journal, verify: Callable[[], None]
) -> None:
    """Carry out all steps, verify by a fresh read, then commit; or leave the host as it was.

    Blocks for as long as the kernel and libvirt take. Raises ApplyError, with the host as before but
    for what that error lists; ``verify`` refuses by raising.
    """
    every = (*steps, *commit)
    _begin(journal, every)
    done: list[Step] = []
    verifying = False
    try:
        _make(steps, done, host, journal)
        verifying = True
        verify()
        verifying = False
        _make(commit, done, host, journal)
    except Exception as cause:  # a bug of ours must not leave half a plan either
        failed = None if verifying else every[len(done)]
        raise _undo(failed, cause, done, host, journal) from cause
    _end(journal, clean=True)


def _make(steps: Sequence[Step], done: list[Step], host: Host, journal: Journal) -> None:
    before = len(done)
    try:
        for together in _bursts(steps):
            journal.intent(len(done) + len(together) - 1)
            for step in _execute(together, host):
                done.append(step)
    finally:  # in one entry: libvirt waits for a boot, and hundreds of entries take as long as the steps
        if made := done[before:]:
            logger.info("%s", "\n".join(map(describe, made)))


def _bursts(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The steps one by one, but files together, and those that make and fill new devices: the journal need
    not be on disk between two of them. Nothing that one of them makes is taken back by another, so that
    after a crash the host tells which of them it has."""
    new: set[UUID] = set()
    burst: list[Step] = []
    for step in steps:
        if isinstance(step, CreateMdev):
            new.add(step.uuid)
        if burst and not (len(burst) < BURST and _go_together(burst[-1], step, new)):
            yield burst
            burst = []
        burst.append(step)
    if burst:
        yield burst


def _go_together(one: Step, other: Step, new: set[UUID]) -> bool:
    if isinstance(one, WriteFile):
        return isinstance(other, WriteFile)
    return all(isinstance(step, FILLING) and step.uuid in new for step in (one, other))


def _execute(together: Sequence[Step], host: Host) -> Iterator[Step]:
    """No guest has a new device yet, so that the kernel need not be awaited between two writes to it."""
    filling = [step for step in together if isinstance(step, FILLING)]
    if len(filling) > 1:
        yield from host.execute_each(filling)
        return
    for step in together:
        host.execute(step)
        yield step


def _undo(
    step: Step | None, cause: Exception, done: Sequence[Step], host: Host, journal: Journal
) -> ApplyError:
    # A rename can be through although making it durable failed; any other step that failed did nothing.
    begun = (*done, step) if isinstance(step, WriteFile) else done
    stuck = roll_back(begun, host)
    _end(journal, clean=not stuck)
    return ApplyError(step, cause, stuck)


def roll_back(done: Sequence[Step], host: Host) -> list[Stuck]:
    """Undo in reverse order what is in effect; returns what could not be undone, with the reason."""
    stuck: list[Stuck] = []
    for step in reversed(done):
        try:
            _take_back(step, host)
        except Exception as cause:  # the first error must survive, and the other steps must be tried
            logger.exception("cannot undo: %s", describe(step))
            stuck.append(Stuck(step, cause))
    return stuck


def _listed(stuck: Iterable[Stuck]) -> str:
    return "; ".join(map(str, stuck))


def _take_back(step: Step, host: Host) -> None:
    """Make the inverse, or the rest of it: a crash can have come between a device and its matrix."""
    back = inverse(step)
    if len(back) == 1 and not host.holds(step):
        return
    for one in back:
        if not host.holds(one):
            host.execute(one)
            logger.warning("undone: %s", describe(one))


def recover(host: Host, journal: Journal) -> str | None:
    """Settle a run that a crash or a reboot cut short; says what was done, None when nothing was.

    The last step is the commit: if it is in effect the new state stands, else the old one is
    restored. After a reboot the kernel has forgotten its part; files and guests' definitions have not.
    """
    unfinished = journal.unfinished()
    if unfinished is None:
        return None
    total = len(unfinished.steps)
    begun = unfinished.steps[: unfinished.begun]
    if len(begun) == total and begun and _is_made(begun[-1], host):
        _end(journal, clean=True)
        return f"a change of {total} steps had been made; the new state stands"
    if unfinished.rebooted:
        begun = tuple(step for step in begun if survives_reboot(step))
    stuck = roll_back(begun, host)
    _leave_for_libvirt(stuck, journal)
    _end(journal, clean=not stuck)
    if stuck:
        return f"a change of {total} steps was cut short; could not be undone: {_listed(stuck)}"
    return f"a change of {total} steps was cut short; the old state was restored"


def settle(host: Host, journal: Journal) -> str | None:
    """Undo what ``recover`` had to leave; says what was done, None when nothing was.

    For whenever libvirt is there again, and before each change, so that no later change is taken for one
    that is to be undone: without libvirt none of them can concern a guest.
    """
    try:
        left = journal.left()
    except (OSError, ValueError) as error:
        return f"what a change that was cut short has left to be undone cannot be read: {error}"
    if left is None:
        return None
    steps = tuple(filter(survives_reboot, left.steps)) if left.rebooted else left.steps
    stuck = roll_back(steps, host)
    journal.leave([one.step for one in reversed(stuck)])
    return None if stuck else "the rest of a change that was cut short was undone"


def _leave_for_libvirt(stuck: Sequence[Stuck], journal: Journal) -> None:
    """At boot libvirt comes after us, and guests' documents outlive the boot."""
    guests = [one.step for one in reversed(stuck) if isinstance(one.step, (Plug, Unplug))]
    if guests:
        earlier = journal.left()
        journal.leave([*(earlier.steps if earlier else ()), *guests])


def _is_made(step: Step, host: Host) -> bool:
    try:
        return host.holds(step)
    except (VfioApError, OSError) as error:  # at boot libvirt is not there yet
        logger.warning("cannot tell whether this was made: %s (%s)", describe(step), error)
        return False


def _begin(journal: Journal, steps: Sequence[Step]) -> None:
    try:
        journal.begin(steps)
    except OSError as error:
        raise VfioApError(
            Problem.STEP_FAILED,
            f"the journal cannot be written: {error}; nothing was changed",
            hint="a change is only begun when it can be undone after a crash: make room on that file system",
        ) from error


def _end(journal: Journal, *, clean: bool) -> None:
    """Close the record, or on a full disk drop it: left open it would be settled again much later."""
    try:
        journal.end(clean=clean)
    except OSError as error:
        logger.warning("the journal could not be closed: %s", error)
        with contextlib.suppress(OSError):
            journal.forget()
