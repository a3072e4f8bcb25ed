# SPDX-License-Identifier: Apache-2.0
"""Guests' definitions as doctor needs them: their vfio-ap devices and whether their CPU has AP."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import libvirt

from vfioapd.domain.problems import Refused
from vfioapd.virt.xml import ap_facts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.plan.doctor_facts import GuestFacts
    from vfioapd.virt.connection import Connection

logger = logging.getLogger(__name__)


def read_definitions(connection: Connection) -> tuple[GuestFacts, ...] | None:
    """Every guest that is defined; None while libvirt does not answer. Blocks."""
    try:
        return connection.call(lambda libvirtd: tuple(_definitions(libvirtd)))
    except libvirt.libvirtError as error:
        logger.debug("definitions cannot be read: %s", error)
        return None


def read_versions(connection: Connection) -> tuple[int | None, int | None]:
    """libvirt's version and QEMU's, as libvirt counts them; None where it does not tell."""
    return _number(connection, "getLibVersion"), _number(connection, "getVersion")


def _definitions(libvirtd: libvirt.virConnect) -> Iterator[GuestFacts]:
    for domain in libvirtd.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT):
        try:
            yield ap_facts(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # gone since it was listed
                raise
        except Refused as refused:
            logger.warning("guest %s: %s", domain.name(), refused)


def _number(connection: Connection, method: str) -> int | None:
    try:
        return connection.call(lambda libvirtd: int(getattr(libvirtd, method)()))
    except libvirt.libvirtError:  # no QEMU for this machine, or no libvirt any more
        return None
