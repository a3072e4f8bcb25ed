# SPDX-License-Identifier: Apache-2.0
"""The AP bus: which devices exist, which driver has them, and the two masks that decide it.

Cost of an operation depends on the queues it touches: queues are indexed by adapter and by domain, and
those whose driver does not fit the masks are remembered.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .devices import Card, Device, Driver, Queue
from .generation import BindingsEvent, Generation
from .numbers import FULL_MASK, bits, format_mask, parse_mask, refuse

if TYPE_CHECKING:
    from .events import Events
    from .hostfile import BootParameters
    from .machine import Machine

InUse = Callable[[int, int], bool]


class Bus:
    """State of /sys/bus/ap and /sys/devices/ap. All methods need the kernel's lock."""

    def __init__(
        self, generation: Generation, machine: Machine, events: Events, boot: BootParameters
    ) -> None:
        self.generation = generation
        self.machine = machine
        self.events = events
        self.apmask = self._boot_mask(boot.apmask)
        self.aqmask = self._boot_mask(boot.aqmask)
        self.masks_in_use = False  # set by mask writes only, never by boot parameters
        self.overrides = 0  # grows and falls with writes to driver_override, not with devices
        self.autoprobe = True
        self.cards: dict[int, Card] = {}
        self.card_names: dict[str, Card] = {}
        self.devices: dict[str, Device] = {}
        self.drivers: dict[str, Driver] = {}
        self.by_domain: dict[int, dict[int, Queue]] = {}
        self.queue_count = 0
        self.bound_count = 0
        self.scans = 0
        self.complete_count = 0
        self.in_use: InUse | None = None  # vfio_ap's callback while it is loaded
        self._armed = True
        self._registered = 0
        self.misfits: dict[str, Queue] = {}

    def _boot_mask(self, parameter: str | None) -> int:
        if parameter is None:
            return FULL_MASK
        try:
            return parse_mask(parameter, 0, wraps=self.generation.mask_numbers_wrap)
        except OSError:
            return 0  # ap_perms_init says nothing and leaves the cleared mask

    # --- masks

    def is_host_owned(self, adapter: int, domain: int) -> bool:
        """True when both masks leave this APQN to the default drivers."""
        return bool(self.apmask >> adapter & 1 and self.aqmask >> domain & 1)

    def write_apmask(self, text: str) -> None:
        new = self._new_mask(text, self.apmask)
        if new == self.apmask:
            return
        others = FULL_MASK if self.generation.in_use_ignores_other_mask else self.aqmask
        self._refuse_used(new & ~self.apmask, others)
        touched = [q for a in bits(new ^ self.apmask) for q in self._queues_of_adapter(a)]
        self.apmask = new
        self._masks_changed(touched)
        self._bus_event(("APMASK", format_mask(new) + "\n"))

    def write_aqmask(self, text: str) -> None:
        new = self._new_mask(text, self.aqmask)
        if new == self.aqmask:
            return
        others = FULL_MASK if self.generation.in_use_ignores_other_mask else self.apmask
        self._refuse_used(others, new & ~self.aqmask)
        touched = [q for d in bits(new ^ self.aqmask) for q in self.by_domain.get(d, {}).values()]
        self.aqmask = new
        self._masks_changed(touched)
        self._bus_event(("AQMASK", format_mask(new) + "\n"))

    def _new_mask(self, text: str, current: int) -> int:
        if self.overrides:
            raise refuse(errno.EINVAL)
        return parse_mask(text, current, wraps=self.generation.mask_numbers_wrap)

    def _refuse_used(self, adapters: int, domains: int) -> None:
        if adapters and domains and self.in_use and self.in_use(adapters, domains):
            raise refuse(errno.EBUSY)

    def _queues_of_adapter(self, adapter: int) -> Iterable[Queue]:
        card = self.cards.get(adapter)
        return card.queues.values() if card else ()

    def _masks_changed(self, touched: list[Queue]) -> None:
        self.masks_in_use = self.apmask != FULL_MASK or self.aqmask != FULL_MASK
        for queue in touched:
            self._note_fit(queue)
        for queue in sorted(self.misfits.values(), key=lambda queue: queue.order):
            self._reprobe(queue)

    def _note_fit(self, queue: Queue) -> None:
        if queue.driver:
            in_default_pool = queue.driver.is_default
        else:
            in_default_pool = self.generation.unbound_counts_as_default
        if in_default_pool == self.is_host_owned(queue.adapter, queue.domain):
            self.misfits.pop(queue.name, None)
        else:
            self.misfits[queue.name] = queue

    def _reprobe(self, queue: Queue) -> None:
        if queue.driver:
            self.detach(queue)
        self.probe(queue)

    # --- drivers

    def register_driver(self, driver: Driver) -> None:
        """A module brings a driver: it gets every unbound device that it may have."""
        self.drivers[driver.name] = driver
        if self.autoprobe:
            for device in list(self.devices.values()):
                if device.driver is None and driver.matches(device):
                    self._try_attach(driver, device)
        self.events.emit("add", f"/bus/ap/drivers/{driver.name}", "drivers")

    def unregister_driver(self, driver: Driver) -> None:
        """A module goes: its devices are released, last bound first."""
        for device in reversed(list(driver.devices.values())):
            self.detach(device)
        del self.drivers[driver.name]
        self.events.emit("remove", f"/bus/ap/drivers/{driver.name}", "drivers")

    def probe(self, device: Device) -> None:
        """Offer an unbound device to the drivers in order of registration; nobody may want it."""
        for driver in list(self.drivers.values()):
            if driver.matches(device) and self._try_attach(driver, device):
                return

    def _try_attach(self, driver: Driver, device: Device) -> bool:
        try:
            self.attach(driver, device)
        except OSError:
            return False
        return True

    def attach(self, driver: Driver, device: Device) -> None:
        """Bind by ap_device_probe's rules. ENODEV when the device is not this driver's to have."""
        if isinstance(device, Queue) and not self._may_have(driver, device):
            raise refuse(errno.ENODEV)
        self._armed = True
        device.driver = driver
        try:
            driver.probe(device)
        except OSError:
            device.driver = None
            raise
        driver.devices[device.name] = device
        if isinstance(device, Queue):
            self.bound_count += 1
            self._note_fit(device)
        if self.generation.bindings_event is BindingsEvent.EVERY_PROBE:
            self.check_bindings()
        self.device_event("bind", device)

    def _may_have(self, driver: Driver, queue: Queue) -> bool:
        if queue.override is not None:
            return queue.override == driver.name
        return driver.is_default == self.is_host_owned(queue.adapter, queue.domain)

    def detach(self, device: Device) -> None:
        """Unbind; the bus resets the queue."""
        driver = device.driver
        assert driver is not None
        driver.remove(device)
        device.driver = None
        driver.devices.pop(device.name, None)
        if isinstance(device, Queue):
            self.machine.reset_queue(device.adapter, device.domain)
            device.operating = False
            self.bound_count -= 1
            self._note_fit(device)
        self.device_event("unbind", device)

    def bind_by_name(self, driver: Driver, name: str) -> None:
        """A write to the driver's bind file."""
        device = self.devices.get(device_name(name))
        if device is None or not driver.matches(device):
            raise refuse(errno.ENODEV)
        if device.driver:
            raise refuse(errno.EBUSY)
        self.attach(driver, device)

    def unbind_by_name(self, driver: Driver, name: str) -> None:
        """A write to the driver's unbind file."""
        device = self.devices.get(device_name(name))
        if device is None or device.driver is not driver:
            raise refuse(errno.ENODEV)
        self.detach(device)

    def probe_by_name(self, name: str) -> None:
        """A write to drivers_probe."""
        device = self.devices.get(device_name(name))
        if device is None:
            raise refuse(errno.ENODEV)
        if device.driver is None:
            self.probe(device)

    def write_override(self, queue: Queue, text: str) -> None:
        """A write to driver_override. It never rebinds by itself."""
        if self.masks_in_use or len(text) >= 4095:
            raise refuse(errno.EINVAL)
        name = text.partition("\0")[0].partition("\n")[0]
        self.overrides += bool(name) - (queue.override is not None)
        queue.override = name or None

    # --- devices

    def add(self, device: Device) -> None:
        """Register a device: `add`, then the drivers are tried."""
        self._registered += 1
        device.order = self._registered
        self.devices[device.name] = device
        if isinstance(device, Queue):
            device.card.queues[device.domain] = device.card.queue_names[device.name] = device
            self.by_domain.setdefault(device.domain, {})[device.adapter] = device
            self.queue_count += 1
            self._note_fit(device)
        elif isinstance(device, Card):
            self.cards[device.adapter] = self.card_names[device.name] = device
        self.device_event("add", device)
        if self.autoprobe:
            self.probe(device)

    def remove(self, device: Device) -> None:
        """Unregister a device: `unbind` if it was bound, then `remove`."""
        if device.driver:
            self.detach(device)
        del self.devices[device.name]
        if isinstance(device, Queue):
            del device.card.queues[device.domain], device.card.queue_names[device.name]
            del self.by_domain[device.domain][device.adapter]
            self.queue_count -= 1
            self.misfits.pop(device.name, None)
        elif isinstance(device, Card):
            del self.cards[device.adapter], self.card_names[device.name]
        self.device_event("remove", device)

    def queue(self, adapter: int, domain: int) -> Queue | None:
        card = self.cards.get(adapter)
        return card.queues.get(domain) if card else None

    # --- events

    def device_event(self, action: str, device: Device, *own: tuple[str, str]) -> None:
        self.events.emit(action, device.devpath, "ap", [*own, *device.event_keys(action)])

    def _bus_event(self, *own: tuple[str, str]) -> None:
        self.events.emit("change", "/devices/ap", "ap", own)

    def rearm_bindings(self) -> None:
        """Something new came: BINDINGS=complete is due again once everything is bound."""
        self._armed = True

    def check_bindings(self) -> None:
        """Send BINDINGS=complete if it is due."""
        if not self._armed or not self.scans or self.bound_count != self.queue_count:
            return
        self._armed = False
        self.complete_count += 1
        self._bus_event(("BINDINGS", "complete"), ("COMPLETECOUNT", str(self.complete_count)))

    def drivers_registered(self) -> None:
        """A module has registered its drivers."""
        if self.generation.bindings_event is BindingsEvent.REARMED:
            self.check_bindings()

    def scan_finished(self) -> None:
        """Count a scan; the first is announced."""
        self.scans += 1
        if self.scans == 1:
            self._bus_event(("INITSCAN", "done"))
        if self.generation.bindings_event is BindingsEvent.REARMED or self.scans == 1:
            self.check_bindings()


def device_name(text: str) -> str:
    """What sysfs_streq compares with: one trailing newline does not count."""
    return text.partition("\0")[0].removesuffix("\n")
