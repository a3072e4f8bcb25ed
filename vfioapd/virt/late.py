# SPDX-License-Identifier: Apache-2.0
"""libvirt's guests for a daemon that starts before libvirt: its libraries are loaded when they are needed.

At boot libvirt waits for us, so nobody can be asked; loading libvirt and lxml by then would make it wait
for that as well.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from vfioapd.virt.awake import libvirt_runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfioapd.domain.snapshot import Guest
    from vfioapd.plan.doctor_facts import GuestFacts
    from vfioapd.plan.steps import GuestStep
    from vfioapd.virt.connection import GuestEvent
    from vfioapd.virt.guests import Guests


class LateGuests:
    """vfioapd.virt.guests.Guests, which describes the methods, from its first use on."""

    def __init__(self) -> None:
        self.may_wake = True  # False while libvirt's start waits for ours: see virt/awake.py
        self._lock = threading.Lock()  # two threads may be the first
        self._guests: Guests | None = None

    def connect(self) -> bool:
        return self._loaded().connect()

    def listen(self, heard: Callable[[GuestEvent], None], lost: Callable[[], None]) -> None:
        self._loaded().listen(heard, lost)

    def read(self) -> tuple[Guest, ...] | None:
        return self._loaded().read() if self._may_ask() else None

    def read_if_connected(self) -> tuple[Guest, ...] | None:
        return self._guests.read_if_connected() if self._guests and self._may_ask() else None

    def definitions(self) -> tuple[GuestFacts, ...] | None:
        return self._loaded().definitions() if self._may_ask() else None

    def versions(self) -> tuple[int | None, int | None]:
        return self._loaded().versions() if self._may_ask() else (None, None)

    def execute(self, step: GuestStep) -> None:
        self._loaded().execute(step)

    def holds(self, step: GuestStep) -> bool:
        return self._loaded().holds(step)

    def _may_ask(self) -> bool:
        return self.may_wake or libvirt_runs()

    def _loaded(self) -> Guests:
        with self._lock:
            if self._guests is None:
                from vfioapd.virt.guests import Guests

                self._guests = Guests()
            return self._guests
