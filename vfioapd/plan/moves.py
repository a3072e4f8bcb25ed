# SPDX-License-Identifier: Apache-2.0
"""How queues leave the host and come back: by both masks, or one by one with driver_override.

The kernel takes no mask write while a queue has an override and no override while the masks are in
use (ap_bus.c:apmask_store, ap_queue.c:driver_override_store), so a host follows one model at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.domain.definition import Binding
from vfioapd.domain.mask import ALL_HOST, HostMasks, Mask
from vfioapd.domain.matrix import Matrix
from vfioapd.domain.problems import Problem, Refused
from vfioapd.domain.queue_set import EMPTY, QueueSet
from vfioapd.domain.snapshot import VFIO_DRIVER
from vfioapd.plan.masks import mask_writes, plan_masks
from vfioapd.plan.steps import Axis, Bind, SetOverride, Unbind, WriteMask

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from vfioapd.domain.snapshot import QueueState, Snapshot
    from vfioapd.plan.steps import BusStep

HOST_DRIVER = "cex4queue"  # what has every queue of a card since CEX4 that is the host's (zcrypt_cex4.c)


@dataclass(frozen=True, slots=True)
class Moves:
    """The writes that move queues, split by what must be done to devices in between."""

    early: tuple[BusStep, ...]  # before a device gains what has left the host
    late: tuple[BusStep, ...]  # after a device let go of what comes back
    outside: QueueSet  # present queues that are not the host's afterwards
    exact: bool = True  # no other choice takes fewer queues along


@dataclass(frozen=True, slots=True)
class Needs:
    """What the moves have to bring about."""

    wanted: QueueSet  # to be outside of the host, present or not
    keep: QueueSet  # never to be outside
    released: QueueSet  # to come back where nobody else needs it
    pinned: QueueSet  # of devices that will exist
    mixed: tuple[Matrix, ...]  # of devices that lose and gain in one write, as they are until then


def binding_in_use(snapshot: Snapshot) -> Binding | None:
    """The model that the host follows now; None while every queue is the host's by default."""
    if snapshot.masks != ALL_HOST:
        return Binding.MASKS
    if any(state.override for state in snapshot.queues):
        return Binding.DRIVER_OVERRIDE
    return None


def choose_binding(snapshot: Snapshot, forced: Binding | None, wanted: QueueSet) -> Binding:
    """The model for the next change: the one in use, the one that host.toml asks for, or else masks
    where they take nothing along, since fewer writes do it and every tool knows them."""
    if forced is Binding.DRIVER_OVERRIDE and not snapshot.kernel.driver_override:
        raise Refused(
            Problem.BAD_HOST_FILE,
            "[host] binding asks for driver_override, which this kernel does not have",
            hint='write binding = "masks", or leave it out',
        )
    chosen = binding_in_use(snapshot) or forced
    if chosen is not None or not snapshot.kernel.driver_override:
        return chosen or Binding.MASKS
    by_masks = plan_masks(snapshot.masks, present=snapshot.present, wanted=wanted, keep=())
    return Binding.DRIVER_OVERRIDE if by_masks.collateral else Binding.MASKS


def plan_moves(snapshot: Snapshot, binding: Binding, needs: Needs) -> Moves:
    """The writes of one model."""
    if binding is Binding.MASKS:
        return _by_masks(snapshot, needs)
    return _by_override(snapshot, needs)


def reachable(uuid: UUID, matrix: Matrix, snapshot: Snapshot, binding: Binding) -> Matrix:
    """What a device can be assigned now. With full masks the kernel takes only queues that are there, so
    an adapter that lacks one waits for it; a guest would not get that adapter anyway. A device that holds
    queues which have left goes on holding them."""
    if binding is Binding.MASKS or snapshot.active_matrix(uuid) == matrix:
        return matrix
    lacking = {adapter for adapter, _ in (QueueSet.of_matrix(matrix) - snapshot.present).rows()}
    return Matrix(matrix.adapters - lacking, matrix.domains, matrix.control_domains)


def undo_binding(snapshot: Snapshot) -> tuple[BusStep, ...]:
    """Give every queue back to the host by the model in use; every device must be gone."""
    if binding_in_use(snapshot) is Binding.MASKS:
        return tuple(_mask_steps(snapshot.masks, ALL_HOST, EMPTY))
    return tuple(step for state in snapshot.queues if state.override for step in _back(state))


def _by_masks(snapshot: Snapshot, needs: Needs) -> Moves:
    chosen = plan_masks(
        snapshot.masks,
        present=snapshot.present,
        wanted=needs.wanted,
        keep=needs.keep,
        released=needs.released,
        pinned=needs.pinned,
        lain_on=_hard_to_set_again(snapshot),
    )
    early = _until_devices_let_go(snapshot.masks, chosen.target, needs.mixed)
    matters = snapshot.present | needs.wanted
    return Moves(
        (*_mask_steps(snapshot.masks, early, matters), *_pick_up(snapshot, needs.wanted, early)),
        tuple(_mask_steps(early, chosen.target, matters)),
        snapshot.present - QueueSet.owned_by_host(chosen.target),
        chosen.exact,
    )


def _pick_up(snapshot: Snapshot, wanted: QueueSet, masks: HostMasks) -> Iterator[Bind]:
    """Wanted queues that no driver has, as early in a boot: whether a mask write binds one is left to
    chance (ap_bus.c:__ap_revise_reserved looks through a null driver pointer)."""
    if not snapshot.kernel.vfio_ap:  # it takes them when it comes
        return
    for state in snapshot.queues:
        if state.driver is None and state.queue in wanted and not masks.owns(state.queue):
            yield Bind(state.queue, VFIO_DRIVER)


def _hard_to_set_again(snapshot: Snapshot) -> QueueSet:
    """Queues whose bits, once cleared, stay so while their device exists: Linux 7.3, the first with
    driver_override, sets no bit on which a device lies, whichever mask freed the queue
    (vfio_ap_ops.c:vfio_ap_mdev_resource_in_use). A change that fails later could not give such a bit back."""
    if not snapshot.kernel.driver_override:
        return EMPTY
    return QueueSet.of_matrices(mdev.matrix for mdev in snapshot.mdevs)


def _until_devices_let_go(current: HostMasks, target: HostMasks, mixed: Iterable[Matrix]) -> HostMasks:
    """The target, but for bits to be set on which a device still lies: the kernel would refuse them."""
    adapters = Mask.of(adapter for matrix in mixed for adapter in matrix.adapters)
    domains = Mask.of(domain for matrix in mixed for domain in matrix.domains)
    return HostMasks(target.apmask - (adapters - current.apmask), target.aqmask - (domains - current.aqmask))


def _mask_steps(current: HostMasks, target: HostMasks, matters: QueueSet) -> Iterator[WriteMask]:
    at = current
    for towards in mask_writes(current, target, matters):
        if towards.apmask != at.apmask:
            yield WriteMask(Axis.APMASK, at.apmask, towards.apmask)
        if towards.aqmask != at.aqmask:
            yield WriteMask(Axis.AQMASK, at.aqmask, towards.aqmask)
        at = towards


def _by_override(snapshot: Snapshot, needs: Needs) -> Moves:
    back = needs.released & snapshot.overridden - needs.wanted - needs.pinned
    return Moves(
        tuple(step for state in snapshot.queues if state.queue in needs.wanted for step in _out(state)),
        tuple(step for state in snapshot.queues if state.queue in back for step in _back(state)),
        (snapshot.overridden | snapshot.present & needs.wanted) - back,
    )


def _out(state: QueueState) -> Iterator[BusStep]:
    yield from _move(state, VFIO_DRIVER, override=VFIO_DRIVER)


def _back(state: QueueState) -> Iterator[BusStep]:
    yield from _move(state, HOST_DRIVER if state.driver == VFIO_DRIVER else state.driver, override="")


def _move(state: QueueState, driver: str | None, *, override: str) -> Iterator[BusStep]:
    """Unbound, reserved, bound: in this order each step can be taken back, too, since a queue can only be
    bound to the driver that it is reserved for."""
    if state.driver not in (driver, None):
        yield Unbind(state.queue, str(state.driver))
    if state.override != override:
        yield SetOverride(state.queue, state.override, override)
    if driver is not None and state.driver != driver:
        yield Bind(state.queue, driver)
