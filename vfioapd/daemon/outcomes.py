# SPDX-License-Identifier: Apache-2.0
"""What became of each matrix, for the journal: each kind of news has an id by which it is found.

docs/boot.md lists the ids and the fields. They are never changed or reused.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import TYPE_CHECKING

from vfioapd.domain.apqn import format_apqns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vfioapd.domain.definition import Definition
    from vfioapd.domain.snapshot import Mdev

logger = logging.getLogger(__name__)


class Message(StrEnum):
    """MESSAGE_ID of a journal entry (sd-journal's catalogue, made by systemd-id128 new)."""

    READY = "7149123fa71b4e828c5206e7fbfb29ac"
    DEGRADED = "5292bbdd745646adbd1c021fde958c73"
    RESTORED = "170084d587e242d286bf357183d8f498"
    SHORT = "137cfc02a45543aa8c8cc5c3e40eeb72"
    NOT_RESTORED = "ab6d85385ac7493e98c19aed2568d72f"
    TAKEN_UP = "78c55df366bb4edab6d4060aad6a2b9d"
    BUS_LATE = "61679a1edeb6469c9794b16c054839d1"
    BOOT_GOES_ON = "5e503ed6b1044ac1ae46fb8fe56c1837"
    HOST_FILE_NOT_READ = "50efff2ea8d54888b937ad88d0ee9aeb"


def fields(message: Message, **names: str) -> dict[str, str]:
    """For ``extra=``: the id, and fields such as VFIOAPD_MATRIX that an admin can select by."""
    return {"MESSAGE_ID": message.value, **{f"VFIOAPD_{name.upper()}": one for name, one in names.items()}}


def difference(definition: Definition, mdev: Mdev | None) -> str | None:
    """What an active device is short of; the kernel drops a whole adapter for one missing queue."""
    if mdev is None:
        return None
    if mdev.matrix != definition.matrix:
        return "the device holds another matrix than the one defined"
    if mdev.guest_matrix is None:
        return None
    missing = frozenset(definition.matrix.queues()) - mdev.guest_matrix
    return f"a guest does not get {format_apqns(missing)}" if missing else None


def shortfalls(definitions: Iterable[Definition], mdevs: Iterable[Mdev]) -> dict[str, str]:
    """The matrices with a device that lacks something, by name, and what."""
    active = {mdev.uuid: mdev for mdev in mdevs}
    found = {one.name: difference(one, active.get(one.uuid)) for one in definitions}
    return {name: what for name, what in found.items() if what}


def tell_restored(definition: Definition) -> None:
    """All of its queues are there."""
    logger.info(
        "matrix %s: restored with all of its queues (%d)",
        definition.name,
        len(definition.matrix.queues()),
        extra=fields(Message.RESTORED, matrix=definition.name, uuid=str(definition.uuid)),
    )


def tell_short(definition: Definition, what: str) -> None:
    """Its device is there, but not all of its queues."""
    logger.warning(
        "matrix %s: its device is there, but %s; what is missing is taken up when it comes",
        definition.name,
        what,
        extra=fields(Message.SHORT, matrix=definition.name, uuid=str(definition.uuid)),
    )


def tell_not_restored(definition: Definition, why: str) -> None:
    """It has no device."""
    logger.error(
        "matrix %s: not restored: %s",
        definition.name,
        why,
        extra=fields(Message.NOT_RESTORED, matrix=definition.name, uuid=str(definition.uuid)),
    )


def tell_taken_up(name: str, what: str) -> None:
    """What it lacked at boot has come."""
    logger.info("matrix %s: %s", name, what, extra=fields(Message.TAKEN_UP, matrix=name))
