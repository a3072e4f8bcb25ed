# SPDX-License-Identifier: Apache-2.0
"""What doctor says of the masks: who else sets them at boot, and against what host.toml wants."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from vfioapd.domain.apqn import format_apqns
from vfioapd.domain.boot_masks import BootMasks, MaskSetter, masks_after
from vfioapd.domain.definition import Binding, Start
from vfioapd.domain.mask import ALL_HOST, HostMasks
from vfioapd.domain.queue_set import EMPTY, QueueSet
from vfioapd.plan.doctor_finding import Code, Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.domain.mask import Mask
    from vfioapd.plan.doctor_facts import HostFacts

_MANY = 6  # queues that a sentence names; of more it gives the number
_ARGUMENT = r"[[:space:]]*\bap\.a[pq]mask=[^[:space:]\"']*"
_OPTIONS = "/^options[[:space:]]+ap[[:space:]]/s/[[:space:]]a[pq]mask=[^[:space:]]*//g"
_CODES = {
    MaskSetter.CHZDEV: Code.CHZDEV_MASKS,
    MaskSetter.UDEV_RULE: Code.UDEV_MASKS,
    MaskSetter.COMMAND_LINE: Code.KERNEL_MASKS,
    MaskSetter.MODPROBE: Code.MODPROBE_MASKS,
}
# A rule acts once all queues have drivers, which may be after vfioapd has set the masks; parameters act
# before everything, and what they leave to the host is taken from it as on any other host.
_ACTS_LATE = (MaskSetter.CHZDEV, MaskSetter.UDEV_RULE)


def two_masters(facts: HostFacts) -> Iterator[Finding]:
    """Masks set at boot that contradict host.toml."""
    for place in facts.boot.masks:
        quarrels = list(_quarrels(facts, place))
        if quarrels and not place.faults:
            late = "whoever comes last wins: guests lose queues, or the host loses those it must keep"
            early = "from the start of the kernel on the host's own zcrypt lacks them"
            yield Finding(
                _CODES[place.setter],
                f"{_who(place)} contradicts host.toml: it {' and '.join(quarrels)}",
                late if place.setter in _ACTS_LATE else early,
                _command(facts, place),
                _advice(place),
            )


def too_wide(facts: HostFacts) -> Iterator[Finding]:
    """Queues that they take from the host and that nobody wants."""
    if facts.snapshot is None or _by_override(facts):
        return
    wanted = QueueSet.of_matrices(one.matrix for one in facts.desired.definitions)
    wanted |= QueueSet.of_matrices(one.matrix for one in facts.mdevctl.definitions.values())
    wanted |= QueueSet.of_matrices(mdev.matrix for mdev in facts.snapshot.mdevs)
    rest = facts.snapshot.present - wanted - QueueSet.of(facts.desired.keep)
    for place in facts.boot.masks:
        idle = (
            rest
            - QueueSet.owned_by_host(place.over(ALL_HOST))
            - _collateral(facts.snapshot.present, wanted, place)
        )
        if idle and not place.faults and not list(_quarrels(facts, place)):
            yield Finding(
                Code.BOOT_MASKS_TOO_WIDE,
                f"{_who(place)} takes {_named(idle)} from the host, which no matrix holds",
                "neither the host nor a guest uses them",
                _command(facts, place),
                _advice(place),
            )


def blocking(facts: HostFacts) -> Iterator[Finding]:
    """Linux 7.3 knows masks or driver_override, never both (ap_bus.c:driver_override_store)."""
    if not _by_override(facts):
        return
    for place in facts.boot.masks:
        if place.over(ALL_HOST) != ALL_HOST and not place.faults:
            yield Finding(
                Code.BOOT_MASKS_BLOCK,
                f"{_who(place)} sets masks at boot, while queues are taken from the host by driver_override",
                "the kernel refuses driver_override as long as a mask is not full: no matrix starts",
                _command(facts, place),
                _advice(place),
            )


def unreadable(facts: HostFacts) -> Iterator[Finding]:
    """A parameter that the kernel cannot read is a mask of zeros to it; a rule's is passed over."""
    for place in facts.boot.masks:
        if place.faults:
            late = "the kernel refuses the write: the mask stays as it is"
            early = "the kernel takes it for an empty mask: the host has no queue at all"
            yield Finding(
                Code.BOOT_MASKS_UNREADABLE,
                f"{_who(place)} sets a mask that no kernel reads: {'; '.join(place.faults)}",
                late if place.setter in _ACTS_LATE else early,
                _command(facts, place),
                _advice(place),
            )


def keep_lost(facts: HostFacts) -> Iterator[Finding]:
    """Queues that the host must not lose and that it has lost."""
    if facts.snapshot is None:
        return
    lost = QueueSet.of(facts.desired.keep) & facts.snapshot.outside
    if lost:
        command = _give_back(facts, lost)
        yield Finding(
            Code.KEEP_LOST,
            f"{_named(lost)} should stay with the host ([host] keep), and the masks give them away",
            "the host's own programs cannot use them",
            command,
            ""
            if command
            else "devices of guests stand in the same row and column; see vfioapctl queues --grid",
        )


def _quarrels(facts: HostFacts, place: BootMasks) -> Iterator[str]:
    masks = place.over(ALL_HOST)
    keep = QueueSet.of(facts.desired.keep) - QueueSet.owned_by_host(masks)
    if keep:
        yield f"takes {_named(keep)} from the host, which [host] keep leaves to it"
    if place.setter not in _ACTS_LATE or _by_override(facts):
        return
    returned = _returned(facts, place)
    for definition in facts.desired.definitions:
        back = QueueSet.of_matrix(definition.matrix) & returned
        if definition.start is Start.AUTO and back:
            yield f"gives {_named(back)} of {definition} to the host"


def _by_override(facts: HostFacts) -> bool:
    """Because the admin wants it, or because it is so."""
    is_so = facts.snapshot is not None and bool(facts.snapshot.overridden)
    return is_so or facts.desired.binding is Binding.DRIVER_OVERRIDE


def _returned(facts: HostFacts, place: BootMasks) -> QueueSet:
    """What a rule gives to the host, carried out over the masks of now; what is the host's already (a
    matrix is down) counts as well, if the rule leaves it there."""
    if place.apmask is None and place.aqmask is None:
        return EMPTY
    masks = facts.snapshot.masks if facts.snapshot else ALL_HOST
    now = QueueSet.owned_by_host(masks)
    left = QueueSet.owned_by_host(place.over(ALL_HOST)) & now
    return (QueueSet.owned_by_host(place.over(masks)) - now) | left


def _collateral(present: QueueSet, wanted: QueueSet, place: BootMasks) -> QueueSet:
    """What leaves the host with the wanted queues, as masks free whole rows and columns."""
    masks = place.over(ALL_HOST)
    adapters = {queue.adapter for queue in wanted if queue.adapter not in masks.apmask}
    domains = {queue.domain for queue in wanted if queue.domain not in masks.aqmask}
    return QueueSet.of(one for one in present if one.adapter in adapters or one.domain in domains)


def _give_back(facts: HostFacts, lost: QueueSet) -> str:
    """The writes that return them, unless a device has one of the queues that would return with them."""
    assert facts.snapshot is not None
    now = facts.snapshot.masks
    adapters = sorted({int(one.adapter) for one in lost if one.adapter not in now.apmask})
    domains = sorted({int(one.domain) for one in lost if one.domain not in now.aqmask})
    after = HostMasks(_plus(now.apmask, adapters), _plus(now.aqmask, domains))
    held = QueueSet.of_matrices(mdev.matrix for mdev in facts.snapshot.mdevs)
    held |= QueueSet.of_matrices(one.matrix for one in facts.desired.definitions)
    returning = QueueSet.owned_by_host(after) - QueueSet.owned_by_host(now)
    if held & returning or lost & facts.snapshot.overridden:
        return ""
    writes = [(adapters, "apmask"), (domains, "aqmask")]
    return " && ".join(
        f"echo {','.join(f'+{number}' for number in numbers)} > /sys/bus/ap/{name}"
        for numbers, name in writes
        if numbers
    )


def _plus(mask: Mask, numbers: list[int]) -> Mask:
    return mask | type(mask).of(numbers)


def _who(place: BootMasks) -> str:
    match place.setter:
        case MaskSetter.CHZDEV:
            return f"chzdev's persistent setting ({place.place})"
        case MaskSetter.UDEV_RULE:
            return f"the udev rule {place.place}"
        case MaskSetter.COMMAND_LINE:
            return "the kernel's command line (ap.apmask=, ap.aqmask=)"
        case MaskSetter.MODPROBE:
            return f"the options of the module ap in {place.place}"
        case _:
            assert_never(place.setter)


def _command(facts: HostFacts, place: BootMasks) -> str:
    match place.setter:
        case MaskSetter.CHZDEV:
            return "chzdev --type ap --persistent --remove-all"
        case MaskSetter.UDEV_RULE:
            return f"{_disable_rule(place.place)} && udevadm control --reload"
        case MaskSetter.COMMAND_LINE:
            return _edit_command_line(facts)
        case MaskSetter.MODPROBE:
            return f"sed -i -E '{_OPTIONS}' {place.place}"
        case _:
            assert_never(place.setter)


def _advice(place: BootMasks) -> str:
    if place.setter is MaskSetter.COMMAND_LINE:
        return "take ap.apmask= and ap.aqmask= off the kernel's command line and boot"
    return ""


def _disable_rule(path: str) -> str:
    if path.startswith("/etc/"):
        return rf"""sed -i -E '/ATTR\{{[^}}]*a[pq]mask\}}[[:space:]]*=[[:space:]]*"/s/^/#/' {path}"""
    return f"ln -sf /dev/null /etc/udev/rules.d/{path.rpartition('/')[2]}"  # a package's; see udev(7)


def _edit_command_line(facts: HostFacts) -> str:
    """By what this host's boot loader is configured with; empty where that is not known."""
    if "grubby" in facts.boot.tools:
        return "grubby --update-kernel=ALL --remove-args='ap.apmask ap.aqmask'"
    if not facts.boot.configs:
        return ""
    edit = f'sed -i -E "s/{_ARGUMENT}//g" {" ".join(facts.boot.configs)}'
    for tool, line in (
        ("zipl", "zipl"),
        ("update-grub", "update-grub"),
        ("grub2-mkconfig", "grub2-mkconfig -o /boot/grub2/grub.cfg"),
    ):
        if tool in facts.boot.tools:
            return f"{edit} && {line}"
    return edit


def _named(queues: QueueSet) -> str:
    return format_apqns(queues) if len(queues) <= _MANY else f"{len(queues)} queues"


def masks_at_boot(facts: HostFacts) -> HostMasks:
    """What the masks are once everybody else has set them."""
    return masks_after(facts.boot.masks)
