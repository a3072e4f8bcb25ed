# SPDX-License-Identifier: Apache-2.0
"""One consistent read of the AP bus."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import combinations
from typing import TYPE_CHECKING

from vfioapd.backend.mdev import read_mdevs
from vfioapd.backend.paths import BUS, DEVICES, DRIVERS, MATRIX, MDEVS, card_path, queue_path
from vfioapd.backend.readers import read_each
from vfioapd.domain.apqn import Apqn, parse_apqn
from vfioapd.domain.mask import ALL_HOST, HostMasks, parse_mask
from vfioapd.domain.numbers import BITS, AdapterId, DomainId
from vfioapd.domain.problems import Problem, Unavailable
from vfioapd.domain.snapshot import VFIO_DRIVER, Card, Kernel, Mode, QueueState, Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfioapd.backend.sysfs import Sysfs
    from vfioapd.domain.snapshot import Mdev

ATTEMPTS = 5  # a bus that changes during five reads in a row is being worked on by somebody else

_QUEUE = re.compile(r"[0-9a-f]{2}\.[0-9a-f]{4}")
_CARD = re.compile(r"card([0-9a-f]{2})")
_MODES = {"C": Mode.CCA, "P": Mode.EP11, "A": Mode.ACCELERATOR}


def read_snapshot(sysfs: Sysfs) -> Snapshot:
    """The bus, its cards, queues, drivers and devices, as they were at one moment.

    The kernel offers no such read. So what moves (masks, devices, bindings) is read before and after,
    and the whole is read again when it moved. Guests and definitions are left empty: not the bus.
    """
    for _ in range(ATTEMPTS):
        before = _read_moving(sysfs)
        snapshot = _unless_it_left(lambda: _read_once(sysfs, before))  # noqa: B023 - called at once
        if snapshot and _read_moving(sysfs) == before and not _share_queues(snapshot.mdevs):
            return snapshot
    raise Unavailable(
        Problem.AP_BUS_MISSING,
        f"the AP bus changed during each of {ATTEMPTS} reads, so there is no one state to plan from",
        hint="another program is changing masks or devices; try again when it is done",
    )


def glance(sysfs: Sysfs, earlier: Snapshot) -> Snapshot | None:
    """An earlier snapshot with what steps change read anew, in one pass: masks, the devices' matrices and,
    where queues move one by one, their drivers. None when something left meanwhile.

    For the check after a change. What others change at the same time may be seen in part, so where it
    shows something amiss only ``read_snapshot`` tells whether that is so.
    """
    return _unless_it_left(lambda: _glance(sysfs, earlier))


def is_complete(sysfs: Sysfs) -> bool:
    """Whether the kernel has looked for queues, and each has found a driver (ap_bus.c:bindings_show)."""
    try:
        return _says_complete(sysfs.read(f"{BUS}/bindings"))
    except FileNotFoundError as missing:
        raise _no_bus() from missing


def queue_names(sysfs: Sysfs) -> frozenset[str]:
    """The queues that the bus has found."""
    return frozenset(filter(_QUEUE.fullmatch, sysfs.names(DEVICES)))


def read_devices(sysfs: Sysfs) -> tuple[Mdev, ...]:
    """The devices alone, with what they give to guests."""
    return read_mdevs(sysfs, _names(sysfs, MDEVS), ap_config=_has_ap_config(sysfs), whole=True)


def read_override(sysfs: Sysfs, queue: Apqn) -> str:
    """The driver that a queue is reserved for; empty: none, or a kernel without overrides."""
    return _optional(sysfs, f"{queue_path(queue)}/driver_override") or ""


@dataclass(frozen=True, slots=True)
class _Moving:
    """What may change at any time, as text; compared whole, and used so that it is read once less."""

    apmask: str
    aqmask: str
    bindings: str
    devices: list[str]  # bindings only counts: a queue in the place of another shows in the names alone
    mdevs: list[str]


def _read_moving(sysfs: Sysfs) -> _Moving:
    try:
        apmask, aqmask, bindings = (sysfs.read(f"{BUS}/{name}") for name in ("apmask", "aqmask", "bindings"))
    except FileNotFoundError as missing:
        raise _no_bus() from missing
    return _Moving(apmask, aqmask, bindings, sysfs.names(DEVICES), _names(sysfs, MDEVS))


def _no_bus() -> Unavailable:
    return Unavailable(
        Problem.AP_BUS_MISSING,
        "this kernel shows no AP bus (/sys/bus/ap)",
        hint="on an IBM Z host load it with 'modprobe ap'; anywhere else use vfioap-lab",
    )


def _share_queues(mdevs: tuple[Mdev, ...]) -> bool:
    """The kernel lets no two devices have one queue: it went from one to the other between two reads."""
    held = [mdev.matrix for mdev in mdevs]
    return any(
        not one.adapters.isdisjoint(other.adapters) and not one.domains.isdisjoint(other.domains)
        for one, other in combinations(held, 2)
    )


def _unless_it_left(read: Callable[[], Snapshot]) -> Snapshot | None:
    try:
        return read()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # something left while it was read
            raise
        return None


def _glance(sysfs: Sysfs, earlier: Snapshot) -> Snapshot:
    masks = HostMasks(*(parse_mask(sysfs.read(f"{BUS}/{name}")) for name in ("apmask", "aqmask")))
    kernel, queues = earlier.kernel, earlier.queues
    if _has_overrides(kernel, masks):
        queues = _read_queues(sysfs, [str(state.queue) for state in queues], overrides=True)
    mdevs = read_mdevs(sysfs, _names(sysfs, MDEVS), ap_config=kernel.ap_config, whole=False)
    return replace(earlier, masks=masks, queues=queues, mdevs=mdevs)


def _has_overrides(kernel: Kernel, masks: HostMasks) -> bool:
    return kernel.driver_override and masks == ALL_HOST


def _read_once(sysfs: Sysfs, moving: _Moving) -> Snapshot:
    kernel = _read_kernel(sysfs, moving)
    masks = HostMasks(parse_mask(moving.apmask), parse_mask(moving.aqmask))
    return Snapshot(
        masks=masks,
        cards=_read_cards(sysfs, moving.devices),
        queues=_read_queues(sysfs, moving.devices, overrides=_has_overrides(kernel, masks)),
        mdevs=read_mdevs(sysfs, moving.mdevs, ap_config=kernel.ap_config, whole=True),
        usage_domains=_read_domains(sysfs, "ap_usage_domain_mask"),
        control_domains=_read_domains(sysfs, "ap_control_domain_mask"),
        kernel=kernel,
    )


def _read_queues(sysfs: Sysfs, names: list[str], *, overrides: bool) -> tuple[QueueState, ...]:
    """Drivers are read by their folders: one listing each instead of one link a queue.

    With both masks full a queue is under vfio_ap by its override alone, so only those are asked that no
    driver has.
    """
    drivers: dict[str, str] = {}
    for driver in _names(sysfs, DRIVERS):
        drivers |= dict.fromkeys(filter(_QUEUE.fullmatch, sysfs.names(f"{DRIVERS}/{driver}")), driver)
    found = []
    for name in filter(_QUEUE.fullmatch, names):
        queue, bound = _queue_named(name), drivers.get(name)
        override = VFIO_DRIVER if overrides and bound == VFIO_DRIVER else ""
        if overrides and bound is None:
            override = read_override(sysfs, queue)
        found.append(QueueState(queue, bound, override))
    return tuple(found)


@lru_cache(maxsize=BITS * BITS)
def _queue_named(name: str) -> Apqn:
    """The same few thousand names at every read."""
    return parse_apqn(name)


def _read_cards(sysfs: Sysfs, names: list[str]) -> tuple[Card, ...]:
    found = filter(None, map(_CARD.fullmatch, names))
    return tuple(read_each(partial(_read_card, sysfs), (AdapterId(int(match[1], 16)) for match in found)))


def _read_card(sysfs: Sysfs, adapter: AdapterId) -> Card:
    kind = _optional(sysfs, f"{card_path(adapter)}/type") or ""
    return Card(adapter, kind, _MODES.get(kind[-1:], Mode.UNKNOWN))


def _read_kernel(sysfs: Sysfs, moving: _Moving) -> Kernel:
    queue = next(filter(_QUEUE.fullmatch, moving.devices), None)
    return Kernel(
        vfio_ap="vfio_ap-passthrough" in _names(sysfs, f"{MATRIX}/mdev_supported_types"),
        ap_config=_has_ap_config(sysfs),
        driver_override=queue is not None and "driver_override" in sysfs.names(queue_path(parse_apqn(queue))),
        complete=_says_complete(moving.bindings),
    )


def _says_complete(bindings: str) -> bool:
    return "(complete)" in bindings


def _has_ap_config(sysfs: Sysfs) -> bool:
    return "ap_config" in (_optional(sysfs, f"{MATRIX}/features") or "").split()


def _read_domains(sysfs: Sysfs, name: str) -> frozenset[DomainId]:
    text = sysfs.read(f"{BUS}/{name}")
    if text.startswith("not supported"):  # a machine without QCI (ap_bus.c:ap_usage_domain_mask_show)
        return frozenset()
    return frozenset(map(DomainId, parse_mask(text).numbers()))


def _names(sysfs: Sysfs, directory: str) -> list[str]:
    try:
        return sysfs.names(directory)
    except FileNotFoundError:
        return []


def _optional(sysfs: Sysfs, path: str) -> str | None:
    """An attribute that need not be there: which ones are depends on driver, mode and kernel."""
    try:
        return sysfs.read(path).strip()
    except FileNotFoundError:
        return None
