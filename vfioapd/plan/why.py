# SPDX-License-Identifier: Apache-2.0
"""Why a queue, a matrix or a guest is not as wanted: the chain from the LPAR to the guest, link by link.

Pure. The first broken link is the one to mend; those after it mostly follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.domain.apqn import Apqn, format_apqns, parse_apqn
from vfioapd.domain.problems import Problem, Refused
from vfioapd.domain.queue_set import QueueSet
from vfioapd.plan.why_guest import guest_links, no_device
from vfioapd.plan.why_host import device_links, queue_links
from vfioapd.plan.why_link import Device, Facts, Finding, Health, Link, Mend, Tool, broken, ok
from vfioapd.plan.why_mend import define_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from vfioapd.domain.definition import Definition
    from vfioapd.domain.matrix import Matrix


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole chain for one subject."""

    subject: str  # queue 05.0011, matrix vault, guest bastion
    findings: tuple[Finding, ...]

    @property
    def first_broken(self) -> Finding | None:
        """The link to mend, or None when nothing is known to be broken."""
        return next((one for one in self.findings if one.health is Health.BROKEN), None)


def why(facts: Facts, text: str) -> Answer:
    """Walk the chain of a queue (05.0011), a matrix or a guest; of these the first that is called so.
    ``matrix:NAME`` and ``guest:NAME`` choose where one name is both. Refused when nothing is called so."""
    kind, _, name = text.rpartition(":")
    if not kind and (queue := as_queue(text)) is not None:
        return Answer(f"queue {queue}", tuple(_of_queue(facts, queue)))
    definition = facts.desired.find(name) if kind in ("", "matrix") else None
    if definition is not None:
        device = _ours(definition)
        return Answer(f"matrix {name}", tuple(_of_device(facts, device, device.queues)))
    if kind in ("", "guest") and _is_guest(facts, name):
        return Answer(f"guest {name}", tuple(_of_guest(facts, name)))
    raise _unknown(facts, text)


def queues_concerned(facts: Facts, text: str) -> frozenset[Apqn]:
    """The queues whose own files are worth a read before the chain is walked."""
    queue = as_queue(text)
    device = _holder(facts, queue) if queue else _device_named(facts, text.rpartition(":")[2])
    found = frozenset(device.matrix.queues()) if device else frozenset()
    return found | {queue} if queue else found


def as_queue(text: str) -> Apqn | None:
    """The queue that the text names, None when it is no queue."""
    try:
        return parse_apqn(text)
    except Refused:
        return None


def _of_device(facts: Facts, device: Device, scope: QueueSet) -> Iterator[Finding]:
    yield _definition_link(facts, device)
    yield from queue_links(facts, device, scope)
    yield from device_links(facts, device, scope)
    yield from guest_links(facts, device)


def _definition_link(facts: Facts, device: Device) -> Finding:
    for sentence, mend in facts.obstacles:
        return broken(Link.DEFINITION, sentence, mend)
    if device.definition is None:
        return ok(Link.DEFINITION, f"{device} was not defined by vfioapd, which leaves it alone")
    return ok(Link.DEFINITION, f"{device} is defined in host.toml, as {device.uuid}")


def _of_queue(facts: Facts, queue: Apqn) -> Iterator[Finding]:
    device = _holder(facts, queue)
    if device is not None:
        yield from _of_device(facts, device, QueueSet.of([queue]))
        return
    yield from queue_links(facts, None, QueueSet.of([queue]))
    yield _nobodys(facts, queue)


def _nobodys(facts: Facts, queue: Apqn) -> Finding:
    if queue in facts.desired.keep:
        mend = Mend(Tool.EDITOR, f"take {queue} out of keep in host.toml, then run: vfioapctl apply")
        return broken(Link.DEFINITION, f"the host keeps {queue} for itself ([host] keep)", mend)
    for sentence, mend_first in facts.obstacles:
        return broken(Link.DEFINITION, sentence, mend_first)
    command, trouble = define_command(facts, queue)
    return broken(Link.DEFINITION, f"no matrix holds {queue}{trouble}", command)


def _of_guest(facts: Facts, name: str) -> Iterator[Finding]:
    device = _device_of_guest(facts, name)
    if device is None:
        yield from no_device(facts, name)
    else:
        yield from _of_device(facts, device, device.queues)


def _is_guest(facts: Facts, name: str) -> bool:
    return facts.snapshot.guest(name) is not None or any(
        one.guest == name for one in facts.desired.definitions
    )


def _device_named(facts: Facts, name: str) -> Device | None:
    definition = facts.desired.find(name)
    return _ours(definition) if definition else _device_of_guest(facts, name)


def _device_of_guest(facts: Facts, name: str) -> Device | None:
    for definition in facts.desired.definitions:
        if definition.guest == name:
            return _ours(definition)
    guest = facts.snapshot.guest(name)
    uuids = sorted(guest.live) + sorted(guest.config) if guest else []
    return _by_uuid(facts, uuids[0]) if uuids else None


def _by_uuid(facts: Facts, uuid: UUID) -> Device:
    definition = facts.desired.by_uuid(uuid)
    return _ours(definition) if definition else Device(uuid, _foreign_matrix(facts, uuid), None)


def _foreign_matrix(facts: Facts, uuid: UUID) -> Matrix:
    mdev = facts.snapshot.mdev(uuid)
    found = (one.matrix for one in facts.snapshot.foreign_definitions if one.uuid == uuid)
    return mdev.matrix if mdev else next(found, facts.snapshot.active_matrix(uuid))


def _holder(facts: Facts, queue: Apqn) -> Device | None:
    """Whoever has the queue: a definition of ours, a device, a definition of somebody else's."""
    for definition in facts.desired.definitions:
        if queue in definition.matrix:
            return _ours(definition)
    held = [(one.uuid, one.matrix) for one in facts.snapshot.mdevs]
    held += [(one.uuid, one.matrix) for one in facts.snapshot.foreign_definitions]
    for uuid, matrix in held:
        if queue in matrix:
            return _by_uuid(facts, uuid)
    return None


def _ours(definition: Definition) -> Device:
    return Device(definition.uuid, definition.matrix, definition)


def _unknown(facts: Facts, text: str) -> Refused:
    names = [*(one.name for one in facts.desired.definitions)]
    guests = [one.name for one in facts.snapshot.guests or ()]
    present = [state.queue for state in facts.snapshot.queues][:1]
    return Refused(
        Problem.UNKNOWN_MATRIX,
        f"neither a queue nor a matrix nor a guest is called {text!r}",
        hint=f"matrices: {', '.join(names) or 'none'}; guests: {', '.join(guests) or 'none'};"
        f" queues are written like {format_apqns(present) or '05.0011'}",
    )
