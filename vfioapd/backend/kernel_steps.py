# SPDX-License-Identifier: Apache-2.0
"""Kernel steps carried out: one write each, and the errno given its meaning once, here."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, assert_never

from vfioapd.backend.bus import read_override
from vfioapd.backend.mdev import format_ap_config, read_matrix
from vfioapd.backend.paths import BUS, CREATE, DRIVERS, MDEVS, mdev_path, queue_path
from vfioapd.domain.mask import format_change, parse_mask
from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.plan.steps import (
    Assign,
    Bind,
    CreateMdev,
    Member,
    RemoveMdev,
    SetMatrix,
    SetOverride,
    Unassign,
    Unbind,
    WriteMask,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from uuid import UUID

    from vfioapd.backend.sysfs import Sysfs
    from vfioapd.domain.matrix import Matrix
    from vfioapd.plan.steps import KernelStep

_OVERRIDDEN = (
    "the kernel refuses masks while a queue has a driver_override, and until the next boot"
    " after one that had has left the host"
)
# What the kernel means, in the order of the reference: vfio_ap_ops.c, mdev_sysfs.c, ap_bus.c.
_MEANINGS = {
    (Assign, errno.EADDRNOTAVAIL): "the host's own driver still owns one of the queues",
    (Assign, errno.EADDRINUSE): "another mdev holds one of the queues",
    (Assign, errno.ENODEV): "the number is beyond what this machine has",
    (CreateMdev, errno.EEXIST): "an mdev of that UUID exists already",
    (CreateMdev, errno.EUSERS): "the kernel allows no further mdev",
    (WriteMask, errno.EBUSY): "an mdev holds a queue of that adapter or domain",
    (SetOverride, errno.EINVAL): "the kernel takes no driver_override while apmask or aqmask is in use",
    (WriteMask, errno.EINVAL): _OVERRIDDEN,
}


class KernelSteps:
    """Carries out and checks the steps that the kernel takes."""

    def __init__(self, sysfs: Sysfs) -> None:
        self._sysfs = sysfs

    def execute(self, step: KernelStep) -> None:
        """Make the one write. Blocks until the kernel is done; a removal only for a device unused."""
        path, value = _write_of(step)
        try:
            self._sysfs.write(path, value)
        except OSError as error:
            # Where a mask write binds queues that no driver had (Linux 7.3), it comes before ours.
            if isinstance(step, Bind) and error.errno == errno.EBUSY and self.holds(step):
                return
            raise _explain(step, path, error) from error

    def execute_each(self, steps: Sequence[KernelStep]) -> Iterator[KernelStep]:
        """Make their writes in turn. Yields each step that was made; raises for the first that was not."""
        writes = list(map(_write_of, steps))
        made = 0
        try:
            for _ in self._sysfs.write_each(writes):
                yield steps[made]
                made += 1
        except OSError as error:
            raise _explain(steps[made], writes[made][0], error) from error

    def holds(self, step: KernelStep) -> bool:
        """Whether the kernel is as the step leaves it."""
        match step:
            case WriteMask(axis, before, after):
                ours = (before - after) | (after - before)
                return parse_mask(self._sysfs.read(f"{BUS}/{axis}")) & ours == after & ours
            case CreateMdev(uuid):
                return self._exists(uuid)
            case RemoveMdev(uuid):
                return not self._exists(uuid)
            case SetMatrix(uuid, _, after):
                return self._exists(uuid) and read_matrix(self._sysfs, uuid, ap_config=True) == after
            case Assign(uuid, member, number):
                return self._exists(uuid) and self._has(uuid, member, number)
            case SetOverride(queue, _, after):
                return read_override(self._sysfs, queue) == after
            case Bind(queue, driver):
                return str(queue) in self._sysfs.names(f"{DRIVERS}/{driver}")
            case Unbind(queue, driver):
                return str(queue) not in self._sysfs.names(f"{DRIVERS}/{driver}")
            case Unassign(uuid, member, number):
                return self._exists(uuid) and not self._has(uuid, member, number)
            case _:
                assert_never(step)

    def _exists(self, uuid: UUID) -> bool:
        return str(uuid) in self._sysfs.names(MDEVS)

    def _has(self, uuid: UUID, member: Member, number: int) -> bool:
        return number in _numbers(read_matrix(self._sysfs, uuid, ap_config=False), member)


def _write_of(step: KernelStep) -> tuple[str, str]:
    """The path and the text of the one write that the step is."""
    match step:
        case WriteMask(axis, before, after):
            return f"{BUS}/{axis}", f"{format_change(before, after)}\n"
        case CreateMdev(uuid):
            return CREATE, f"{uuid}\n"
        case RemoveMdev(uuid):
            return f"{mdev_path(uuid)}/remove", "1\n"
        case SetMatrix(uuid, _, after):
            return f"{mdev_path(uuid)}/ap_config", format_ap_config(after)
        case Assign(uuid, member, number):
            return f"{mdev_path(uuid)}/assign_{member}", f"{number:#x}\n"
        case SetOverride(queue, _, after):
            return f"{queue_path(queue)}/driver_override", f"{after}\n"
        case Bind(queue, driver):
            return f"{DRIVERS}/{driver}/bind", f"{queue}\n"
        case Unbind(queue, driver):
            return f"{DRIVERS}/{driver}/unbind", f"{queue}\n"
        case Unassign(uuid, member, number):
            return f"{mdev_path(uuid)}/unassign_{member}", f"{number:#x}\n"
        case _:
            assert_never(step)


def _numbers(matrix: Matrix, member: Member) -> frozenset[int]:
    match member:
        case Member.ADAPTER:
            return frozenset(matrix.adapters)
        case Member.DOMAIN:
            return frozenset(matrix.domains)
        case Member.CONTROL_DOMAIN:
            return frozenset(matrix.control_domains)
        case _:
            assert_never(member)


def _explain(step: KernelStep, path: str, error: OSError) -> VfioApError:
    kind = Assign if isinstance(step, SetMatrix) else type(step)
    name = errno.errorcode.get(error.errno or 0, "?")
    meaning = _MEANINGS.get((kind, error.errno or 0), error.strerror or str(error))
    return VfioApError(
        Problem.STEP_FAILED,
        f"/sys/{path} answered {name}: {meaning}",
        hint="vfioapctl status shows who holds what" if (kind, error.errno) in _MEANINGS else None,
    )
