# SPDX-License-Identifier: Apache-2.0
"""Snapshot and desired state in, ordered steps or a refusal out. Pure: same input, same plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vfioapd.domain.mask import ALL_HOST
from vfioapd.domain.problems import Problem, Refused
from vfioapd.domain.queue_set import EMPTY, QueueSet
from vfioapd.domain.snapshot import QueueState
from vfioapd.plan.effects import After, GuestEffect, Victim, guest_effects, victims
from vfioapd.plan.moves import (
    HOST_DRIVER,
    Moves,
    Needs,
    binding_in_use,
    choose_binding,
    plan_moves,
    reachable,
    undo_binding,
)
from vfioapd.plan.order import order_devices
from vfioapd.plan.steps import Plug, Unplug, Where

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.definition import Binding, Definition
    from vfioapd.domain.matrix import Matrix
    from vfioapd.domain.snapshot import Snapshot
    from vfioapd.plan.steps import Step


@dataclass(frozen=True, slots=True)
class Target:
    """Where the host shall be. Only devices of the definitions that are ``touched`` may change."""

    touched: tuple[Definition, ...] = ()  # as they were or as they shall be
    active: tuple[Definition, ...] = ()  # of those, the ones whose device shall exist
    held: tuple[Definition, ...] = ()  # of all: their queues stay away from the host
    keep: frozenset[Apqn] = frozenset()
    released: QueueSet = EMPTY  # queues that go back where nobody else needs their bits
    unplugs: tuple[Unplug, ...] = ()
    plugs: tuple[Plug, ...] = ()
    binding: Binding | None = None  # [host] binding
    convert: bool = False  # leave the binding that is in use for the one asked for
    disrupt: bool = False  # queues in ``keep`` may go, too, where it cannot be otherwise


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered steps, and what they mean. No steps: nothing to do."""

    steps: tuple[Step, ...] = ()
    guests: tuple[GuestEffect, ...] = ()
    victims: tuple[Victim, ...] = ()
    handed_over: QueueSet = EMPTY  # wanted, and leaving the host now
    collateral: QueueSet = EMPTY  # not wanted, and leaving with them
    returned: QueueSet = EMPTY  # coming back to the host
    exact: bool = True  # no choice of masks has less collateral

    def __bool__(self) -> bool:
        return bool(self.steps)


@dataclass(frozen=True, slots=True)
class _Devices:
    """The active devices that may change, what they are to hold, and all the others."""

    active: dict[UUID, Matrix]
    wanted: dict[UUID, Matrix]
    others: dict[UUID, Matrix]

    @classmethod
    def of(cls, snapshot: Snapshot, target: Target, binding: Binding) -> _Devices:
        touched = {one.uuid for one in target.touched}
        return cls(
            {mdev.uuid: mdev.matrix for mdev in snapshot.mdevs if mdev.uuid in touched},
            {one.uuid: reachable(one.uuid, one.matrix, snapshot, binding) for one in target.active},
            {mdev.uuid: mdev.matrix for mdev in snapshot.mdevs if mdev.uuid not in touched},
        )

    def after(self) -> dict[UUID, Matrix]:
        return {**self.others, **self.wanted}


def plan(snapshot: Snapshot, target: Target) -> Plan:
    """Order the change: guests let go, devices lose, new ones come, queues leave the host, devices gain,
    queues come back, new devices are filled, guests take. Each device and mask is written as seldom as that
    allows."""
    now = binding_in_use(snapshot)
    if target.convert and target.binding is not None and now not in (None, target.binding):
        return _convert(snapshot, target, target.binding)
    if not (target.touched or target.held or target.released or target.unplugs or target.plugs):
        return Plan()  # nothing of ours is concerned, and how others have their devices is their affair
    held = QueueSet.of_matrices(one.matrix for one in target.held)
    binding = choose_binding(snapshot, target.binding, held)
    devices = _Devices.of(snapshot, target, binding)
    order = order_devices(devices.active, devices.wanted, whole=snapshot.kernel.ap_config)
    moves = plan_moves(snapshot, binding, _needs(target, devices, order.mixed))
    steps = (
        *target.unplugs,
        *order.losing,
        *order.creating,
        *moves.early,
        *order.gaining,
        *moves.late,
        *order.filling,
        *target.plugs,
    )
    return _weigh(snapshot, target, devices, moves, steps)


def _needs(target: Target, devices: _Devices, mixed: tuple[Matrix, ...]) -> Needs:
    others = QueueSet.of_matrices(devices.others.values())
    staying = (matrix for uuid, matrix in devices.wanted.items() if uuid in devices.active)
    return Needs(
        wanted=others | QueueSet.of_matrices(one.matrix for one in target.held),
        keep=EMPTY if target.disrupt else QueueSet.of(target.keep),
        released=target.released,
        pinned=others | QueueSet.of_matrices(staying),
        mixed=mixed,
    )


def _weigh(
    snapshot: Snapshot, target: Target, devices: _Devices, moves: Moves, steps: tuple[Step, ...]
) -> Plan:
    held = QueueSet.of_matrices(one.matrix for one in target.held)
    leaving = moves.outside - snapshot.outside
    after = After(devices.after(), snapshot.present - moves.outside, target.plugs, target.unplugs)
    return Plan(
        steps,
        guests=guest_effects(snapshot, after),
        victims=victims(snapshot, after, target.keep),
        handed_over=leaving & held,
        collateral=leaving - held,
        returned=snapshot.outside - moves.outside,
        exact=moves.exact,
    )


def _convert(snapshot: Snapshot, target: Target, binding: Binding) -> Plan:
    """From one binding to the other by way of a host that has all of its queues: every device goes and
    comes again, so every running guest lets go and takes again."""
    devices = _Devices.of(snapshot, target, binding)
    if devices.others:
        raise Refused(
            Problem.QUEUE_TAKEN,
            f"the binding cannot become {binding} while devices exist that vfioapd did not define:"
            f" {', '.join(map(str, sorted(devices.others)))}",
            hint="; ".join(f"mdevctl stop -u {uuid}" for uuid in sorted(devices.others)),
            owners=[f"mdev {uuid}" for uuid in sorted(devices.others)],
        )
    rebuilt = plan(_without_devices(snapshot), replace(target, convert=False, unplugs=(), plugs=()))
    plugged = [(guest.name, uuid) for guest in snapshot.guests or () for uuid in sorted(guest.live)]
    steps = (
        *(Unplug(guest, uuid, Where.LIVE) for guest, uuid in plugged),
        *target.unplugs,
        *order_devices(devices.active, {}, whole=snapshot.kernel.ap_config).losing,
        *undo_binding(snapshot),
        *rebuilt.steps,
        *(Plug(guest, uuid, Where.LIVE) for guest, uuid in plugged if uuid in devices.wanted),
        *target.plugs,
    )
    moves = Moves((), (), rebuilt.handed_over | rebuilt.collateral, rebuilt.exact)
    weighed = _weigh(snapshot, target, devices, moves, steps)
    return replace(weighed, victims=(*weighed.victims, *_interrupted(snapshot)))


def _interrupted(snapshot: Snapshot) -> Iterator[Victim]:
    """Guests that run without their queues while the binding is changed."""
    for guest in snapshot.guests or ():
        held = QueueSet.of_matrices(mdev.matrix for mdev in snapshot.mdevs if mdev.uuid in guest.live)
        if held:
            yield Victim(f"running guest {guest.name}, for a moment,", held)


def _without_devices(snapshot: Snapshot) -> Snapshot:
    """The host with every queue its own again."""
    queues = tuple(QueueState(state.queue, HOST_DRIVER) for state in snapshot.queues)
    return replace(snapshot, masks=ALL_HOST, queues=queues, mdevs=())
