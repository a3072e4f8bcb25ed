# SPDX-License-Identifier: Apache-2.0
"""Why a device or definition that somebody else made cannot become ours as it is. Pure.

Its files are looked at first: while they contradict each other, what they define says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.domain.apqn import format_apqns
from vfioapd.domain.definition import Definition
from vfioapd.domain.matrix import EMPTY_MATRIX
from vfioapd.domain.problems import Problem, Refused
from vfioapd.domain.queue_set import QueueSet
from vfioapd.plan.adopt_facts import MDEVCTL_PLACE, Finding, Trouble
from vfioapd.plan.checks import check_on_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.domain.matrix import Matrix
    from vfioapd.domain.snapshot import Guest
    from vfioapd.plan.adopt_facts import Device, Facts

Said = tuple[Trouble, str, str]  # code, sentence, hint


def bars(facts: Facts, device: Device) -> list[Finding]:
    """All that contradicts itself about the device; nothing of it: the device can become ours."""
    said = list(_of_files(device))
    if not said and device.matrix is not None:
        said += _of_matrix(facts, device, device.matrix)
        said += _of_guests(facts, device)
    return [Finding(*one, uuid=device.uuid, bars=True) for one in said]


def _of_files(device: Device) -> Iterator[Said]:
    torn = [one for one in device.files if one.torn]
    for one in torn:
        sentence = f"{one.path} cannot be read as a definition: it {one.torn}"
        yield Trouble.TORN_DEFINITION, sentence, f"repair it or move it away: mv {one.path} /root/"
    if torn or not device.files:
        return
    path = device.files[0].path
    if len(device.files) > 1:
        paths = " and ".join(one.path for one in device.files)
        sentence = f"{paths} define devices of one UUID, and the kernel makes one device of a UUID"
        hint = "move all but one of them away; mdevctl undefine might take more than one"
        yield Trouble.DUPLICATE_UUID, sentence, hint
    elif device.definition is None:
        sentence = f"{device} is active, but {path} defines another type of device for that UUID"
        yield Trouble.OTHER_TYPE, sentence, f"move the file away if it is left over: mv {path} /root/"
    elif not device.files[0].in_place:
        right = f"{MDEVCTL_PLACE}/{device.uuid}"
        sentence = f"{path} defines a vfio_ap device, which mdevctl expects in {right}"
        yield Trouble.MISPLACED_DEFINITION, sentence, f"mv {path} {right}"
    elif device.mdev is not None and device.mdev.matrix != device.definition.matrix:
        now, then = _members(device.mdev.matrix), _members(device.definition.matrix)
        sentence = f"{device} holds {now}, and its definition {then}"
        hint = f"to go on with what is active, drop the definition: mdevctl undefine -u {device.uuid}"
        yield Trouble.DEFINITION_DIFFERS, sentence, hint


def _of_matrix(facts: Facts, device: Device, matrix: Matrix) -> Iterator[Said]:
    if matrix == EMPTY_MATRIX:
        sentence = f"{device} was assigned nothing" if device.mdev else f"{device} assigns nothing"
        yield Trouble.EMPTY_MATRIX, sentence, f"remove it: {_remove(device)}"
    elif not matrix.queues():
        what = "domain" if matrix.adapters else "adapter"
        sentence = f"{device} has no {what}, so it holds no queue"
        yield Trouble.INCOMPLETE_MATRIX, sentence, f"assign one, or remove it: {_remove(device)}"
    yield from _not_on_host(facts, device, matrix)
    if kept := [queue for queue in sorted(facts.desired.keep) if queue in matrix]:
        sentence = f"{device} holds {format_apqns(kept)}, which the host is to keep ([host] keep)"
        yield Trouble.QUEUE_KEPT_BY_HOST, sentence, "take it out of keep, or out of the device"
    yield from _overlaps(facts, device, matrix)


def _not_on_host(facts: Facts, device: Device, matrix: Matrix) -> Iterator[Said]:
    try:
        check_on_host(Definition(str(device.uuid), device.uuid, matrix), facts.snapshot)
    except Refused as refused:
        if refused.problem is Problem.QUEUE_NOT_ON_HOST:
            sentence = f"{device} names {', '.join(refused.queues)}, not on this host"
            yield Trouble.QUEUE_NOT_ON_HOST, sentence, str(refused.hint)
        else:
            sentence = f"{device} has {len(matrix.queues())} queues, more than this kernel shows safely"
            yield Trouble.MATRIX_TOO_LARGE, sentence, str(refused.hint)


def _overlaps(facts: Facts, device: Device, matrix: Matrix) -> Iterator[Said]:
    """Said of both owners of a queue, so that either can be settled."""
    mine = QueueSet.of_matrix(matrix)
    for one in facts.desired.definitions:
        if shared := mine & QueueSet.of_matrix(one.matrix):
            yield _taken(device, shared, str(one), _remove(device))
    for uuid, claim in facts.claims.items():
        shared = mine & QueueSet.of_matrix(claim.matrix)
        if shared and uuid != device.uuid:
            kind = "mdev" if facts.snapshot.mdev(uuid) else "definition"
            yield _taken(device, shared, f"{kind} {uuid}", claim.mend if device.mdev else _remove(device))


def _taken(device: Device, shared: QueueSet, other: str, drop: str) -> Said:
    return Trouble.QUEUE_TAKEN, f"{device} and {other} both hold {format_apqns(shared)}", f"drop one: {drop}"


def _of_guests(facts: Facts, device: Device) -> Iterator[Said]:
    if len(device.guests) > 1:
        names = " and ".join(guest.name for guest in device.guests)
        sentence = f"guests {names} name {device}, which one guest can have at a time"
        yield Trouble.TWO_GUESTS, sentence, f"take it out of one: virsh edit {device.guests[-1].name}"
    for guest in device.guests:
        yield from _second_device(facts, device, guest)


def _second_device(facts: Facts, device: Device, guest: Guest) -> Iterator[Said]:
    for document, place in ((guest.live, "as it runs"), (guest.config, "in its definition")):
        if device.uuid in document and len(document) > 1:
            others = ", ".join(str(uuid) for uuid in sorted(document - {device.uuid}))
            sentence = (
                f"guest {guest.name} has {device} {place} and also {others}, and a guest takes one"
                " vfio-ap device"
            )
            yield Trouble.GUEST_HAS_MATRIX, sentence, f"take one out: virsh edit {guest.name}"
    for one in facts.desired.definitions:
        if one.guest == guest.name:
            sentence = f"guest {guest.name} has {device}, and {one} is defined for that guest"
            yield Trouble.GUEST_HAS_MATRIX, sentence, f"vfioapctl detach {one.name} {guest.name}"


def _remove(device: Device) -> str:
    """What does away with it, where it was left over."""
    return f"mdevctl {'stop' if device.mdev else 'undefine'} -u {device.uuid}"


def _members(matrix: Matrix) -> str:
    queues = format_apqns(matrix.queues()) or "no queue"
    if matrix.control_domains == matrix.domains:
        return queues
    control = ", ".join(f"{domain:04x}" for domain in sorted(matrix.control_domains)) or "none"
    return f"{queues} (control domains: {control})"
