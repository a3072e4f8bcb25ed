# SPDX-License-Identifier: Apache-2.0
"""What a plan means: what each guest gains, keeps and loses, and who would be hurt by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.domain.apqn import format_apqns
from vfioapd.domain.matrix import Matrix
from vfioapd.domain.problems import Problem, Refused
from vfioapd.domain.queue_set import EMPTY, QueueSet
from vfioapd.plan.steps import Where

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from uuid import UUID

    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.snapshot import Guest, Snapshot
    from vfioapd.plan.steps import Plug, Unplug


@dataclass(frozen=True, slots=True)
class GuestEffect:
    """One guest before and after, its running and its defined self taken together."""

    guest: str
    gains: QueueSet
    keeps: QueueSet
    loses: QueueSet


@dataclass(frozen=True, slots=True)
class Victim:
    """Somebody who loses queues that are in use or kept; needs the admin's word."""

    who: str
    queues: QueueSet

    def __str__(self) -> str:
        return f"{self.who} loses {format_apqns(self.queues)}"


@dataclass(frozen=True, slots=True)
class After:
    """The host as the plan leaves it."""

    matrices: Mapping[UUID, Matrix]  # every device that will exist
    owned: QueueSet  # present queues on the host's own driver
    plugs: tuple[Plug, ...]
    unplugs: tuple[Unplug, ...]


def devices_after(
    guest: Guest, place: Where, plugs: Iterable[Plug], unplugs: Iterable[Unplug]
) -> frozenset[UUID]:
    """The devices that one of the guest's documents will name."""
    there = guest.live if place is Where.LIVE else guest.config
    gone = {one.uuid for one in unplugs if one.guest == guest.name and one.where is place}
    come = {one.uuid for one in plugs if one.guest == guest.name and one.where is place}
    return (there - gone) | come


def guest_effects(snapshot: Snapshot, after: After) -> tuple[GuestEffect, ...]:
    """Every guest for which something changes, sorted by name."""
    before = {uuid: mdev.matrix for uuid, mdev in snapshot.by_uuid.items()}
    effects = []
    for guest in snapshot.guests or ():
        had = _queues(guest.live | guest.config, before)
        has = _queues(_devices(guest, after, *Where), after.matrices)
        if had != has:
            effects.append(GuestEffect(guest.name, gains=has - had, keeps=has & had, loses=had - has))
    return tuple(effects)


def victims(snapshot: Snapshot, after: After, keep: Iterable[Apqn]) -> tuple[Victim, ...]:
    """Running guests that lose queues, other people's devices, kept queues, the host's last of a mode."""
    return (
        *_guests_hurt(snapshot, after),
        *_strangers_hurt(snapshot, after),
        *_kept_lost(snapshot, after, keep),
        *_last_of_a_mode(snapshot, after),
    )


def check_victims(found: tuple[Victim, ...]) -> None:
    """Refuse a plan that hurts somebody; the caller skips this when the admin has decided."""
    if found:
        raise Refused(
            Problem.NEEDS_DISRUPT,
            f"this takes queues that are in use or kept: {'; '.join(map(str, found))}",
            hint="repeat the command with --disrupt if that is what you want",
            queues=sorted({queue for victim in found for queue in victim.queues}),
            owners=[victim.who for victim in found],
        )


def _guests_hurt(snapshot: Snapshot, after: After) -> Iterator[Victim]:
    for guest in snapshot.guests or ():
        has = EMPTY
        for uuid in _devices(guest, after, Where.LIVE):
            has |= _filtered(after.matrices.get(uuid), snapshot, after)
        had = EMPTY
        for uuid in guest.live & snapshot.by_uuid.keys():
            had |= QueueSet.of(snapshot.by_uuid[uuid].guest_matrix or ())
        if had - has:
            yield Victim(f"running guest {guest.name}", had - has)


def _strangers_hurt(snapshot: Snapshot, after: After) -> Iterator[Victim]:
    """Devices that are in use although no guest of libvirt's has them."""
    plugged = {uuid for guest in snapshot.guests or () for uuid in guest.live}
    for mdev in snapshot.mdevs:
        if mdev.in_use and mdev.uuid not in plugged:
            left = _filtered(after.matrices.get(mdev.uuid), snapshot, after)
            lost = QueueSet.of(mdev.guest_matrix or ()) - left
            if lost:
                yield Victim(f"the guest that holds mdev {mdev.uuid}", lost)


def _kept_lost(snapshot: Snapshot, after: After, keep: Iterable[Apqn]) -> Iterator[Victim]:
    lost = (QueueSet.of(keep) & snapshot.present) - snapshot.outside - after.owned
    if lost:
        yield Victim("the host ([host] keep)", lost)


def _last_of_a_mode(snapshot: Snapshot, after: After) -> Iterator[Victim]:
    adapters: dict[str, set[int]] = {}
    for card in snapshot.cards:
        adapters.setdefault(card.mode.value, set()).add(card.adapter)
    for mode, cards in sorted(adapters.items()):
        had = snapshot.host_driven.of_adapters(cards)
        if had and not after.owned.of_adapters(cards):
            yield Victim(f"the host's own use of {mode} (none would be left)", had)


def _filtered(matrix: Matrix | None, snapshot: Snapshot, after: After) -> QueueSet:
    """What the kernel's filter leaves of a matrix: an adapter goes when one of its queues is missing.

    Domains that the host does not have cost nothing (vfio_ap_ops.c:vfio_ap_mdev_filter_matrix).
    """
    if matrix is None:
        return EMPTY
    wanted = QueueSet.of_matrix(Matrix(matrix.adapters, matrix.domains & snapshot.usage_domains))
    free = wanted & snapshot.present - after.owned
    lacking = {adapter for adapter, _ in (wanted - free).rows()}
    return free.of_adapters(matrix.adapters - lacking)


def _devices(guest: Guest, after: After, *places: Where) -> frozenset[UUID]:
    found = (devices_after(guest, place, after.plugs, after.unplugs) for place in places)
    return frozenset().union(*found)


def _queues(uuids: Iterable[UUID], matrices: Mapping[UUID, Matrix]) -> QueueSet:
    return QueueSet.of_matrices(matrices[uuid] for uuid in uuids if uuid in matrices)
