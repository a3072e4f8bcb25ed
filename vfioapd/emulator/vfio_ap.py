# SPDX-License-Identifier: Apache-2.0
"""The vfio_ap driver: mdevs, the rules of assignment, the filter, and its part in a scan."""

from __future__ import annotations

import errno
import heapq
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from .devices import Device, Driver, Queue
from .machine import Answer
from .mdev import EMPTY, Matrix, Mdev
from .numbers import bits, parse_ap_config, parse_unsigned, refuse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .bus import Bus
    from .events import Events
    from .guests import Guests
    from .scan import Qci

MAX_INSTANCES = 65536
TYPE_NAME = "vfio_ap-passthrough"

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class VfioAp:
    """State of the loaded module. All methods need the kernel's lock."""

    def __init__(self, bus: Bus, events: Events, guests: Guests, qci: Qci) -> None:
        self._bus = bus
        self._events = events
        self._guests = guests
        self._generation = bus.generation
        self._machine = bus.machine
        self._host = qci  # its own copy: all zero on a machine without QCI
        self.mdevs: dict[str, Mdev] = {}
        self._next_group = 0
        self._free_groups: list[int] = []  # a heap: the lowest free number is taken
        self.driver = Driver(
            "vfio_ap",
            "vfio_ap",
            for_queues=True,
            is_default=False,
            probe=self._probe_queue,
            remove=self._remove_queue,
        )

    # --- mdevs come and go

    @property
    def available_instances(self) -> int:
        return MAX_INSTANCES - len(self.mdevs)

    def create(self, text: str) -> None:
        """A write to `create`: 36 characters of UUID and at most one more of any kind."""
        if len(text) not in (36, 37) or not _UUID.fullmatch(text[:36]):
            raise refuse(errno.EINVAL)
        uuid = text[:36].lower()
        if uuid in self.mdevs:
            raise refuse(errno.EEXIST)
        if not self.available_instances:
            raise refuse(errno.EUSERS)
        mdev = Mdev(uuid, self._free_group(), self._limits())
        self.mdevs[uuid] = mdev
        self._events.emit("add", mdev.devpath, "mdev")
        self._events.emit("add", f"/devices/virtual/vfio/{mdev.group}", "vfio", _group_keys(mdev))
        self._events.emit("add", f"{mdev.devpath}/vfio-dev/vfio{mdev.group}", "vfio-dev")
        self._events.emit("bind", mdev.devpath, "mdev", [("DRIVER", "vfio_ap_mdev")])

    def _free_group(self) -> int:
        if self._free_groups:
            return heapq.heappop(self._free_groups)
        self._next_group += 1
        return self._next_group - 1

    def _limits(self) -> Matrix:
        machine = self._machine
        if machine.has_apxa:
            return Matrix(machine.max_adapter, machine.max_domain, machine.max_domain)
        return Matrix(63, 15, 15)

    def remove(self, mdev: Mdev, text: str) -> bool:
        """A write to `remove`. True when the writer has to wait for the last user (`mdev.gone`)."""
        try:
            wanted = parse_unsigned(text)
        except OSError:
            raise refuse(errno.EINVAL) from None
        if not wanted:
            return False
        mdev.is_leaving = True
        if mdev.guest is None:
            self.finish_removal(mdev)
            return False
        self._wait_for_user(mdev)
        return True

    def finish_removal(self, mdev: Mdev) -> None:
        """The last user is gone: release everything."""
        if mdev.is_bound:
            self._unbind_mdev(mdev)
        del self.mdevs[mdev.uuid]
        self._events.emit("remove", mdev.devpath, "mdev")
        mdev.gone.set()

    def _vfio_dev_gone(self, mdev: Mdev) -> None:
        mdev.has_vfio_dev = False
        self._events.emit("remove", f"{mdev.devpath}/vfio-dev/vfio{mdev.group}", "vfio-dev")

    def _unbind_mdev(self, mdev: Mdev) -> None:
        if mdev.has_vfio_dev:
            self._vfio_dev_gone(mdev)
        self._events.emit("remove", f"/devices/virtual/vfio/{mdev.group}", "vfio", _group_keys(mdev))
        self._guests.reset_queues(mdev)
        mdev.is_bound = False
        mdev.matrix = mdev.guest_matrix = mdev.pending = EMPTY
        heapq.heappush(self._free_groups, mdev.group)
        self._events.emit("unbind", mdev.devpath, "mdev")

    def unbind_driver(self, uuid: str) -> Mdev | None:
        """A write to vfio_ap_mdev/unbind. ENODEV if it has no such mdev; the mdev if the writer must wait."""
        mdev = self.mdevs.get(uuid)
        if mdev is None or not mdev.has_files:
            raise refuse(errno.ENODEV)
        if mdev.guest is None:
            self._unbind_mdev(mdev)
            return None
        mdev.is_unbinding = True
        self._wait_for_user(mdev)
        return mdev

    def _wait_for_user(self, mdev: Mdev) -> None:
        if self._generation.vfio_dev_goes_first:
            self._vfio_dev_gone(mdev)
        self._guests.request_release(mdev)

    def last_user_gone(self, mdev: Mdev) -> None:
        """What waited for the guest goes on."""
        if mdev.is_leaving:
            self.finish_removal(mdev)
        elif mdev.is_unbinding:
            self._unbind_mdev(mdev)
            mdev.gone.set()

    # --- assignment

    def assign_adapter(self, mdev: Mdev, text: str) -> None:
        adapter = _number(text, mdev.limits.apm)
        if not mdev.matrix.apm >> adapter & 1:
            self._assign(mdev, replace(mdev.matrix, apm=mdev.matrix.apm | 1 << adapter))

    def assign_domain(self, mdev: Mdev, text: str) -> None:
        domain = _number(text, mdev.limits.aqm)
        if not mdev.matrix.aqm >> domain & 1:
            self._assign(mdev, replace(mdev.matrix, aqm=mdev.matrix.aqm | 1 << domain))

    def _assign(self, mdev: Mdev, matrix: Matrix) -> None:
        self._validate(mdev, matrix)
        mdev.matrix = matrix
        self._filter_and_tell(mdev)

    def unassign_adapter(self, mdev: Mdev, text: str) -> None:
        adapter = _number(text, mdev.limits.apm)
        self._unplug(mdev, Matrix(apm=1 << adapter))

    def unassign_domain(self, mdev: Mdev, text: str) -> None:
        domain = _number(text, mdev.limits.aqm)
        self._unplug(mdev, Matrix(aqm=1 << domain))

    def assign_control_domain(self, mdev: Mdev, text: str) -> None:
        domain = _number(text, mdev.limits.adm)
        if mdev.matrix.adm >> domain & 1:
            return
        mdev.matrix = replace(mdev.matrix, adm=mdev.matrix.adm | 1 << domain)
        if self._filter_control_domains(mdev):
            self._guests.masks_changed(mdev)

    def unassign_control_domain(self, mdev: Mdev, text: str) -> None:
        bit = 1 << _number(text, mdev.limits.adm)
        mdev.matrix = replace(mdev.matrix, adm=mdev.matrix.adm & ~bit)
        if mdev.guest_matrix.adm & bit:
            mdev.guest_matrix = replace(mdev.guest_matrix, adm=mdev.guest_matrix.adm & ~bit)
            self._guests.masks_changed(mdev)

    def write_ap_config(self, mdev: Mdev, text: str) -> None:
        """The whole matrix in one write. Removed things go first, so a guest sees several updates."""
        new = Matrix(*parse_ap_config(text))
        self._validate(mdev, new)
        if _highest(new.apm) > mdev.limits.apm or _highest(new.aqm) > mdev.limits.aqm:
            raise refuse(errno.ENODEV)
        if _highest(new.adm) > mdev.limits.adm:
            raise refuse(errno.ENODEV)
        old = mdev.matrix
        self._unplug(mdev, Matrix(apm=old.apm & ~new.apm))
        self._unplug(mdev, Matrix(aqm=old.aqm & ~new.aqm))
        mdev.matrix = new
        self._filter_and_tell(mdev, control_domains=True)

    def _validate(self, mdev: Mdev, matrix: Matrix) -> None:
        if self._is_host_owned(matrix):
            raise refuse(errno.EADDRNOTAVAIL)
        for other in self.mdevs.values():
            if other is not mdev and other.matrix.shares_queues_with(matrix.apm, matrix.aqm):
                raise refuse(errno.EADDRINUSE)

    def _is_host_owned(self, matrix: Matrix) -> bool:
        """Whether any APQN of the matrix belongs to the default drivers."""
        bus = self._bus
        overridden = self._overridden(matrix) if bus.overrides else {}
        if any(is_default for is_default in overridden.values()):
            return True
        apm, aqm = matrix.apm & bus.apmask, matrix.aqm & bus.aqmask
        pairs = apm.bit_count() * aqm.bit_count()
        exempt = sum(1 for adapter, domain in overridden if apm >> adapter & 1 and aqm >> domain & 1)
        return pairs > exempt

    def _overridden(self, matrix: Matrix) -> dict[tuple[int, int], bool]:
        """Bound queues of the matrix with an override: does a default driver have them?"""
        found = {}
        for adapter in bits(matrix.apm):
            for domain in bits(matrix.aqm):
                queue = self._bus.queue(adapter, domain)
                if queue and queue.override is not None and queue.driver:
                    found[adapter, domain] = queue.driver.is_default
        return found

    def _unplug(self, mdev: Mdev, gone: Matrix) -> None:
        """Take adapters or domains out of the matrix and the guest's set; no new filter."""
        matrix, plugged = mdev.matrix, mdev.guest_matrix
        mdev.matrix = replace(matrix, apm=matrix.apm & ~gone.apm, aqm=matrix.aqm & ~gone.aqm)
        left = replace(plugged, apm=plugged.apm & ~gone.apm, aqm=plugged.aqm & ~gone.aqm)
        if left == plugged:
            return
        mdev.guest_matrix = left
        self._guests.masks_changed(mdev)
        for queue in self.queues_of(plugged):
            if not left.holds(queue.adapter, queue.domain):
                self.reset(queue)

    # --- the filter: what of the matrix a guest gets

    def _filter_and_tell(self, mdev: Mdev, *, control_domains: bool = False) -> None:
        before = mdev.guest_matrix
        changed = self._filter(mdev)
        if control_domains and self._filter_control_domains(mdev):
            changed = True
        if not changed:
            return
        self._guests.masks_changed(mdev)
        if self._generation.filtered_queues_are_reset:
            lost = before.apm & mdev.matrix.apm & ~mdev.guest_matrix.apm
            for queue in self.queues_of(replace(mdev.matrix, apm=lost)):
                self.reset(queue)

    def _filter(self, mdev: Mdev) -> bool:
        """One queue that is missing or not passable costs the guest its adapter."""
        before = mdev.guest_matrix
        aqm = mdev.matrix.aqm & self._host.usage
        apm = 0
        domains = list(bits(aqm))
        for adapter in bits(mdev.matrix.apm & self._host.adapters):
            if all(self._is_passable(adapter, domain) for domain in domains):
                apm |= 1 << adapter
        mdev.guest_matrix = replace(before, apm=apm, aqm=aqm)
        return mdev.guest_matrix != before

    def _is_passable(self, adapter: int, domain: int) -> bool:
        queue = self._bus.queue(adapter, domain)
        if queue is None or queue.driver is not self.driver:
            return False
        if self._generation.filter_passes_unavailable:
            return queue.reset_result in (Answer.NORMAL, Answer.DECONFIGURED, Answer.CHECKSTOPPED)
        return queue.reset_result == Answer.NORMAL

    def _filter_control_domains(self, mdev: Mdev) -> bool:
        before = mdev.guest_matrix
        mdev.guest_matrix = replace(before, adm=mdev.matrix.adm & self._host.control)
        return mdev.guest_matrix != before

    # --- queues

    def status_of(self, queue: Queue) -> str:
        """Text of a queue's `status` file."""
        mdev = self._owner(queue)
        if mdev is None:
            return "unassigned"
        plugged = mdev.guest and mdev.guest_matrix.holds(queue.adapter, queue.domain)
        return "in use" if plugged else "assigned"

    def _owner(self, queue: Queue) -> Mdev | None:
        for mdev in self.mdevs.values():
            if mdev.matrix.holds(queue.adapter, queue.domain):
                return mdev
        return None

    def queues_of(self, matrix: Matrix) -> Iterator[Queue]:
        """The queues of a matrix that vfio_ap has."""
        for adapter in bits(matrix.apm):
            for domain in bits(matrix.aqm):
                queue = self._bus.queue(adapter, domain)
                if queue and queue.driver is self.driver:
                    yield queue

    def reset(self, queue: Queue) -> Answer:
        answer = self._machine.reset_queue(queue.adapter, queue.domain)
        queue.reset_result = answer
        return answer

    def in_use(self, adapters: int, domains: int) -> bool:
        """The callback that protects assigned APQNs from mask writes."""
        return any(mdev.matrix.shares_queues_with(adapters, domains) for mdev in self.mdevs.values())

    def _probe_queue(self, device: Device) -> None:
        assert isinstance(device, Queue)
        device.reset_result = Answer.NORMAL
        mdev = self._owner(device)
        # A scan that brings what the mdev waits for is filtered once, at its end.
        if mdev and not (mdev.pending.apm or mdev.pending.aqm):
            self._filter_and_tell(mdev)

    def _remove_queue(self, device: Device) -> None:
        assert isinstance(device, Queue)
        mdev = self._owner(device)
        if mdev is None or not mdev.guest_matrix.holds(device.adapter, device.domain):
            return
        lost = replace(mdev.guest_matrix, apm=1 << device.adapter)
        mdev.guest_matrix = replace(mdev.guest_matrix, apm=mdev.guest_matrix.apm & ~lost.apm)
        self._guests.masks_changed(mdev)
        # Linux 6.1 resets the queue that leaves and none of its neighbours.
        if self._generation.filtered_queues_are_reset:
            for queue in self.queues_of(lost):
                self.reset(queue)

    # --- the host's configuration changes

    def on_config_changed(self, new: Qci, old: Qci) -> None:
        """Before devices move: what is gone leaves the guests, what is new is remembered."""
        gone = Matrix(old.adapters & ~new.adapters, old.usage & ~new.usage, old.control & ~new.control)
        for mdev in self.mdevs.values():
            plugged = mdev.guest_matrix
            left = Matrix(plugged.apm & ~gone.apm, plugged.aqm & ~gone.aqm, plugged.adm & ~gone.adm)
            if left != plugged:
                mdev.guest_matrix = left
                self._guests.masks_changed(mdev)
            mdev.pending = Matrix(
                mdev.matrix.apm & new.adapters & ~old.adapters,
                mdev.matrix.aqm & new.usage & ~old.usage,
                mdev.matrix.adm & new.control & ~old.control,
            )
        self._host = new

    def on_scan_complete(self) -> None:
        for mdev in self.mdevs.values():
            pending, mdev.pending = mdev.pending, EMPTY
            changed = bool(pending.apm or pending.aqm) and self._filter(mdev)
            if pending.adm and self._filter_control_domains(mdev):
                changed = True
            if changed:
                self._guests.masks_changed(mdev)


def _number(text: str, limit: int) -> int:
    number = parse_unsigned(text)
    if number > limit:
        raise refuse(errno.ENODEV)
    return number


def _highest(mask: int) -> int:
    return mask.bit_length() - 1


def _group_keys(mdev: Mdev) -> Iterable[tuple[str, str]]:
    return (("MAJOR", "251"), ("MINOR", str(mdev.group)), ("DEVNAME", f"vfio/{mdev.group}"))
