# SPDX-License-Identifier: Apache-2.0
"""The devices of the AP bus, cards and queues, and the drivers that bind to them."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from .machine import Mode, mode_of
from .numbers import refuse

if TYPE_CHECKING:
    from collections.abc import Callable


class Device:
    """What driver core sees: a name, a place in the tree, at most one driver."""

    devtype: ClassVar[str] = ""
    is_queue: ClassVar[bool] = False

    def __init__(self, name: str, devpath: str) -> None:
        self.name = name
        self.devpath = devpath
        self.driver: Driver | None = None
        self.order = 0  # of registration with the bus

    def bus_keys(self, action: str) -> list[tuple[str, str]]:
        raise NotImplementedError

    def event_keys(self, action: str) -> list[tuple[str, str]]:
        """Keys of a uevent, in the kernel's order, after the event's own."""
        keys = [("DEVTYPE", self.devtype)]
        # The driver is gone already when unbind is sent.
        if self.driver and action not in ("unbind", "remove"):
            keys.append(("DRIVER", self.driver.name))
        return keys + self.bus_keys(action)


@dataclass(slots=True)
class ZcryptCard:
    """What the card driver keeps while it is bound; its queues in the order in which they came."""

    online: bool = True
    queues: dict[str, Queue] = field(default_factory=dict)


@dataclass(slots=True)
class ZcryptQueue:
    """What the queue driver keeps while it is bound."""

    card: ZcryptCard
    online: bool = True


class Card(Device):
    devtype = "ap_card"

    def __init__(self, adapter: int, hwtype: int, functions: int, depth: int, message_units: int) -> None:
        super().__init__(f"card{adapter:02x}", f"/devices/ap/card{adapter:02x}")
        self.adapter = adapter
        self.raw_hwtype = hwtype
        self.hwtype = min(hwtype, 14)  # newer hardware is driven as the newest type known
        self.functions = functions
        self.depth = depth
        self.message_units = message_units
        self.config = True
        self.chkstop = False
        self.request_count = 0
        self.queues: dict[int, Queue] = {}  # by domain, in the order of registration
        self.queue_names: dict[str, Queue] = {}
        self.zcrypt: ZcryptCard | None = None

    @property
    def mode(self) -> Mode | None:
        return mode_of(self.functions)

    def bus_keys(self, action: str) -> list[tuple[str, str]]:
        keys = [("DEV_TYPE", f"{self.hwtype:04X}"), ("MODALIAS", f"ap:t{self.hwtype:02X}")]
        if action == "unbind":
            del keys[1]  # kobject_uevent drops the modalias there, lest a module be loaded again
        if self.mode:
            keys.append(("MODE", self.mode.value))
        return keys


class Queue(Device):
    devtype = "ap_queue"
    is_queue = True

    def __init__(self, card: Card, domain: int) -> None:
        name = f"{card.adapter:02x}.{domain:04x}"
        super().__init__(name, f"{card.devpath}/{name}")
        self.card = card
        self.adapter = card.adapter
        self.domain = domain
        self.config = True
        self.chkstop = False
        self.operating = False
        self.interrupt = False  # registered once; the reset at unbinding does not clear the flag
        self.override: str | None = None
        self.request_count = 0
        self.zcrypt: ZcryptQueue | None = None
        self.reset_result = 0  # of the last reset by vfio_ap since it was bound

    def start(self) -> None:
        """The bus makes the queue operating: reset, interrupt registered."""
        self.operating = self.interrupt = True

    def bus_keys(self, action: str) -> list[tuple[str, str]]:
        return [("MODE", self.card.mode.value)] if self.card.mode else []


def _accept(_device: Device) -> None:
    pass


@dataclass(eq=False, slots=True)
class Driver:
    """A driver of the AP bus. `probe` refuses with OSError; both hooks run under the kernel's lock."""

    name: str
    module: str
    for_queues: bool
    is_default: bool
    probe: Callable[[Device], None] = _accept
    remove: Callable[[Device], None] = _accept
    devices: dict[str, Device] = field(default_factory=dict)  # in the order of binding

    def matches(self, device: Device) -> bool:
        return device.is_queue == self.for_queues


def zcrypt_drivers() -> tuple[Driver, Driver]:
    """The two drivers of zcrypt_cex4, in the order in which it registers them."""
    card = Driver(
        "cex4card",
        "zcrypt_cex4",
        for_queues=False,
        is_default=True,
        probe=_probe_zcrypt_card,
        remove=_remove_zcrypt_card,
    )
    queue = Driver(
        "cex4queue",
        "zcrypt_cex4",
        for_queues=True,
        is_default=True,
        probe=_probe_zcrypt_queue,
        remove=_remove_zcrypt_queue,
    )
    return card, queue


def _probe_zcrypt_card(device: Device) -> None:
    assert isinstance(device, Card)
    if device.mode is None:
        raise refuse(errno.ENODEV)
    device.zcrypt = ZcryptCard()


def _remove_zcrypt_card(device: Device) -> None:
    assert isinstance(device, Card)
    device.zcrypt = None


def _probe_zcrypt_queue(device: Device) -> None:
    assert isinstance(device, Queue)
    card = device.card.zcrypt
    if card is None:
        # zcrypt_queue_register finds no driver data at the card.
        raise refuse(errno.EINVAL)
    device.zcrypt = ZcryptQueue(card)
    card.queues[device.name] = device
    device.start()


def _remove_zcrypt_queue(device: Device) -> None:
    assert isinstance(device, Queue)
    if device.zcrypt:
        device.zcrypt.card.queues.pop(device.name, None)
    device.zcrypt = None
