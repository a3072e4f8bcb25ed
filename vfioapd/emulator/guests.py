# SPDX-License-Identifier: Apache-2.0
"""Guests as VFIO and KVM see them: who opens an mdev, what it is told, and what its end sets free."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from .generation import Generation, RemovalNotice
from .machine import Answer, Machine
from .numbers import refuse

if TYPE_CHECKING:
    from .mdev import Mdev
    from .vfio_ap import VfioAp


class Notice(StrEnum):
    """What a guest's VMM is told through eventfds."""

    REQUEST = "request"  # let go of the device
    CONFIG_CHANGED = "config-changed"  # the guest's AP masks changed


@dataclass(eq=False, slots=True)
class Guest:
    """One virtual machine that has, or wants, a vfio-ap device."""

    name: str
    mdev: Mdev | None = None
    listens_to_requests: bool = True
    listens_to_changes: bool = True
    requests: int = 0  # signals of each eventfd since the start
    changes: int = 0


GuestCallback = Callable[[Guest, Notice], None]


class Guests:
    """All guests of the host. All methods need the kernel's lock."""

    def __init__(self, generation: Generation, machine: Machine) -> None:
        self._generation = generation
        self._machine = machine
        self._callbacks: list[GuestCallback] = []
        self.opened: list[Guest] = []  # one per VFIO group that is open; a machine may try several
        self.vfio_ap: VfioAp | None = None

    def subscribe(self, callback: GuestCallback) -> None:
        """Be told of every notice to a guest. The callback must not block."""
        self._callbacks.append(callback)

    def unsubscribe(self, callback: GuestCallback) -> None:
        self._callbacks.remove(callback)

    def open_group(self, name: str, uuid: str) -> Guest:
        """Open the mdev's VFIO group for a guest. ENODEV unknown, EBUSY if it is open already."""
        mdev = self.vfio_ap.mdevs.get(uuid) if self.vfio_ap else None
        if mdev is None or not mdev.has_files:
            raise refuse(errno.ENODEV)
        if mdev.group_user:
            raise refuse(errno.EBUSY)
        guest = Guest(name, mdev)
        mdev.group_user = guest
        self.opened.append(guest)
        return guest

    def open_device(self, guest: Guest, *, has_kvm: bool = True) -> None:
        """Open the device. EINVAL without KVM; EPERM if the virtual machine has another vfio-ap device."""
        mdev = guest.mdev
        if mdev is None or not has_kvm:
            raise refuse(errno.EINVAL)
        assert self.vfio_ap is not None
        for other in self.vfio_ap.mdevs.values():
            if other is not mdev and other.guest and other.guest.name == guest.name:
                raise refuse(errno.EPERM)
        mdev.guest = guest

    def close(self, guest: Guest) -> None:
        """The guest ends or lets go. A removal that waited for it ends too."""
        self.opened.remove(guest)
        mdev = guest.mdev
        if mdev is None or self.vfio_ap is None:
            return
        if mdev.guest is guest:
            mdev.guest = None
            self.reset_queues(mdev)
        mdev.group_user = None
        self.vfio_ap.last_user_gone(mdev)

    def reset_device(self, guest: Guest) -> None:
        """VFIO_DEVICE_RESET. EIO if a queue did not come back normal."""
        if guest.mdev is None or guest.mdev.guest is not guest:
            raise refuse(errno.EINVAL)
        if any(answer is not Answer.NORMAL for answer in self.reset_queues(guest.mdev)):
            raise refuse(errno.EIO)

    def reset_queues(self, mdev: Mdev) -> list[Answer]:
        assert self.vfio_ap is not None
        return [self.vfio_ap.reset(queue) for queue in self.vfio_ap.queues_of(mdev.matrix)]

    def masks_changed(self, mdev: Mdev) -> None:
        """The AP masks of a running guest were written."""
        guest = mdev.guest
        if guest and self._generation.config_change_event and guest.listens_to_changes:
            guest.changes += 1
            self._tell(guest, Notice.CONFIG_CHANGED)

    def request_release(self, mdev: Mdev) -> None:
        """vfio's request callback: on removal, every 10 s while it waits, and at each signal."""
        guest = mdev.guest
        notice = self._generation.removal_notice
        if guest is None or notice is RemovalNotice.NOTHING:
            return
        if notice is RemovalNotice.MASKS_AND_REQUEST:
            self.masks_changed(mdev)
        if guest.listens_to_requests:
            guest.requests += 1
            self._tell(guest, Notice.REQUEST)

    def _tell(self, guest: Guest, notice: Notice) -> None:
        for callback in tuple(self._callbacks):
            callback(guest, notice)
