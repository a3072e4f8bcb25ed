# SPDX-License-Identifier: Apache-2.0
"""Everything a running kernel knows, from boot to reboot. The hardware and the subscribers outlive it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .bus import Bus
from .guests import Guests
from .modules import Modules
from .scan import Scanner
from .zcrypt_nodes import ZcryptNodes

if TYPE_CHECKING:
    from .events import Events
    from .hostfile import Host
    from .machine import Machine

HOST_DRIVERS = "zcrypt_cex4"


class State:
    """One boot of the emulated kernel."""

    def __init__(self, host: Host, machine: Machine, events: Events) -> None:
        self.host = host
        self.generation = host.kernel
        self.machine = machine
        self.events = events
        self.bus = Bus(host.kernel, machine, events, host.boot)
        self.scanner = Scanner(self.bus, host.boot.domain)
        self.guests = Guests(host.kernel, machine)
        self.modules = Modules(self.bus, self.scanner, events, self.guests)
        self.zcrypt_nodes = ZcryptNodes(host.kernel, events)
        self.config_time = 30  # seconds between scans
        self.poll_thread = False
        self.poll_timeout = 250_000  # nanoseconds
        self.autoprobe = {"matrix": True, "mdev": True}  # of the other two buses

    def boot(self) -> float:
        """The first scan, then the modules of the host file in their order.

        Seconds after which `load_late` is due: the machine may be told to keep its drivers back.
        """
        if not self.machine.has_ap:
            return 0.0  # the AP bus does not even initialise
        self.scanner.scan()
        late = self.machine.late_bindings
        for module in self.host.modules:
            if not (late and module == HOST_DRIVERS):
                self.modules.load(module)
        return late if HOST_DRIVERS in self.host.modules else 0.0

    def load_late(self) -> None:
        self.modules.load(HOST_DRIVERS)
