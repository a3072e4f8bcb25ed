# SPDX-License-Identifier: Apache-2.0
"""Definitions held against the host as it is. Every function returns quietly or refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.domain.apqn import format_apqns
from vfioapd.domain.definition import Claim, check_claims, guest_has_matrix
from vfioapd.domain.matrix import READABLE_PAIRS
from vfioapd.domain.numbers import format_adapter, format_domain
from vfioapd.domain.problems import Problem, Refused, Unavailable
from vfioapd.domain.queue_set import QueueSet
from vfioapd.plan.effects import devices_after
from vfioapd.plan.steps import Where

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from uuid import UUID

    from vfioapd.domain.definition import Definition, Desired
    from vfioapd.domain.snapshot import Guest, Snapshot
    from vfioapd.plan.steps import Plug, Unplug


def check_vfio_ap(snapshot: Snapshot) -> None:
    """Without the matrix device no queue can be given to anybody."""
    if not snapshot.kernel.vfio_ap:
        raise Unavailable(
            Problem.VFIO_AP_MISSING,
            "the kernel's vfio_ap driver is not loaded, so no device can be made",
            hint="load it: modprobe vfio_ap",
        )


def check_on_host(definition: Definition, snapshot: Snapshot) -> None:
    """Refuse queues that this host does not have; a number misread in the other base is recognised."""
    missing = QueueSet.of_matrix(definition.matrix) - snapshot.present
    if missing:
        raise Refused(
            Problem.QUEUE_NOT_ON_HOST,
            f"{definition} cannot have {format_apqns(missing)}: not on this host",
            hint="; ".join(_why_missing(definition, snapshot)) or "vfioapctl queues lists what there is",
            queues=missing,
        )
    _check_readable(definition, snapshot)


def foreign_claims(snapshot: Snapshot, ours: Collection[UUID]) -> dict[UUID, Claim]:
    """What devices and definitions hold that are not ``ours``, by UUID."""
    found = [(mdev.uuid, mdev.matrix, f"mdevctl stop -u {mdev.uuid}") for mdev in snapshot.mdevs]
    found += [
        (one.uuid, one.matrix, f"mdevctl undefine -u {one.uuid}") for one in snapshot.foreign_definitions
    ]
    claims: dict[UUID, Claim] = {}
    for uuid, matrix, mend in found:
        if uuid not in ours:
            claims.setdefault(uuid, Claim(f"mdev {uuid}, not defined by vfioapd", matrix, mend))
    return claims


def check_free(
    definition: Definition, foreign: Mapping[UUID, Claim], others: Iterable[Definition] = ()
) -> None:
    """Refuse a UUID that somebody else's device has, and queues that such a device or another of our
    definitions holds."""
    if definition.uuid in foreign:
        raise _uuid_taken(definition, foreign[definition.uuid].mend)
    check_claims(definition, (one for one in others if one.name != definition.name), foreign.values())


def guest_of(name: str, snapshot: Snapshot) -> Guest:
    """The guest of that name; refused with the names that libvirt knows."""
    if snapshot.guests is None:
        raise Unavailable(
            Problem.LIBVIRT_UNAVAILABLE,
            f"guest {name} cannot be reached: libvirt does not answer",
            hint=f"start it: systemctl start {snapshot.libvirt}",
        )
    guest = snapshot.guest(name)
    if guest is None:
        known = ", ".join(sorted(one.name for one in snapshot.guests)) or "none"
        raise Refused(
            Problem.UNKNOWN_GUEST, f"libvirt knows no guest called {name!r}", hint=f"defined guests: {known}"
        )
    return guest


def check_guest_takes(guest: Guest, definition: Definition, snapshot: Snapshot, desired: Desired) -> None:
    """Refuse a second vfio-ap device for a guest, and a matrix that another guest has.

    libvirt 9.0 would write a second device into a guest's definition, which then no longer starts.
    """
    others = sorted((guest.live | guest.config) - {definition.uuid})
    if others:
        holder = desired.by_uuid(others[0])
        present = _named(others[0], desired)
        mend = f"vfioapctl detach {holder.name} {guest.name}" if holder else f"virsh edit {guest.name}"
        raise guest_has_matrix(guest.name, str(definition), present, mend)
    for other in snapshot.guests or ():
        if other.name != guest.name and definition.uuid in other.live | other.config:
            raise _in_use(
                definition, f"guest {other.name}", f"vfioapctl detach {definition.name} {other.name}"
            )


def check_undefinable(definition: Definition, snapshot: Snapshot, unplugs: Iterable[Unplug]) -> None:
    """Refuse to forget a matrix that a guest's definition names: that guest would no longer start."""
    if snapshot.guests is None and definition.guest is not None:
        guest_of(definition.guest, snapshot)  # cannot be asked
    for guest in snapshot.guests or ():
        if definition.uuid in devices_after(guest, Where.CONFIG, (), unplugs):
            mend = f"vfioapctl detach {definition.name} {guest.name}"
            raise _in_use(definition, f"the definition of guest {guest.name}", mend)


def check_unused(definition: Definition, snapshot: Snapshot, unplugs: Iterable[Unplug]) -> None:
    """Refuse to take a device away under a guest that is not made to let go of it before: the kernel's
    remove would block (vfio_main.c)."""
    user = snapshot.user_of(definition.uuid)
    mdev = snapshot.mdev(definition.uuid)
    if user is not None:
        if definition.uuid in devices_after(user, Where.LIVE, (), unplugs):
            mend = f"vfioapctl detach {definition.name} {user.name}"
            raise _in_use(definition, f"guest {user.name}", mend)
    elif mdev is not None and mdev.in_use:
        raise _in_use(definition, "a guest that libvirt does not know", "shut that guest down")


def check_seen(definition: Definition, snapshot: Snapshot) -> None:
    """Refuse to remove the device of a libvirt guest while libvirt does not answer and no queue of it is
    left: only a queue's status tells that a guest has it (vfio_ap_drv.c:status_show)."""
    mdev = snapshot.mdev(definition.uuid)
    if definition.guest and snapshot.guests is None and mdev is not None and mdev.guest_matrix == frozenset():
        guest_of(definition.guest, snapshot)


def check_documents(
    snapshot: Snapshot, plugs: Iterable[Plug], unplugs: Iterable[Unplug], desired: Desired
) -> None:
    """Refuse a plan that would give a guest a second vfio-ap device in one of its documents.

    A document that the plan does not touch is its owner's, whatever it says.
    """
    made, cut = tuple(plugs), tuple(unplugs)
    for guest in snapshot.guests or ():
        for place in sorted({plug.where for plug in made if plug.guest == guest.name}):
            devices = sorted(devices_after(guest, place, made, cut))
            if len(devices) > 1:
                one, other = (_named(uuid, desired) for uuid in devices[:2])
                raise guest_has_matrix(guest.name, one, other, f"virsh edit {guest.name}")


def _named(uuid: UUID, desired: Desired) -> str:
    holder = desired.by_uuid(uuid)
    return str(holder) if holder else f"mdev {uuid}, not defined by vfioapd"


def _in_use(definition: Definition, owner: str, mend: str) -> Refused:
    return Refused(
        Problem.MATRIX_IN_USE,
        f"{definition} is in use by {owner}",
        hint=f"free it first: {mend}",
        queues=definition.matrix.queues(),
        owners=[owner],
    )


def _uuid_taken(definition: Definition, mend: str) -> Refused:
    return Refused(
        Problem.UUID_TAKEN,
        f"{definition} cannot have UUID {definition.uuid}: an mdev that vfioapd did not define has it",
        hint=f"choose another UUID, take that one over (vfioapctl adopt), or remove it first: {mend}",
        owners=[f"mdev {definition.uuid}"],
    )


def _check_readable(definition: Definition, snapshot: Snapshot) -> None:
    """A kernel without ap_config shows a matrix as a list of pairs, and Linux 6.1 writes past the end of
    its page when there are more than fit (vfio_ap_ops.c:vfio_ap_mdev_matrix_show): it must not get them."""
    queues = len(definition.matrix.adapters) * len(definition.matrix.domains)
    if snapshot.kernel.vfio_ap and not snapshot.kernel.ap_config and queues > READABLE_PAIRS:
        raise Refused(
            Problem.NOT_A_MATRIX,
            f"{definition} has {queues} queues; a device of this kernel can hold {READABLE_PAIRS} that are"
            " read safely",
            hint="define several matrices, or use a kernel with ap_config (Linux 6.12)",
        )


def _why_missing(definition: Definition, snapshot: Snapshot) -> Iterator[str]:
    adapters = {int(card.adapter) for card in snapshot.cards}
    # A machine without QCI lists no domains, so the queues are asked, too.
    domains = {int(state.queue.domain) for state in snapshot.queues} | set(map(int, snapshot.usage_domains))
    for adapter in sorted(definition.matrix.adapters - adapters):
        yield f"there is no adapter {format_adapter(adapter)}{_other_base(adapter, adapters, format_adapter)}"
    for domain in sorted(definition.matrix.domains - domains):
        yield f"there is no domain {format_domain(domain)}{_other_base(domain, domains, format_domain)}"


def _other_base(number: int, there: set[int], show: Callable[[int], str]) -> str:
    """The Redbook itself lists domain 11 where it means 0x11 = 17 (Example 4-6); chzdev prints 17 as 17,
    and who takes that for hexadecimal asks for 0x17 = 23."""
    readings = [int(str(number), 16)]
    readings += [int(f"{number:x}")] if f"{number:x}".isdecimal() else []
    meant = next((one for one in readings if one in there), None)
    return f"; did you mean {show(meant)}?" if meant is not None else ""
