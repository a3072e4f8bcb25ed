# SPDX-License-Identifier: Apache-2.0
"""Desired state: what host.toml says, checked against itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from vfioapd.domain.apqn import Apqn, format_apqns
from vfioapd.domain.problems import Problem, Refused
from vfioapd.domain.queue_set import EMPTY, QueueSet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vfioapd.domain.matrix import Matrix

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Start(StrEnum):
    """Who starts a matrix: the daemon whenever it should be there, or the admin."""

    AUTO = "auto"
    MANUAL = "manual"


class Require(StrEnum):
    """With how many of its queues a guest may start."""

    ALL = "all"
    ANY = "any"
    NONE = "none"


class Binding(StrEnum):
    """How queues are taken from the host: whole rows and columns, or one by one (Linux 7.3)."""

    MASKS = "masks"
    DRIVER_OVERRIDE = "driver_override"


@dataclass(frozen=True, slots=True)
class Definition:
    """One matrix as the admin wants it."""

    name: str
    uuid: UUID
    matrix: Matrix
    start: Start = Start.AUTO
    guest: str | None = None
    require: Require = Require.ALL

    def __str__(self) -> str:
        return f"matrix {self.name}"


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole of host.toml: what holds for the host, and the matrices, in the file's order."""

    keep: frozenset[Apqn] = frozenset()
    definitions: tuple[Definition, ...] = field(default=())
    binding: Binding | None = None  # None: as the host does it now, else what the kernel can do best
    repair: bool = False  # make drifted matrices true again without being asked

    def get(self, name: str) -> Definition:
        """The definition of that name; refused with the names there are."""
        found = self.find(name)
        if found is None:
            known = ", ".join(definition.name for definition in self.definitions) or "none"
            raise Refused(
                Problem.UNKNOWN_MATRIX, f"no matrix is called {name!r}", hint=f"defined matrices: {known}"
            )
        return found

    def find(self, name: str) -> Definition | None:
        """The definition of that name, or None."""
        return next((one for one in self.definitions if one.name == name), None)

    def by_uuid(self, uuid: UUID) -> Definition | None:
        """The definition of that device, or None when the device is not ours."""
        return next((one for one in self.definitions if one.uuid == uuid), None)

    def file_names(self) -> frozenset[str]:
        """What our definitions are called in mdevctl's folder."""
        return frozenset(str(one.uuid) for one in self.definitions)

    def with_definition(self, new: Definition) -> Desired:
        """The same with this definition put in the place of its namesake, or at the end."""
        if self.find(new.name) is None:
            return self.added(new)
        definitions = tuple(new if one.name == new.name else one for one in self.definitions)
        return replace(self, definitions=definitions)

    def added(self, new: Definition) -> Desired:
        """The same with this definition at the end, whatever its name."""
        return replace(self, definitions=(*self.definitions, new))

    def without(self, name: str) -> Desired:
        """The same without the definition of that name."""
        return replace(self, definitions=tuple(one for one in self.definitions if one.name != name))


def check_name(text: str) -> str:
    """Take a name for a matrix: letters, digits, '_', '.', '-'; at most 64, no sign in front."""
    if _NAME.fullmatch(text) is None:
        raise Refused(
            Problem.BAD_NAME,
            f"{text!r} cannot name a matrix",
            hint="use up to 64 letters, digits, '_', '.' and '-', beginning with a letter or a digit",
        )
    return text


def parse_uuid(text: str) -> UUID:
    """Read a UUID in the one form that the kernel's create attribute takes (lib/uuid.c:uuid_is_valid)."""
    if _UUID.fullmatch(text) is None:
        raise Refused(
            Problem.BAD_UUID,
            f"{text!r} is not a UUID",
            hint="write 8-4-4-4-12 hexadecimal digits, such as 825b3872-0001-0003-0011-28a403f8b357",
        )
    return UUID(text)


def check_desired(desired: Desired) -> None:
    """Refuse a desired state that contradicts itself; the first contradiction in file order is named."""
    taken = EMPTY
    names: dict[str, Definition] = {}
    uuids: dict[UUID, Definition] = {}
    guests: dict[str, Definition] = {}
    for definition in desired.definitions:
        _check_complete(definition)
        _check_kept(definition, desired.keep)
        _check_single(definition, names.get(definition.name), uuids.get(definition.uuid))
        queues = QueueSet.of_matrix(definition.matrix)
        if queues & taken:
            check_claims(definition, names.values())
        if definition.guest in guests:
            other = guests[definition.guest]
            mend = f"vfioapctl detach {other.name} {definition.guest}"
            raise guest_has_matrix(definition.guest, str(definition), str(other), mend)
        taken |= queues
        names[definition.name] = uuids[definition.uuid] = definition
        if definition.guest is not None:
            guests[definition.guest] = definition


def _check_complete(definition: Definition) -> None:
    matrix = definition.matrix
    for missing, present, there in (
        ("domain", matrix.domains, matrix.adapters),
        ("adapter", matrix.adapters, matrix.domains),
    ):
        if not present and (there or missing == "adapter"):
            raise Refused(
                Problem.INCOMPLETE_MATRIX,
                f"{definition} has no {missing}, so it holds no queue",
                hint="name at least one adapter and one domain, such as --adapters 5,7 --domains 17",
            )


def _check_kept(definition: Definition, keep: frozenset[Apqn]) -> None:
    held = sorted(queue for queue in keep if queue in definition.matrix)
    if held:
        raise Refused(
            Problem.QUEUE_KEPT_BY_HOST,
            f"{definition} cannot have {format_apqns(held)}: kept by the host ([host] keep)",
            hint=f"leave it out of {definition.name}, or take it out of keep",
            queues=held,
            owners=["host"],
        )


def _check_single(new: Definition, namesake: Definition | None, twin: Definition | None) -> None:
    if namesake is not None:
        raise Refused(
            Problem.NAME_TAKEN,
            f"the name {new.name} is taken: {namesake} is defined already, as {namesake.uuid}",
            hint=f"choose another name, or undefine {new.name} first",
            owners=[namesake.name],
        )
    if twin is not None:
        raise Refused(
            Problem.UUID_TAKEN,
            f"{new} cannot have UUID {new.uuid}: it belongs to {twin}",
            hint="choose another UUID, or leave it out to have one made",
            owners=[twin.name],
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """Somebody's hold on a matrix, and the command that ends it."""

    owner: str
    matrix: Matrix
    mend: str


def claim_of(definition: Definition) -> Claim:
    """A definition's own claim on its queues."""
    first = f"vfioapctl detach {definition.name} {definition.guest}; " if definition.guest else ""
    return Claim(str(definition), definition.matrix, f"{first}vfioapctl undefine {definition.name}")


def check_claims(new: Definition, others: Iterable[Definition], foreign: Iterable[Claim] = ()) -> None:
    """Refuse queues that others hold; every queue is named with its owner, every mend once."""
    wanted = QueueSet.of_matrix(new.matrix)
    every = (*map(claim_of, others), *foreign)
    claims = [claim for claim in every if QueueSet.of_matrix(claim.matrix) & wanted]
    taken = [(queue, claim) for queue in new.matrix.queues() for claim in claims if queue in claim.matrix]
    if not taken:
        return
    owners = dict.fromkeys(claim.owner for _, claim in taken)
    listing = ", ".join(
        f"{format_apqns(queue for queue, claim in taken if claim.owner == owner)} (held by {owner})"
        for owner in owners
    )
    raise Refused(
        Problem.QUEUE_TAKEN,
        f"{new} cannot have {listing}",
        hint="free them first: " + "; ".join(dict.fromkeys(claim.mend for _, claim in taken)),
        queues=[queue for queue, _ in taken],
        owners=[claim.owner for _, claim in taken],
    )


def guest_has_matrix(guest: str, wanted: str, present: str, mend: str) -> Refused:
    """The refusal of a second vfio-ap device; the AP bus of a guest takes one (QEMU, ap-bridge.c)."""
    return Refused(
        Problem.GUEST_HAS_MATRIX,
        f"guest {guest} cannot have {wanted}: it has {present}, and a guest takes one vfio-ap device",
        hint=f"detach that first: {mend}",
        owners=[present],
    )
