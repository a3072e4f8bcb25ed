# SPDX-License-Identifier: Apache-2.0
"""What the host is now: one consistent read of the AP bus, its devices and libvirt's guests."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from vfioapd.domain.mask import ALL_HOST, HostMasks
from vfioapd.domain.matrix import EMPTY_MATRIX, Matrix
from vfioapd.domain.queue_set import QueueSet

if TYPE_CHECKING:
    from uuid import UUID

    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.numbers import AdapterId, DomainId

VFIO_DRIVER = "vfio_ap"


class Mode(StrEnum):
    """What a card was set up as at the HMC; the last letter of its type (CEX8C, CEX8P, CEX8A)."""

    CCA = "CCA"
    EP11 = "EP11"
    ACCELERATOR = "Accelerator"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Card:
    """One adapter as /sys/devices/ap/cardXX shows it."""

    adapter: AdapterId
    type: str  # CEX8C; empty while no driver holds the card
    mode: Mode


@dataclass(frozen=True, slots=True)
class QueueState:
    """One queue device and who drives it."""

    queue: Apqn
    driver: str | None  # cex4queue: the host's; vfio_ap: to be given to guests; None: unbound
    override: str = ""  # the one driver that may have it whatever the masks say (Linux 7.3)


@dataclass(frozen=True, slots=True)
class QueueDetail:
    """What only a look at the queue's own files tells; read for the screens, not for planning."""

    configured: bool
    checkstopped: bool
    online: bool | None  # only the host's driver has it
    status: str | None  # only vfio_ap has it: unassigned, assigned, in use


@dataclass(frozen=True, slots=True)
class Mdev:
    """One vfio_ap device: what it was assigned, and what the kernel's filter leaves a guest of it."""

    uuid: UUID
    matrix: Matrix
    guest_matrix: frozenset[Apqn] | None  # None: too large to be read safely (see backend.mdev)
    in_use: bool  # the kernel says that a guest holds it; libvirt need not know that guest


@dataclass(frozen=True, slots=True)
class Guest:
    """One libvirt guest and the vfio-ap devices in its two XML documents."""

    name: str
    uuid: UUID
    running: bool
    persistent: bool
    live: frozenset[UUID]  # empty while it does not run
    config: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class Kernel:
    """What this kernel can do. Probed by its files, never by its version: distributions backport."""

    vfio_ap: bool = True  # the matrix device is there
    ap_config: bool = True  # one write sets a whole matrix (not in Linux 6.1, in 6.12)
    driver_override: bool = False  # queues can be moved one by one (not in Linux 6.12, in 7.3)
    complete: bool = True  # every queue has found a driver (bus attribute bindings)


PLAIN_KERNEL = Kernel()


@dataclass(frozen=True)  # without slots: the sets below are worked out once
class Snapshot:
    """One consistent read. Queues, cards and mdevs are sorted; ``guests`` is None without libvirt."""

    masks: HostMasks = ALL_HOST
    cards: tuple[Card, ...] = ()
    queues: tuple[QueueState, ...] = ()
    mdevs: tuple[Mdev, ...] = ()
    usage_domains: frozenset[DomainId] = frozenset()
    control_domains: frozenset[DomainId] = frozenset()
    foreign_definitions: tuple[ForeignDefinition, ...] = ()
    guests: tuple[Guest, ...] | None = ()
    libvirt: str = "libvirtd"  # the daemon to start while ``guests`` is None
    kernel: Kernel = PLAIN_KERNEL

    def mdev(self, uuid: UUID) -> Mdev | None:
        """The active device of that UUID, or None."""
        return self.by_uuid.get(uuid)

    def active_matrix(self, uuid: UUID) -> Matrix:
        """What that device holds now; the empty matrix when it is not active."""
        mdev = self.mdev(uuid)
        return mdev.matrix if mdev else EMPTY_MATRIX

    def guest(self, name: str) -> Guest | None:
        """The guest of that name, or None when libvirt has none or is not there."""
        return next((guest for guest in self.guests or () if guest.name == name), None)

    def user_of(self, uuid: UUID) -> Guest | None:
        """The running guest that has this device plugged in, or None."""
        return next((guest for guest in self.guests or () if uuid in guest.live), None)

    @cached_property
    def present(self) -> QueueSet:
        """The queues this host has."""
        return QueueSet.of(state.queue for state in self.queues)

    @cached_property
    def overridden(self) -> QueueSet:
        """Those that are vfio_ap's by driver_override."""
        return QueueSet.of(state.queue for state in self.queues if state.override == VFIO_DRIVER)

    @cached_property
    def outside(self) -> QueueSet:
        """Those that are not the host's own, by masks or by override."""
        return (self.present - QueueSet.owned_by_host(self.masks)) | self.overridden

    @cached_property
    def host_driven(self) -> QueueSet:
        """Those on a driver of the host's own."""
        away = (VFIO_DRIVER, None)
        return QueueSet.of(state.queue for state in self.queues if state.driver not in away)

    @cached_property
    def by_uuid(self) -> dict[UUID, Mdev]:
        """The active devices."""
        return {mdev.uuid: mdev for mdev in self.mdevs}


@dataclass(frozen=True, slots=True)
class ForeignDefinition:
    """A definition in mdevctl's folder that is not in host.toml."""

    uuid: UUID
    matrix: Matrix
    starts_itself: bool
