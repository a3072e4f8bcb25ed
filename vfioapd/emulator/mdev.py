# SPDX-License-Identifier: Apache-2.0
"""One vfio_ap mediated device: what is assigned to it and what its guest gets of that."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .numbers import bits, format_mask

if TYPE_CHECKING:
    from .guests import Guest


@dataclass(frozen=True, slots=True)
class Matrix:
    """Three masks: adapters, usage domains, control domains."""

    apm: int = 0
    aqm: int = 0
    adm: int = 0

    def holds(self, adapter: int, domain: int) -> bool:
        return bool(self.apm >> adapter & 1 and self.aqm >> domain & 1)

    def shares_queues_with(self, adapters: int, domains: int) -> bool:
        return bool(self.apm & adapters and self.aqm & domains)


EMPTY = Matrix()


class Mdev:
    """State of one mdev, from `create` until its removal has ended."""

    def __init__(self, uuid: str, group: int, limits: Matrix) -> None:
        self.uuid = uuid
        self.group = group
        self.devpath = f"/devices/vfio_ap/matrix/{uuid}"
        self.limits = limits  # highest number on each axis, fixed at creation
        self.matrix = EMPTY
        self.guest_matrix = EMPTY
        self.pending = EMPTY  # assigned things that a configuration change brings; filtered at end of scan
        self.is_bound = True  # to vfio_ap_mdev
        self.is_leaving = False  # `remove` was written
        self.is_unbinding = False  # from its driver
        self.has_vfio_dev = True  # its vfio-dev directory
        self.group_user: Guest | None = None  # who has the VFIO group open
        self.guest: Guest | None = None  # whose KVM uses the device
        self.gone = threading.Event()

    @property
    def has_files(self) -> bool:
        """The vfio_ap attributes exist while the device is bound and not on its way out."""
        return self.is_bound and not self.is_leaving and not self.is_unbinding


def format_matrix(matrix: Matrix) -> str:
    """Text of `matrix` and `guest_matrix`."""
    if matrix.apm and matrix.aqm:
        domains = [f"{domain:04x}\n" for domain in bits(matrix.aqm)]
        return "".join(f"{adapter:02x}.{domain}" for adapter in bits(matrix.apm) for domain in domains)
    if matrix.apm:
        return "".join(f"{adapter:02x}.\n" for adapter in bits(matrix.apm))
    return "".join(f".{domain:04x}\n" for domain in bits(matrix.aqm))


def format_control_domains(matrix: Matrix) -> str:
    return "".join(f"{domain:04x}\n" for domain in bits(matrix.adm))


def format_ap_config(matrix: Matrix) -> str:
    return ",".join(format_mask(mask) for mask in (matrix.apm, matrix.aqm, matrix.adm)) + "\n"
