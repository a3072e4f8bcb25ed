# SPDX-License-Identifier: Apache-2.0
"""The links of the chain that are the guest's: the device in its two documents, and that it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.plan.why_link import Link, Mend, Tool, broken, ok, unknown
from vfioapd.plan.why_mend import attach_command, shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from vfioapd.domain.snapshot import Guest, Snapshot
    from vfioapd.plan.why_link import Device, Facts, Finding


def guest_links(facts: Facts, device: Device) -> Iterator[Finding]:
    """Whether the guest that is to have the device has it, and runs."""
    wanted = device.definition.guest if device.definition else None
    if facts.snapshot.guests is None:
        yield from _without_libvirt(facts.snapshot.libvirt, wanted)
        return
    name = wanted or _found_in(facts.snapshot, device.uuid)
    if name is None:
        yield from _nobodys(facts, device)
        return
    guest = facts.snapshot.guest(name)
    if guest is None:
        yield from _no_such_guest(device, name)
        return
    yield _hostdev(facts, device, guest)
    yield _running(guest)


def no_device(facts: Facts, name: str) -> Iterator[Finding]:
    """The chain of a guest that no matrix names and that has no vfio-ap device."""
    guest = facts.snapshot.guest(name)
    free = [one.name for one in facts.desired.definitions if one.guest is None]
    sentence = f"no matrix names guest {name}, and its XML has no vfio-ap device"
    if len(free) == 1 and guest is not None:
        mend, words = attach_command(facts, free[0], name)
        yield broken(Link.HOSTDEV, sentence + words, mend)
    else:
        choice = (
            f"; matrices without a guest: {', '.join(free)}" if free else "; no matrix is without a guest"
        )
        yield broken(Link.HOSTDEV, sentence + choice, None)
    if guest is not None:
        yield _running(guest)


def _without_libvirt(daemon: str, wanted: str | None) -> Iterator[Finding]:
    if wanted is None:
        yield unknown(Link.HOSTDEV, "libvirt does not answer, so guests cannot be seen")
    else:
        sentence = f"libvirt does not answer, so guest {wanted} cannot be seen"
        yield broken(Link.HOSTDEV, sentence, shell(f"systemctl start {daemon}"))
    yield unknown(Link.GUEST, "libvirt does not answer")


def _found_in(snapshot: Snapshot, uuid: UUID) -> str | None:
    """A guest that has the device although no definition says so; the running one first."""
    user = snapshot.user_of(uuid)
    defined = (guest.name for guest in snapshot.guests or () if uuid in guest.config)
    return user.name if user else next(defined, None)


def _nobodys(facts: Facts, device: Device) -> Iterator[Finding]:
    mdev = facts.snapshot.mdev(device.uuid)
    if mdev is not None and mdev.in_use:
        yield broken(Link.HOSTDEV, f"a guest that libvirt does not know has {device}", None)
    else:
        how = (
            f"; vfioapctl attach {device.definition.name} GUEST gives it to one" if device.definition else ""
        )
        yield ok(Link.HOSTDEV, f"{device} is for no guest yet{how}")
    yield unknown(Link.GUEST, "no guest is named")


def _no_such_guest(device: Device, name: str) -> Iterator[Finding]:
    sentence = f"{device} is for guest {name}, which libvirt does not know (any more)"
    mend = shell(f"vfioapctl detach {device.definition.name} {name}") if device.definition else None
    yield broken(Link.HOSTDEV, sentence, mend)
    yield unknown(Link.GUEST, f"there is no guest {name}")


def _hostdev(facts: Facts, device: Device, guest: Guest) -> Finding:
    user = facts.snapshot.user_of(device.uuid)
    if user is not None and user.name != guest.name:
        return _with_another(device, guest, user)
    if len(guest.config) > 1:
        sentence = (
            f"the definition of guest {guest.name} has {len(guest.config)} vfio-ap devices; it takes one"
        )
        return broken(Link.HOSTDEV, sentence, Mend(Tool.SHELL, f"virsh edit {guest.name}"))
    lacking = list(_lacking(device, guest))
    if not lacking:
        return ok(Link.HOSTDEV, f"guest {guest.name} has {device} in {_places(device, guest)}")
    return _missing_in(facts, device, guest, lacking)


def _lacking(device: Device, guest: Guest) -> Iterator[str]:
    """Where the device should be and is not; a stranger's device may be in either document alone."""
    if guest.persistent and device.definition is not None and device.uuid not in guest.config:
        yield f"the definition of guest {guest.name}"
    if guest.running and device.uuid not in guest.live:
        yield f"the running guest {guest.name}"


def _with_another(device: Device, guest: Guest, user: Guest) -> Finding:
    sentence = f"{device} is for guest {guest.name}, but guest {user.name} has it plugged in"
    mend = shell(f"vfioapctl detach {device.definition.name} {user.name}") if device.definition else None
    return broken(Link.HOSTDEV, sentence, mend)


def _missing_in(facts: Facts, device: Device, guest: Guest, lacking: list[str]) -> Finding:
    sentence = f"{device} is missing in {' and in '.join(lacking)}"
    if device.definition is None:
        return broken(Link.HOSTDEV, sentence, Mend(Tool.SHELL, f"virsh edit {guest.name}"))
    mend, words = attach_command(facts, device.definition.name, guest.name)
    return broken(Link.HOSTDEV, sentence + words, mend)


def _places(device: Device, guest: Guest) -> str:
    found = ["its definition"] if device.uuid in guest.config else []
    found += ["its running self"] if device.uuid in guest.live else []
    return " and in ".join(found) or "neither of its documents"


def _running(guest: Guest) -> Finding:
    if guest.running:
        return ok(Link.GUEST, f"guest {guest.name} is running")
    return broken(Link.GUEST, f"guest {guest.name} is not running", shell(f"virsh start {guest.name}"))
