# SPDX-License-Identifier: Apache-2.0
"""libvirt's guests: which vfio-ap devices they have, and devices plugged in and out."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, assert_never
from uuid import UUID

import libvirt

from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.domain.snapshot import Guest
from vfioapd.plan.steps import GuestStep, Plug, Unplug, Where, describe
from vfioapd.virt.xml import hostdev_xml, vfio_ap_uuids

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

UNPLUG_PATIENCE = 15.0  # seconds for a guest to let go; libvirt itself gives up waiting after 5
UNPLUG_PAUSE = 0.2  # seconds between two looks

_FLAGS = {Where.LIVE: libvirt.VIR_DOMAIN_AFFECT_LIVE, Where.CONFIG: libvirt.VIR_DOMAIN_AFFECT_CONFIG}


class Guests:
    """The guests of one libvirt. Every method blocks; one thread at a time."""

    def __init__(self, uri: str = "qemu:///system") -> None:
        self._uri = uri
        self._connection: libvirt.virConnect | None = None
        # Without a handler of ours libvirt prints each error on stderr besides raising it.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)

    def read(self) -> tuple[Guest, ...] | None:
        """All guests, sorted by name; None while libvirt does not answer."""
        try:
            domains = self._connect().listAllDomains(0)
            found = [guest for guest in map(_read_guest, domains) if guest]
        except libvirt.libvirtError as error:
            logger.debug("libvirt does not answer: %s", error)
            self._connection = None
            return None
        return tuple(sorted(found, key=lambda guest: guest.name))

    def execute(self, step: GuestStep) -> None:
        """Plug or unplug. An unplug returns when the guest has let go, or fails after 15 s."""
        flags = _FLAGS[step.where]
        xml = hostdev_xml(step.uuid)
        match step:
            case Plug():
                self._call(step, lambda domain: domain.attachDeviceFlags(xml, flags))
            case Unplug():
                self._call(step, lambda domain: domain.detachDeviceFlags(xml, flags))
                self._wait_until_gone(step)
            case _:
                assert_never(step)

    def holds(self, step: GuestStep) -> bool:
        """Whether the guest's document is as the step leaves it."""
        has = step.uuid in self._devices(step)
        return has if isinstance(step, Plug) else not has

    def _wait_until_gone(self, step: Unplug) -> None:
        """libvirt returns 0 after five seconds even when the guest still holds the device."""
        deadline = time.monotonic() + UNPLUG_PATIENCE
        while not self.holds(step):
            if time.monotonic() > deadline:
                raise VfioApError(
                    Problem.STEP_FAILED,
                    f"guest {step.guest} has not let go of the device within {UNPLUG_PATIENCE:.0f} s",
                    hint="the request stands and may still be met; see vfioapctl status",
                )
            time.sleep(UNPLUG_PAUSE)

    def _devices(self, step: GuestStep) -> frozenset[UUID]:
        found = self._call(step, _read_guest)
        if not isinstance(found, Guest):
            return frozenset()
        return found.live if step.where is Where.LIVE else found.config

    def _call(self, step: GuestStep, act: Callable[[libvirt.virDomain], object]) -> object:
        try:
            return act(self._connect().lookupByName(step.guest))
        except libvirt.libvirtError as error:
            raise VfioApError(
                Problem.STEP_FAILED, f"libvirt refused to {describe(step)}: {error.get_error_message()}"
            ) from error

    def _connect(self) -> libvirt.virConnect:
        if self._connection is None or not self._connection.isAlive():
            self._connection = libvirt.open(self._uri)
        return self._connection


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
