# SPDX-License-Identifier: Apache-2.0
"""What adopting an existing host starts from, and what it comes to. Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from vfioapd.plan.checks import foreign_claims

if TYPE_CHECKING:
    from uuid import UUID

    from vfioapd.domain.boot_masks import BootMasks
    from vfioapd.domain.definition import Claim, Definition, Desired
    from vfioapd.domain.matrix import Matrix
    from vfioapd.domain.snapshot import ForeignDefinition, Guest, Mdev, Snapshot
    from vfioapd.plan.wish import State


MDEVCTL_PLACE = "/etc/mdevctl.d/matrix"  # where mdevctl looks for definitions of vfio_ap devices


class Trouble(StrEnum):
    """Every inconsistency that adopting can find. docs/cli.md explains each; the words are stable."""

    TORN_DEFINITION = "torn-definition"
    DUPLICATE_UUID = "duplicate-uuid"
    MISPLACED_DEFINITION = "misplaced-definition"
    OTHER_TYPE = "other-type"
    DEFINITION_DIFFERS = "definition-differs"
    NO_DEFINITION = "no-definition"
    NOT_STARTED = "not-started"
    EMPTY_MATRIX = "empty-matrix"
    INCOMPLETE_MATRIX = "incomplete-matrix"
    QUEUE_NOT_ON_HOST = "queue-not-on-host"
    MATRIX_TOO_LARGE = "matrix-too-large"
    QUEUE_KEPT_BY_HOST = "queue-kept-by-host"
    QUEUE_TAKEN = "queue-taken"
    TWO_GUESTS = "two-guests"
    GUEST_HAS_MATRIX = "guest-has-matrix"
    LIVE_ONLY = "live-only"
    CONFIG_ONLY = "config-only"
    UNKNOWN_USER = "unknown-user"
    UNKNOWN_DEVICE = "unknown-device"
    WOULD_CHANGE = "would-change"
    MASKS_DIFFER = "masks-differ"
    MASKS_HOLD = "masks-hold"
    BAD_MASK = "bad-mask"
    LIBVIRT_UNAVAILABLE = "libvirt-unavailable"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not fit, and how to settle it."""

    code: Trouble
    sentence: str
    hint: str
    uuid: UUID | None = None  # of the device that it is about; None: it is about no single one
    bars: bool = False  # for this the device is left as it is, somebody else's


@dataclass(frozen=True, slots=True)
class DefinitionFile:
    """One file of mdevctl's that bears a UUID, in whichever folder."""

    path: str
    uuid: UUID
    in_place: bool  # in the folder of vfio_ap's devices, under the name that mdevctl itself would use
    definition: ForeignDefinition | None = None  # None: torn, or of another type of device
    torn: str | None = None  # why it cannot be read


@dataclass(frozen=True)  # without slots: the claims below are worked out once
class Facts:
    """The host as it is found."""

    state: State
    files: tuple[DefinitionFile, ...] = ()
    boot: tuple[BootMasks, ...] = ()  # who else sets the masks at boot, in their order

    @property
    def snapshot(self) -> Snapshot:
        return self.state.snapshot

    @property
    def desired(self) -> Desired:
        return self.state.desired

    @cached_property
    def claims(self) -> dict[UUID, Claim]:
        """What devices and definitions of others hold."""
        return foreign_claims(self.snapshot, [one.uuid for one in self.desired.definitions])


@dataclass(frozen=True, slots=True)
class Device:
    """One UUID that is not ours: its device, its files, the guests that name it."""

    uuid: UUID
    mdev: Mdev | None
    files: tuple[DefinitionFile, ...]
    guests: tuple[Guest, ...]

    def __str__(self) -> str:
        return f"{'mdev' if self.mdev else 'definition'} {self.uuid}"

    @property
    def definition(self) -> ForeignDefinition | None:
        """What mdevctl would start; of several files the first that can be read."""
        return next((one.definition for one in self.files if one.definition), None)

    @property
    def matrix(self) -> Matrix | None:
        """What it holds, or would hold once started; None when nobody can tell."""
        if self.mdev is not None:
            return self.mdev.matrix
        return self.definition.matrix if self.definition else None


@dataclass(frozen=True, slots=True)
class Proposal:
    """What becomes ours, and all that does not fit."""

    definitions: tuple[Definition, ...] = ()
    findings: tuple[Finding, ...] = ()


def devices(facts: Facts) -> list[Device]:
    """Every device and definition of vfio_ap's that is not ours, and every file that may be one; by UUID."""
    ours = {one.uuid for one in facts.desired.definitions}
    readable = {one.uuid for one in facts.files if one.definition or one.torn}
    uuids = {mdev.uuid for mdev in facts.snapshot.mdevs} | readable
    return [_device(facts, uuid) for uuid in sorted(uuids - ours)]


def _device(facts: Facts, uuid: UUID) -> Device:
    return Device(
        uuid,
        facts.snapshot.mdev(uuid),
        tuple(one for one in facts.files if one.uuid == uuid),
        tuple(guest for guest in facts.snapshot.guests or () if uuid in guest.live | guest.config),
    )
