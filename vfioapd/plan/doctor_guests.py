# SPDX-License-Identifier: Apache-2.0
"""What doctor says of guests: devices that are missing, too many or gone, and CPUs without AP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.plan.doctor_finding import Code, Finding, Unchecked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from vfioapd.plan.doctor_facts import GuestFacts, HostFacts

_HOST_CPUS = ("host-model", "host-passthrough", "maximum")  # have the feature ap where the host has AP
_OFF = ("disable", "forbid")


def wanted(facts: HostFacts) -> Iterator[Finding | Unchecked]:
    """Guests that host.toml names."""
    if facts.guests is None or facts.snapshot is None or facts.snapshot.guests is None:
        yield Unchecked("guests", "libvirt does not answer" if facts.snapshot else "there is no AP bus")
        return
    by_name = {one.name: one for one in facts.guests}
    known = {one.name for one in facts.snapshot.guests}
    for definition in facts.desired.definitions:
        name = definition.guest
        if name is None:
            continue
        if name not in known:
            yield Finding(
                Code.GUEST_UNKNOWN,
                f"{definition} is for guest {name}, and libvirt knows no guest of that name",
                "nobody gets its queues",
                advice=f"define the guest, or run: vfioapctl detach {definition.name} {name}",
            )
        elif name in by_name and definition.uuid not in _uuids(by_name[name]):
            yield Finding(
                Code.GUEST_UNATTACHED,
                f"guest {name} should have {definition}, and its definition has no such device",
                "it starts without its queues",
                f"vfioapctl attach {definition.name} {name}",
            )


def devices(facts: HostFacts) -> Iterator[Finding]:
    """Devices with which a guest cannot start."""
    for guest in facts.guests or ():
        kept = _kept(facts, guest)
        for uuid in _uuids(guest):
            if kept is not None and uuid != kept:
                yield Finding(
                    Code.GUEST_TWO_DEVICES,
                    f"guest {guest.name} has {_device(facts, uuid)} beside {_device(facts, kept)}",
                    "QEMU takes one vfio-ap device: the guest does not start",
                    _detach(facts, guest, uuid),
                )
            elif _is_gone(facts, uuid):
                yield Finding(
                    Code.GUEST_DEVICE_GONE,
                    f"guest {guest.name} has {_device(facts, uuid)}, which exists nowhere on this host",
                    "the guest does not start: libvirt finds no mediated device",
                    _detach(facts, guest, uuid),
                )


def managed(facts: HostFacts) -> Iterator[Finding]:
    """managed='yes' is for PCI devices."""
    for guest in facts.guests or ():
        if any(one.managed for one in guest.devices):
            yield Finding(
                Code.GUEST_DEVICE_MANAGED,
                f"guest {guest.name} has its vfio-ap device with managed='yes'",
                "libvirt keeps the word and does nothing by it: the device is not made for the guest",
                _edit(guest, "/type='mdev'/s/managed='yes'/managed='no'/"),
            )


def cpus(facts: HostFacts) -> Iterator[Finding]:
    """Without the CPU feature ap a guest has no AP bus, and QEMU refuses the device."""
    given = {one.guest for one in facts.desired.definitions}
    for guest in facts.guests or ():
        if not guest.devices and guest.name not in given:
            continue
        if guest.ap in _OFF:
            yield Finding(
                Code.GUEST_AP_DISABLED,
                f"guest {guest.name} has a CPU with the feature ap switched off",
                "it has no AP bus: QEMU refuses its vfio-ap device",
                _edit(guest, "/<feature /s/policy='(disable|forbid)' name='ap'/policy='require' name='ap'/"),
            )
        elif guest.ap is None and guest.kind == "kvm" and guest.cpu_mode not in _HOST_CPUS:
            model = "<feature policy='require' name='ap'/><feature policy='require' name='apft'/>"
            yield Finding(
                Code.GUEST_AP_UNSTATED,
                f"guest {guest.name} has the CPU model {guest.cpu_model or 'of its own'} and does not name"
                " the feature ap",
                "such a model has no AP bus unless it is asked for: QEMU refuses the vfio-ap device",
                _edit(guest, rf"/<cpu /,/<\/cpu>/s,</model>,</model>{model},"),
            )


def _uuids(guest: GuestFacts) -> list[UUID]:
    return [one.uuid for one in guest.devices]


def _kept(facts: HostFacts, guest: GuestFacts) -> UUID | None:
    """Of several devices the one that host.toml means, else the first."""
    found = _uuids(guest)
    if len(found) < 2:
        return None
    meant = {one.uuid for one in facts.desired.definitions if one.guest == guest.name}
    return next((uuid for uuid in found if uuid in meant), found[0])


def _is_gone(facts: HostFacts, uuid: UUID) -> bool:
    if facts.snapshot is None:
        return False
    known = (facts.desired.by_uuid(uuid), facts.snapshot.mdev(uuid), facts.mdevctl.definitions.get(uuid))
    return not any(known)


def _device(facts: HostFacts, uuid: UUID) -> str:
    definition = facts.desired.by_uuid(uuid)
    return str(definition) if definition else f"mdev {uuid}"


def _detach(facts: HostFacts, guest: GuestFacts, uuid: UUID) -> str:
    definition = facts.desired.by_uuid(uuid)
    if definition is not None:
        return f"vfioapctl detach {definition.name} {guest.name} --config"
    source = f"<source><address uuid='{uuid}'/></source>"
    hostdev = f"<hostdev mode='subsystem' type='mdev' model='vfio-ap'>{source}</hostdev>"
    return f'echo "{hostdev}" | virsh detach-device {guest.name} /dev/stdin --config'


def _edit(guest: GuestFacts, script: str) -> str:
    """Through virsh's own editor, which keeps what dumpxml hides."""
    return f'''VISUAL="sed -i -E \\"{script}\\"" virsh edit {guest.name}'''
