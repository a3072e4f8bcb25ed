# SPDX-License-Identifier: Apache-2.0
"""The ordered changes a plan is made of: each one kernel write, one rename or one libvirt call.

A step carries what was before and what is after, so that its inverse needs no reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, assert_never

from vfioapd.domain.mask import format_change

if TYPE_CHECKING:
    from uuid import UUID

    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.mask import Mask
    from vfioapd.domain.matrix import Matrix


class Axis(StrEnum):
    """The host's two masks, by the names of their files in /sys/bus/ap."""

    APMASK = "apmask"
    AQMASK = "aqmask"


class Member(StrEnum):
    """What a matrix is assigned, as the kernel's assign_… files name it."""

    ADAPTER = "adapter"
    DOMAIN = "domain"
    CONTROL_DOMAIN = "control_domain"


class Where(StrEnum):
    """The two documents of a guest: the running one and the one it starts from."""

    LIVE = "live"
    CONFIG = "config"


@dataclass(frozen=True, slots=True)
class WriteMask:
    """Write one of the host's masks. Queues change drivers before the write returns."""

    axis: Axis
    before: Mask
    after: Mask


@dataclass(frozen=True, slots=True)
class CreateMdev:
    """Make an empty vfio_ap device."""

    uuid: UUID


@dataclass(frozen=True, slots=True)
class RemoveMdev:
    """Remove a vfio_ap device that was proven unused; ``refill`` would give it its matrix again."""

    uuid: UUID
    refill: tuple[SetMatrix | Assign, ...] = ()


@dataclass(frozen=True, slots=True)
class SetMatrix:
    """Give a device a whole matrix in one write (ap_config)."""

    uuid: UUID
    before: Matrix
    after: Matrix


@dataclass(frozen=True, slots=True)
class Assign:
    """Add one member to a matrix, on kernels without ap_config."""

    uuid: UUID
    member: Member
    number: int


@dataclass(frozen=True, slots=True)
class Unassign:
    """Take one member from a matrix, on kernels without ap_config."""

    uuid: UUID
    member: Member
    number: int


@dataclass(frozen=True, slots=True)
class SetOverride:
    """Name the one driver that may have a queue; empty: the masks decide (Linux 7.3). Moves nothing."""

    queue: Apqn
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Bind:
    """Give a queue that no driver has to a driver."""

    queue: Apqn
    driver: str


@dataclass(frozen=True, slots=True)
class Unbind:
    """Take a queue from its driver; until the next Bind nobody has it."""

    queue: Apqn
    driver: str


@dataclass(frozen=True, slots=True)
class Plug:
    """Attach a device to a guest, in one of its two documents."""

    guest: str
    uuid: UUID
    where: Where


@dataclass(frozen=True, slots=True)
class Unplug:
    """Detach a device from a guest, in one of its two documents."""

    guest: str
    uuid: UUID
    where: Where


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Put a file in place by rename; None is no file. ``path`` is absolute."""

    path: str
    before: str | None
    after: str | None
    volatile: bool = False  # a reboot wipes it out (/run)


MdevStep = CreateMdev | RemoveMdev | SetMatrix | Assign | Unassign
BusStep = WriteMask | SetOverride | Bind | Unbind
KernelStep = BusStep | MdevStep
GuestStep = Plug | Unplug
Step = KernelStep | GuestStep | WriteFile


def inverse(step: Step) -> tuple[Step, ...]:
    """The steps that take a finished step back, in the order in which to run them."""
    match step:
        case WriteMask(axis, before, after):
            return _mask_back(axis, after, before)
        case CreateMdev(uuid):
            return (RemoveMdev(uuid),)
        case RemoveMdev(uuid, refill):
            return (CreateMdev(uuid), *refill)
        case SetMatrix(uuid, before, after):
            return (SetMatrix(uuid, after, before),)
        case Assign(uuid, member, number):
            return (Unassign(uuid, member, number),)
        case Unassign(uuid, member, number):
            return (Assign(uuid, member, number),)
        case SetOverride(queue, before, after):
            return (SetOverride(queue, after, before),)
        case Bind(queue, driver):
            return (Unbind(queue, driver),)
        case Unbind(queue, driver):
            return (Bind(queue, driver),)
        case Plug(guest, uuid, where):
            return (Unplug(guest, uuid, where),)
        case Unplug(guest, uuid, where):
            return (Plug(guest, uuid, where),)
        case WriteFile(path, before, after, volatile):
            return (WriteFile(path, after, before, volatile),)
        case _:
            assert_never(step)


def _mask_back(axis: Axis, now: Mask, then: Mask) -> tuple[WriteMask, ...]:
    """Bits are cleared before others are set: on Linux 7.3 setting them can be refused for good, and the
    devices that are to come back need those that are cleared."""
    cleared = now & then
    ways = [(now, cleared), (cleared, then)] if cleared not in (now, then) else [(now, then)]
    return tuple(WriteMask(axis, before, after) for before, after in ways)


def survives_reboot(step: Step) -> bool:
    """Whether the step changed something that a reboot of the host does not wipe out."""
    match step:
        case WriteFile(volatile=volatile):
            return not volatile
        case Plug(_, _, where) | Unplug(_, _, where):
            return where is Where.CONFIG
        case _:
            return False


def describe(step: Step) -> str:
    """One line for people: what the step does to which object."""
    match step:
        case WriteMask(axis, before, after):
            return f"{axis} {format_change(before, after)}"
        case CreateMdev(uuid):
            return f"create mdev {uuid}"
        case RemoveMdev(uuid):
            return f"remove mdev {uuid}"
        case SetMatrix(uuid, _, after):
            return f"set matrix of {uuid} to {_matrix(after)}"
        case Assign(uuid, member, number):
            return f"assign {member} {number} to {uuid}"
        case Unassign(uuid, member, number):
            return f"unassign {member} {number} from {uuid}"
        case SetOverride(queue, _, after):
            return f"reserve {queue} for {after}" if after else f"reserve {queue} for no driver"
        case Bind(queue, driver):
            return f"bind {queue} to {driver}"
        case Unbind(queue, driver):
            return f"unbind {queue} from {driver}"
        case Plug(guest, uuid, where):
            return f"attach {uuid} to guest {guest} ({where})"
        case Unplug(guest, uuid, where):
            return f"detach {uuid} from guest {guest} ({where})"
        case WriteFile(path, _, after):
            return f"{'remove' if after is None else 'write'} {path}"
        case _:
            assert_never(step)


@lru_cache(256)  # each step is told in the journal, in the history and in the reply
def _matrix(matrix: Matrix) -> str:
    return " ".join(map(str, matrix.queues())) or "nothing"
