# SPDX-License-Identifier: Apache-2.0
"""What an admin should know of a host that is adopted, and what hinders nothing. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from vfioapd.domain.apqn import format_apqns
from vfioapd.domain.boot_masks import MaskSetter, masks_after
from vfioapd.domain.mask import format_ranges
from vfioapd.domain.queue_set import QueueSet
from vfioapd.plan.adopt_facts import Finding, Trouble
from vfioapd.plan.steps import Axis

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vfioapd.domain.boot_masks import BootMasks
    from vfioapd.domain.definition import Definition
    from vfioapd.domain.mask import HostMasks, Mask
    from vfioapd.domain.snapshot import Guest
    from vfioapd.plan.adopt_facts import Device, Facts


def is_whole(device: Device, guest: Guest) -> bool:
    """Whether the guest has the device wherever it can: while it runs, and for its next start."""
    live = device.uuid in guest.live or not guest.running
    config = device.uuid in guest.config or not guest.persistent
    return live and config


def remarks(facts: Facts, device: Device, definition: Definition) -> Iterator[Finding]:
    """About a device that becomes ours under that definition."""
    if device.definition is None:
        sentence = f"{device} is active and defined nowhere, so a reboot would forget it"
        yield Finding(Trouble.NO_DEFINITION, sentence, "being adopted defines it", device.uuid)
    elif device.mdev is None and device.definition.starts_itself:
        sentence = f"{device} is to be started by mdevctl at boot, and is not active"
        hint = f'{definition} starts by hand; to change that, say start = "auto" in host.toml and apply it'
        yield Finding(Trouble.NOT_STARTED, sentence, hint, device.uuid)
    for guest in device.guests:
        if not is_whole(device, guest):
            yield _half(device, definition, guest)
    if device.mdev and device.mdev.in_use and facts.snapshot.user_of(device.uuid) is None:
        sentence = f"{device} is in use by a guest that libvirt does not know"
        yield Finding(Trouble.UNKNOWN_USER, sentence, "see whose it is: fuser -v /dev/vfio/*", device.uuid)


def _half(device: Device, definition: Definition, guest: Guest) -> Finding:
    """It may be so on purpose, hence it stays so: the guest is not named in host.toml."""
    attach = f"vfioapctl attach {definition.name} {guest.name}"
    if device.uuid in guest.live:
        sentence = f"running guest {guest.name} has {device}, and its definition does not name it"
        return Finding(Trouble.LIVE_ONLY, sentence, f"for good: {attach}", device.uuid)
    sentence = f"the definition of guest {guest.name} names {device}, and the guest runs without it"
    return Finding(Trouble.CONFIG_ONLY, sentence, f"to plug it in: {attach}", device.uuid)


def host_remarks(facts: Facts, adopted: Iterable[Definition]) -> Iterator[Finding]:
    """About guests and masks, after all devices have been looked at."""
    if facts.snapshot.guests is None:
        sentence = "libvirt does not answer, so nobody can tell which guest has what"
        hint = f"start it before anything is adopted: systemctl start {facts.snapshot.libvirt}"
        yield Finding(Trouble.LIBVIRT_UNAVAILABLE, sentence, hint)
    yield from _unknown_devices(facts)
    yield from _masks(facts, adopted)


def _unknown_devices(facts: Facts) -> Iterator[Finding]:
    known = {one.uuid for one in facts.desired.definitions} | {one.uuid for one in facts.files}
    known |= facts.snapshot.by_uuid.keys()
    for guest in facts.snapshot.guests or ():
        for uuid in sorted((guest.live | guest.config) - known):
            sentence = f"guest {guest.name} names mdev {uuid}, which is neither active nor defined"
            yield Finding(Trouble.UNKNOWN_DEVICE, sentence, f"take it out: virsh edit {guest.name}", uuid)


def _masks(facts: Facts, adopted: Iterable[Definition]) -> Iterator[Finding]:
    """No mistake once vfioapd makes its own, but two masters of one thing: the later one has it."""
    for place in facts.boot:
        for fault in place.faults:
            yield Finding(Trouble.BAD_MASK, f"{place.place} sets a mask to nonsense: {fault}", _mend(place))
    at_boot = masks_after(facts.boot)
    for axis in Axis:
        then, now = _mask(at_boot, axis), _mask(facts.snapshot.masks, axis)
        setters = [place for place in facts.boot if _sets(place, axis)]
        if setters and then != now:
            what = f"{setters[-1].place} sets {axis} to {format_ranges(then)} at boot"
            sentence = f"{what}, and now it is {format_ranges(now)}"
            yield Finding(Trouble.MASKS_DIFFER, sentence, _mend(setters[-1]))
    for definition in adopted if facts.boot else ():
        if held := QueueSet.of_matrix(definition.matrix) & QueueSet.owned_by_host(at_boot):
            places = " and ".join(place.place for place in facts.boot)
            sentence = f"with the masks of {places} the host would have {format_apqns(held)} of {definition}"
            hint = "; ".join(dict.fromkeys(map(_mend, facts.boot)))
            yield Finding(Trouble.MASKS_HOLD, sentence, hint, definition.uuid)


def _mend(place: BootMasks) -> str:
    """What leaves the masks to vfioapd."""
    match place.setter:
        case MaskSetter.COMMAND_LINE:
            return "take ap.apmask= and ap.aqmask= out of the kernel's parameters: vfioapd sets the masks"
        case MaskSetter.CHZDEV:
            return "leave the masks to vfioapd: chzdev --type ap --persistent --remove-all"
        case MaskSetter.MODPROBE | MaskSetter.UDEV_RULE:
            return f"take apmask and aqmask out of {place.place}: vfioapd sets the masks"
        case _:
            assert_never(place.setter)


def _mask(masks: HostMasks, axis: Axis) -> Mask:
    return masks.apmask if axis is Axis.APMASK else masks.aqmask


def _sets(place: BootMasks, axis: Axis) -> bool:
    return (place.apmask if axis is Axis.APMASK else place.aqmask) is not None
