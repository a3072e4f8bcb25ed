# SPDX-License-Identifier: Apache-2.0
"""Loading and unloading zcrypt_cex4 and vfio_ap, with what the kernel sends on the way."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .devices import Driver, zcrypt_drivers
from .numbers import refuse
from .vfio_ap import VfioAp

if TYPE_CHECKING:
    from .bus import Bus
    from .events import Events
    from .guests import Guests
    from .scan import Scanner

MATRIX = "/devices/vfio_ap/matrix"


class Modules:
    """Which modules are loaded. All methods need the kernel's lock."""

    def __init__(self, bus: Bus, scanner: Scanner, events: Events, guests: Guests) -> None:
        self._bus = bus
        self._scanner = scanner
        self._events = events
        self._guests = guests
        self._zcrypt: tuple[Driver, ...] = ()
        self.vfio_ap: VfioAp | None = None
        self.has_mdev = False
        self.has_vfio = False  # stays when vfio_ap goes

    @property
    def loaded(self) -> list[str]:
        """Names under /sys/module that belong to this world."""
        names = ["ap", "zcrypt"]
        if self._zcrypt:
            names.append("zcrypt_cex4")
        if self.vfio_ap:
            names += ["vfio_ap", "kvm"]
        if self.has_mdev:
            names.append("mdev")
        if self.has_vfio:
            names.append("vfio")
        return names

    def load(self, name: str) -> None:
        """modprobe NAME. Nothing happens if it is loaded; ENOENT unknown, ENODEV without AP instructions."""
        if not self._bus.machine.has_ap:
            raise refuse(errno.ENODEV)
        if name == "zcrypt_cex4":
            self._load_zcrypt()
        elif name == "vfio_ap":
            self._load_vfio_ap()
        else:
            raise refuse(errno.ENOENT)

    def unload(self, name: str, *, with_unused: bool = True) -> None:
        """modprobe -r NAME, or rmmod, which leaves what it was built on. EBUSY while a guest has an mdev."""
        if name == "zcrypt_cex4":
            self._unload_zcrypt()
        elif name == "vfio_ap":
            self._unload_vfio_ap()
            if with_unused:
                self._unload_mdev()
        elif name == "mdev":
            self._unload_mdev()
        else:
            raise refuse(errno.ENOENT)

    def _load_zcrypt(self) -> None:
        if self._zcrypt:
            return
        self._zcrypt = zcrypt_drivers()
        for driver in self._zcrypt:
            self._bus.register_driver(driver)
        self._bus.drivers_registered()
        self._events.emit("add", "/module/zcrypt_cex4", "module")

    def _unload_zcrypt(self) -> None:
        for driver in reversed(self._zcrypt):
            self._bus.unregister_driver(driver)
        if self._zcrypt:
            self._events.emit("remove", "/module/zcrypt_cex4", "module")
        self._zcrypt = ()

    def _load_vfio_ap(self) -> None:
        if self.vfio_ap:
            return
        self.has_vfio = True
        vfio_ap = VfioAp(self._bus, self._events, self._guests, self._scanner.query())
        emit = self._events.emit
        emit("add", "/module/kvm", "module")
        self._load_mdev()
        emit("add", "/bus/matrix", "bus")
        self.vfio_ap = self._guests.vfio_ap = vfio_ap
        emit("add", MATRIX, "matrix")
        emit("bind", MATRIX, "matrix", [("DRIVER", "vfio_ap")])
        emit("add", "/bus/matrix/drivers/vfio_ap", "drivers")
        self._bus.in_use = vfio_ap.in_use
        self._scanner.listener = vfio_ap
        self._bus.register_driver(vfio_ap.driver)
        self._bus.drivers_registered()
        emit("add", "/bus/mdev/drivers/vfio_ap_mdev", "drivers")
        emit("change", MATRIX, "matrix", [("MDEV_STATE", "registered"), ("DRIVER", "vfio_ap")])
        emit("add", "/module/vfio_ap", "module")

    def _unload_vfio_ap(self) -> None:
        vfio_ap = self.vfio_ap
        if vfio_ap is None:
            return
        if any(mdev.guest for mdev in vfio_ap.mdevs.values()):
            raise refuse(errno.EBUSY)
        emit = self._events.emit
        for mdev in list(vfio_ap.mdevs.values()):
            vfio_ap.remove(mdev, "1")
        emit("change", MATRIX, "matrix", [("MDEV_STATE", "unregistered"), ("DRIVER", "vfio_ap")])
        emit("remove", "/bus/mdev/drivers/vfio_ap_mdev", "drivers")
        self._bus.unregister_driver(vfio_ap.driver)
        self._bus.in_use = None
        self._scanner.listener = None
        emit("unbind", MATRIX, "matrix")
        emit("remove", "/bus/matrix/drivers/vfio_ap", "drivers")
        emit("remove", MATRIX, "matrix")
        self.vfio_ap = self._guests.vfio_ap = None
        emit("remove", "/bus/matrix", "bus")
        emit("remove", "/module/vfio_ap", "module")
        emit("remove", "/module/kvm", "module")

    def _load_mdev(self) -> None:
        if not self.has_mdev:
            self.has_mdev = True
            self._events.emit("add", "/bus/mdev", "bus")
            self._events.emit("add", "/module/mdev", "module")

    def _unload_mdev(self) -> None:
        if self.vfio_ap:
            raise refuse(errno.EBUSY)
        if self.has_mdev:
            self.has_mdev = False
            self._events.emit("remove", "/bus/mdev", "bus")
            self._events.emit("remove", "/module/mdev", "module")
