# SPDX-License-Identifier: Apache-2.0
"""vfio_ap devices: their matrices read, and their text forms."""

from __future__ import annotations

import errno
import re
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING
from uuid import UUID

from vfioapd.backend.paths import mdev_path, queue_path
from vfioapd.backend.readers import read_each
from vfioapd.domain.apqn import Apqn, parse_apqn
from vfioapd.domain.mask import Mask, parse_mask
from vfioapd.domain.matrix import READABLE_PAIRS, Matrix
from vfioapd.domain.numbers import AdapterId, DomainId
from vfioapd.domain.snapshot import Mdev

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vfioapd.backend.sysfs import Sysfs

_MEMBER = re.compile(r"([0-9a-f]{2})?\.([0-9a-f]{4})?")


def read_mdevs(sysfs: Sysfs, names: Iterable[str], *, ap_config: bool, whole: bool) -> tuple[Mdev, ...]:
    """The vfio_ap devices of these names. One that vanishes while being read is left out.

    Not ``whole``: without what a guest gets of it and whether one has it.
    """
    read = partial(_read_mdev, sysfs, ap_config=ap_config, whole=whole)
    return tuple(filter(None, read_each(read, map(UUID, names))))


def read_matrix(sysfs: Sysfs, uuid: UUID, *, ap_config: bool) -> Matrix:
    """What the device was assigned."""
    if ap_config:
        return parse_ap_config(sysfs.read(f"{mdev_path(uuid)}/ap_config"))
    adapters, domains = _members(sysfs.read(f"{mdev_path(uuid)}/matrix"))
    control = sysfs.read(f"{mdev_path(uuid)}/control_domains").split()
    return Matrix(adapters, domains, frozenset(DomainId(int(number, 16)) for number in control))


def parse_ap_config(text: str) -> Matrix:
    """Read ``ap_config``: three masks, adapters, domains and control domains, split by commas."""
    adapters, domains, control = (parse_mask(field).numbers() for field in text.strip().split(","))
    return Matrix(
        frozenset(map(AdapterId, adapters)),
        frozenset(map(DomainId, domains)),
        frozenset(map(DomainId, control)),
    )


def format_ap_config(matrix: Matrix) -> str:
    """Write ``ap_config``: all three masks in full, since short ones are filled from the left."""
    masks = map(Mask.of, (matrix.adapters, matrix.domains, matrix.control_domains))
    return ",".join(map(str, masks)) + "\n"


def _read_mdev(sysfs: Sysfs, uuid: UUID, *, ap_config: bool, whole: bool) -> Mdev | None:
    try:
        return _read_present(sysfs, uuid, ap_config=ap_config, whole=whole)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise  # a device that is there but cannot be read must not pass for one that is not
        return None


def _read_present(sysfs: Sysfs, uuid: UUID, *, ap_config: bool, whole: bool) -> Mdev:
    matrix = read_matrix(sysfs, uuid, ap_config=ap_config)
    if not whole:
        return Mdev(uuid, matrix, None, in_use=False)
    guest_matrix = _read_guest_matrix(sysfs, uuid, matrix)
    in_use = any(_status(sysfs, queue) == "in use" for queue in _witnesses(sysfs, matrix, guest_matrix))
    return Mdev(uuid, matrix, guest_matrix, in_use)


def _read_guest_matrix(sysfs: Sysfs, uuid: UUID, matrix: Matrix) -> frozenset[Apqn] | None:
    if len(matrix.adapters) * len(matrix.domains) > READABLE_PAIRS:
        return None
    lines = sysfs.read(f"{mdev_path(uuid)}/guest_matrix").split()
    # ".0011" is a domain without an adapter and "05." the reverse: no queue
    return frozenset(parse_apqn(line) for line in lines if line[0] != "." and line[-1] != ".")


def _witnesses(sysfs: Sysfs, matrix: Matrix, guest_matrix: frozenset[Apqn] | None) -> Iterator[Apqn]:
    """Queues that tell whether a guest has the device, which has no such attribute of its own.

    One of the guest's set is enough. Where that is not known: one of each adapter, since the kernel
    gives a guest an adapter with all domains or not at all.
    """
    if guest_matrix is not None:
        yield from sorted(guest_matrix)[:1]
        return
    for adapter in sorted(matrix.adapters):
        queues = (Apqn(adapter, domain) for domain in sorted(matrix.domains))
        yield from islice((queue for queue in queues if _status(sysfs, queue) is not None), 1)


def _status(sysfs: Sysfs, queue: Apqn) -> str | None:
    try:
        return sysfs.read(f"{queue_path(queue)}/status").strip()
    except OSError:  # the queue has left, or is not vfio_ap's: then no guest of this device has it
        return None


def _members(text: str) -> tuple[frozenset[AdapterId], frozenset[DomainId]]:
    found = [match.groups() for match in map(_MEMBER.fullmatch, text.split()) if match]
    adapters = frozenset(AdapterId(int(adapter, 16)) for adapter, _ in found if adapter)
    return adapters, frozenset(DomainId(int(domain, 16)) for _, domain in found if domain)
