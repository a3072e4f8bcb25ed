# SPDX-License-Identifier: Apache-2.0
"""In which order devices may change, so that no queue is ever wanted by two of them at once.

A device that only loses goes first. One that gains waits for those that still hold what it gains. Two
that wait for each other (a swap) are untied by letting one lose first what it is to lose anyway. With
``ap_config`` each device takes one write, but for the one that unties a ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.domain.matrix import EMPTY_MATRIX, Matrix
from vfioapd.plan.steps import Assign, CreateMdev, Member, RemoveMdev, SetMatrix, Unassign

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from uuid import UUID

    from vfioapd.plan.steps import KernelStep


@dataclass(frozen=True, slots=True)
class DeviceSteps:
    """What may come before queues move, and what must wait for it."""

    losing: tuple[KernelStep, ...] = ()
    # Empty ones, before queues move: one that cannot be made costs the host no queue, and once queues have
    # moved, udevd is busy with them and every step takes longer.
    creating: tuple[CreateMdev, ...] = ()
    gaining: tuple[KernelStep, ...] = ()  # by devices that are there
    filling: tuple[KernelStep, ...] = ()  # new ones, last: on Linux 7.3 they would bar bits from being set
    mixed: tuple[Matrix, ...] = ()  # as they are until then: matrices that lose and gain in one write


def order_devices(
    active: Mapping[UUID, Matrix], wanted: Mapping[UUID, Matrix], *, whole: bool
) -> DeviceSteps:
    """The steps from the active matrices to the wanted ones; a device without a wanted one goes.

    ``whole``: the kernel takes a matrix in one write (ap_config). Deterministic: by UUID.
    """
    losing: list[KernelStep] = []
    waiting: dict[UUID, Matrix] = {}  # devices that gain, with what they hold until they do
    for uuid in sorted(active):
        before, after = active[uuid], wanted.get(uuid)
        if after is None:
            losing.append(RemoveMdev(uuid, refill(uuid, before, whole=whole)))
        elif common(before, after) == after or not whole:
            losing += _change(uuid, before, common(before, after), whole=whole)
        if after is not None and common(before, after) != after:
            waiting[uuid] = before if whole else common(before, after)
    mixed = tuple(held for uuid, held in waiting.items() if common(held, wanted[uuid]) != held)
    gaining = tuple(_untangle(waiting, wanted, whole=whole))
    new = [uuid for uuid in wanted if uuid not in active]
    filling = (step for uuid in new for step in refill(uuid, wanted[uuid], whole=whole))
    return DeviceSteps(tuple(losing), tuple(map(CreateMdev, new)), gaining, tuple(filling), mixed)


def refill(uuid: UUID, matrix: Matrix, *, whole: bool) -> tuple[SetMatrix | Assign, ...]:
    """The steps that fill an empty device with a matrix."""
    if matrix == EMPTY_MATRIX:
        return ()
    if whole:
        return (SetMatrix(uuid, EMPTY_MATRIX, matrix),)
    return tuple(Assign(uuid, member, number) for member, number in _members(matrix))


def common(one: Matrix, other: Matrix) -> Matrix:
    """What both hold."""
    return Matrix(
        one.adapters & other.adapters,
        one.domains & other.domains,
        one.control_domains & other.control_domains,
    )


def _untangle(
    waiting: dict[UUID, Matrix], wanted: Mapping[UUID, Matrix], *, whole: bool
) -> Iterator[KernelStep]:
    """Each device once nobody holds what it gains; where all wait, the first one loses first."""
    while waiting:
        ready = (uuid for uuid in waiting if not _held_by_others(wanted[uuid], uuid, waiting))
        if uuid := next(ready, None):
            yield from _change(uuid, waiting.pop(uuid), wanted[uuid], whole=whole)
        else:
            uuid = next(u for u in waiting if common(waiting[u], wanted[u]) != waiting[u])
            kept = common(waiting[uuid], wanted[uuid])
            yield from _change(uuid, waiting[uuid], kept, whole=whole)
            waiting[uuid] = kept


def _held_by_others(matrix: Matrix, uuid: UUID, holders: Mapping[UUID, Matrix]) -> bool:
    return any(_overlap(matrix, held) for other, held in holders.items() if other != uuid)


def _overlap(one: Matrix, other: Matrix) -> bool:
    return bool(one.adapters & other.adapters) and bool(one.domains & other.domains)


def _change(uuid: UUID, before: Matrix, after: Matrix, *, whole: bool) -> Iterator[KernelStep]:
    if before == after:
        return
    if whole:
        yield SetMatrix(uuid, before, after)
        return
    for member, number in _members(_less(before, after)):
        yield Unassign(uuid, member, number)
    for member, number in _members(_less(after, before)):
        yield Assign(uuid, member, number)


def _less(matrix: Matrix, part: Matrix) -> Matrix:
    return Matrix(
        matrix.adapters - part.adapters,
        matrix.domains - part.domains,
        matrix.control_domains - part.control_domains,
    )


def _members(matrix: Matrix) -> Iterator[tuple[Member, int]]:
    """Adapters, then domains, then control domains: what mdevctl's own definitions list, too."""
    groups: tuple[tuple[Member, Iterable[int]], ...] = (
        (Member.ADAPTER, matrix.adapters),
        (Member.DOMAIN, matrix.domains),
        (Member.CONTROL_DOMAIN, matrix.control_domains),
    )
    for member, numbers in groups:
        for number in sorted(numbers):
            yield member, number
