# SPDX-License-Identifier: Apache-2.0
"""libvirt's guests: which vfio-ap devices they have, and devices plugged in and out."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, assert_never
from uuid import UUID

import libvirt

from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.domain.snapshot import Guest
from vfioapd.plan.steps import GuestStep, Plug, Unplug, Where, describe
from vfioapd.virt.connection import Connection, GuestEvent
from vfioapd.virt.definitions import read_definitions, read_versions
from vfioapd.virt.xml import hostdev_xml, vfio_ap_uuids

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfioapd.plan.doctor_facts import GuestFacts

logger = logging.getLogger(__name__)

UNPLUG_PATIENCE = 15.0  # seconds for a guest to let go; libvirt itself gives up waiting after 5

_FLAGS = {Where.LIVE: libvirt.VIR_DOMAIN_AFFECT_LIVE, Where.CONFIG: libvirt.VIR_DOMAIN_AFFECT_CONFIG}


class Guests:
    """The guests of one libvirt. Every method blocks; one thread at a time."""

    def __init__(self, uri: str = "qemu:///system") -> None:
        self._news = threading.Event()  # libvirt has said something since it was cleared
        self._refused: set[str] = set()  # guests that would not let go since the last request
        self.connection = Connection(uri)
        self.connection.on_event.append(self._heard)
        self.connection.on_lost.append(self._news.set)

    def connect(self) -> bool:
        """Connect unless that is done; whether libvirt answers. It is started by this if it sleeps."""
        try:
            self.connection.call(lambda libvirtd: libvirtd.getLibVersion())
        except libvirt.libvirtError as error:
            logger.debug("libvirt does not answer: %s", error)
            return False
        return True

    def listen(self, heard: Callable[[GuestEvent], None], lost: Callable[[], None]) -> None:
        """Be told each event, and that the connection was lost; in libvirt's own thread, which must not
        be kept."""
        self.connection.on_event.append(heard)
        self.connection.on_lost.append(lost)

    def read(self) -> tuple[Guest, ...] | None:
        """All guests, sorted by name; None while libvirt does not answer."""
        try:
            return self.connection.call(_read_guests)
        except libvirt.libvirtError as error:
            logger.debug("libvirt does not answer: %s", error)
            return None

    def definitions(self) -> tuple[GuestFacts, ...] | None:
        """What guests' definitions say of AP; None while libvirt does not answer."""
        return read_definitions(self.connection)

    def versions(self) -> tuple[int | None, int | None]:
        """libvirt's and QEMU's; None where they are not told."""
        return read_versions(self.connection)

    def read_if_connected(self) -> tuple[Guest, ...] | None:
        """The same without a new connection, which would start a libvirt that sleeps."""
        return self.read() if self.connection.is_open else None

    def execute(self, step: GuestStep) -> None:
        """Plug or unplug. An unplug returns when the guest has let go, or fails after 15 s."""
        flags = _FLAGS[step.where]
        xml = hostdev_xml(step.uuid)
        match step:
            case Plug():
                self._call(step, lambda domain: domain.attachDeviceFlags(xml, flags))
            case Unplug():
                self._refused.discard(step.guest)
                self._call(step, lambda domain: domain.detachDeviceFlags(xml, flags))
                self._wait_until_gone(step)
            case _:
                assert_never(step)

    def holds(self, step: GuestStep) -> bool:
        """Whether the guest's document is as the step leaves it."""
        has = step.uuid in self._devices(step)
        return has if isinstance(step, Plug) else not has

    def _wait_until_gone(self, step: Unplug) -> None:
        """libvirt returns 0 after five seconds even when the guest still holds the device. What it says
        later wakes us; whether the device is gone is read from the guest."""
        deadline = time.monotonic() + UNPLUG_PATIENCE
        while True:
            self._news.clear()
            if self.holds(step):
                return
            if step.guest in self._refused:
                raise _kept(step, "refuses to let go of the device", "ask again when the guest is ready")
            if time.monotonic() >= deadline:
                late = f"has not let go of the device within {UNPLUG_PATIENCE:.0f} s"
                raise _kept(step, late, "the request stands and may still be met; see vfioapctl status")
            self._news.wait(deadline - time.monotonic())

    def _heard(self, event: GuestEvent) -> None:
        if event.what == "device-removal-failed":
            self._refused.add(event.guest)
        self._news.set()

    def _devices(self, step: GuestStep) -> frozenset[UUID]:
        found = self._call(step, _read_guest)
        if not isinstance(found, Guest):
            return frozenset()
        return found.live if step.where is Where.LIVE else found.config

    def _call(self, step: GuestStep, act: Callable[[libvirt.virDomain], object]) -> object:
        try:
            return self.connection.call(lambda libvirtd: act(libvirtd.lookupByName(step.guest)))
        except libvirt.libvirtError as error:
            raise VfioApError(
                Problem.STEP_FAILED, f"libvirt refused to {describe(step)}: {error.get_error_message()}"
            ) from error


def _kept(step: Unplug, why: str, hint: str) -> VfioApError:
    return VfioApError(Problem.STEP_FAILED, f"guest {step.guest} {why}", hint=hint)


def _read_guests(libvirtd: libvirt.virConnect) -> tuple[Guest, ...]:
    found = [guest for guest in map(_read_guest, libvirtd.listAllDomains(0)) if guest]
    return tuple(sorted(found, key=lambda guest: guest.name))


def _read_guest(domain: libvirt.virDomain) -> Guest | None:
    """One guest; None when it has gone since it was listed."""
    try:
        running, persistent = bool(domain.isActive()), bool(domain.isPersistent())
        return Guest(
            domain.name(),
            UUID(domain.UUIDString()),
            running=running,
            persistent=persistent,
            live=vfio_ap_uuids(domain.XMLDesc(0)) if running else frozenset(),
            config=vfio_ap_uuids(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
            if persistent
            else frozenset(),
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
