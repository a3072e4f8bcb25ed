# SPDX-License-Identifier: Apache-2.0
"""The rooms put together: one snapshot of everything, and each step to the room that carries it out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from vfioapd.backend.bus import glance, is_complete, queue_names, read_devices, read_snapshot
from vfioapd.backend.details import QueueDetails
from vfioapd.backend.kernel_steps import KernelSteps
from vfioapd.daemon.pulse import Pulse
from vfioapd.plan.steps import Plug, Unplug, WriteFile
from vfioapd.store.file_steps import FileSteps
from vfioapd.store.mdevctl import read_folder
from vfioapd.virt.awake import DAEMONS, libvirt_to_start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vfioapd.backend.sysfs import Sysfs
    from vfioapd.daemon.places import Places
    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.definition import Desired
    from vfioapd.domain.snapshot import Guest, Mdev, QueueDetail, Snapshot
    from vfioapd.plan.doctor_facts import GuestFacts
    from vfioapd.plan.steps import GuestStep, KernelStep, Step


class GuestRoom(Protocol):
    """What is needed of libvirt; vfioapd.virt.guests.Guests is it."""

    def read(self) -> tuple[Guest, ...] | None: ...
    def definitions(self) -> tuple[GuestFacts, ...] | None: ...
    def versions(self) -> tuple[int | None, int | None]: ...
    def read_if_connected(self) -> tuple[Guest, ...] | None: ...
    def execute(self, step: GuestStep) -> None: ...
    def holds(self, step: GuestStep) -> bool: ...


class LiveHost:
    """One host. Every method blocks; changes come from one thread."""

    def __init__(self, sysfs: Sysfs, places: Places, guests: GuestRoom) -> None:
        self.pulse = Pulse()
        self._sysfs = sysfs
        self._details = QueueDetails(sysfs)
        self._places = places
        self._guests = guests
        self._kernel = KernelSteps(sysfs)
        self._files = FileSteps(definitions=places.definitions, staging=places.host_file.parent)

    def keep_details(self, changed: Callable[[], set[str] | None]) -> None:
        """Read again only the details of queues that ``changed`` names; see backend.details."""
        self._details = QueueDetails(self._sysfs, changed)

    def snapshot(self, desired: Desired) -> Snapshot:
        """Bus, devices, guests, and the definitions in mdevctl's folder that are not ours."""
        folder = read_folder(self._places.definitions, ours=desired.file_names())
        foreign = tuple(one for uuid, one in folder.definitions.items() if desired.by_uuid(uuid) is None)
        guests = self._guests.read()
        found = replace(self.bus(), guests=guests, foreign_definitions=foreign)
        return found if guests is not None else replace(found, libvirt=self._libvirt())

    def _libvirt(self) -> str:
        return libvirt_to_start(self._places.root) or DAEMONS[0]

    def guests(self) -> tuple[Guest, ...] | None:
        """libvirt's guests; None while there is no connection to it."""
        return self._guests.read_if_connected()

    def bus(self) -> Snapshot:
        """The kernel's part alone."""
        self.pulse.beat()
        return read_snapshot(self._sysfs)

    def devices(self) -> tuple[Mdev, ...]:
        """The devices alone, with what they give to guests."""
        self.pulse.beat()
        return read_devices(self._sysfs)

    def is_complete(self) -> bool:
        """Whether the bus has found all it can, and every queue its driver; see backend.bus.is_complete."""
        self.pulse.beat()
        return is_complete(self._sysfs)

    def queue_names(self) -> frozenset[str]:
        """The queues that the bus has found."""
        self.pulse.beat()
        return queue_names(self._sysfs)

    def glance(self, earlier: Snapshot) -> Snapshot | None:
        """What steps change in the kernel's part, over an earlier snapshot; see backend.bus.glance."""
        self.pulse.beat()
        return glance(self._sysfs, earlier)

    def details(self, snapshot: Snapshot) -> dict[Apqn, QueueDetail]:
        """What only each queue's own files tell. For the thread that reads."""
        return self._details.of(snapshot)

    def guest_definitions(self) -> tuple[GuestFacts, ...] | None:
        """What guests' definitions say of AP; None without libvirt."""
        return self._guests.definitions()

    def libvirt_versions(self) -> tuple[int | None, int | None]:
        """libvirt's and QEMU's; None where they are not told."""
        return self._guests.versions()

    def execute(self, step: Step) -> None:
        """Make the change."""
        self.pulse.beat()
        match step:
            case WriteFile():
                self._files.execute(step)
            case Plug() | Unplug():
                self._guests.execute(step)
            case _:
                self._kernel.execute(step)

    def execute_each(self, steps: Sequence[KernelStep]) -> Iterator[KernelStep]:
        """Make changes in turn that the kernel may be given at once."""
        self.pulse.beat()
        return self._kernel.execute_each(steps)

    def holds(self, step: Step) -> bool:
        """Whether the host is now as the step leaves it."""
        self.pulse.beat()
        match step:
            case WriteFile():
                return self._files.holds(step)
            case Plug() | Unplug():
                return self._guests.holds(step)
            case _:
                return self._kernel.holds(step)
