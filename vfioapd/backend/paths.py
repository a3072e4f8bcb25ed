# SPDX-License-Identifier: Apache-2.0
"""Where the kernel keeps the AP bus and vfio_ap, relative to /sys."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID

    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.numbers import AdapterId

BUS = "bus/ap"
DEVICES = "bus/ap/devices"
DRIVERS = "bus/ap/drivers"
MATRIX = "devices/vfio_ap/matrix"
CREATE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create"
MDEVS = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/devices"


def card_path(adapter: AdapterId) -> str:
    """The folder of a card."""
    return f"devices/ap/card{adapter:02x}"


def queue_path(queue: Apqn) -> str:
    """The folder of a queue."""
    return f"{card_path(queue.adapter)}/{queue}"


def mdev_path(uuid: UUID) -> str:
    """The folder of a vfio_ap device."""
    return f"{MATRIX}/{uuid}"
