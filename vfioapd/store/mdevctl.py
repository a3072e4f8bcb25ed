# SPDX-License-Identifier: Apache-2.0
"""Definitions in mdevctl's folder: ours as mdevctl would write them, and everybody's as they are read.

mdevctl writes in place, without lock or rename, so a reader can meet half a file, and one bad file makes
``mdevctl list`` (and with it libvirt's view) fail for all of them. Hence torn files are reported, not raised.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.domain.definition import parse_uuid
from vfioapd.domain.mask import Mask
from vfioapd.domain.matrix import Matrix
from vfioapd.domain.numbers import BITS, AdapterId, DomainId, check_adapter, check_domain
from vfioapd.domain.problems import Refused
from vfioapd.domain.snapshot import ForeignDefinition
from vfioapd.store import atomic

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping
    from uuid import UUID

    from vfioapd.domain.definition import Definition

MDEVCTL_FOLDER = Path("/etc/mdevctl.d")
DEFINITIONS = MDEVCTL_FOLDER / "matrix"  # one folder for each parent device
MDEV_TYPE = "vfio_ap-passthrough"

# kstrtoul with base 0 (lib/kstrtox.c): 0x is hexadecimal, a leading 0 is octal, one + and one \n are allowed.
_NUMBER = re.compile(r"\+?(?:0[xX](?P<hex>[0-9a-fA-F]+)|0(?P<octal>[0-7]+)|(?P<decimal>0|[1-9][0-9]*))\n?")
_FIELD = r"(?:0x)?([0-9a-fA-F]{0,64})"
_AP_CONFIG = re.compile(rf"{_FIELD}[,\n]{_FIELD}[,\n]{_FIELD}(?:[,\n]|\Z)")
_BASES = {"hex": 16, "octal": 8, "decimal": 10}


class KernelWouldRefuse(ValueError):
    """A value that mdevctl passes on and the kernel does not take: the device could not start."""


@dataclass(frozen=True, slots=True)
class TornDefinition:
    """A file that cannot be read as a definition: half written, or not what mdevctl and kernel take."""

    path: Path
    reason: str
    stops_mdevctl: bool = True  # False: mdevctl lists it, and only the kernel would refuse its values


@dataclass(frozen=True, slots=True)
class DefinitionFolder:
    """The vfio_ap definitions of one folder, and the files that could not be read."""

    definitions: Mapping[UUID, ForeignDefinition] = field(default_factory=dict)
    torn: tuple[TornDefinition, ...] = ()


def format_definition(definition: Definition) -> str:
    """The file's text, byte for byte as mdevctl writes it: two spaces, no line end at the last line.

    ``start`` is always manual: this daemon starts the device, after the masks are set, which mdevctl's
    udev rule does not wait for. The order of ``attrs`` is the order in which mdevctl writes to the kernel.
    """
    # Not json.dumps: with an indent it is pure Python, a millisecond for each definition.
    matrix = definition.matrix
    attrs = [
        *(_attr("adapter", f"0x{number:02x}") for number in sorted(matrix.adapters)),
        *(_attr("domain", f"0x{number:04x}") for number in sorted(matrix.domains)),
        *(_attr("control_domain", f"0x{number:04x}") for number in sorted(matrix.control_domains)),
    ]
    listed = "[\n" + ",\n".join(attrs) + "\n  ]" if attrs else "[]"
    return f'{{\n  "mdev_type": "{MDEV_TYPE}",\n  "start": "manual",\n  "attrs": {listed}\n}}'


def _attr(member: str, number: str) -> str:
    return f'    {{\n      "assign_{member}": "{number}"\n    }}'


def read_folder(folder: Path = DEFINITIONS, *, ours: Container[str] = ()) -> DefinitionFolder:
    """Read every file named by a UUID; other names, other mdev types and vanished files are passed over,
    and unread those whose names are ``ours``: what they say, host.toml says. A name in capitals is not."""
    definitions: dict[UUID, ForeignDefinition] = {}
    torn: list[TornDefinition] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name in ours:
            continue
        try:
            uuid = parse_uuid(path.name)
        except Refused:  # mdevctl warns of these and goes on, too
            continue
        try:
            found = _read_file(path, uuid)
        except (ValueError, OSError) as error:
            torn.append(TornDefinition(path, str(error), not isinstance(error, KernelWouldRefuse)))
            continue
        if found is not None:
            definitions[uuid] = found
    return DefinitionFolder(definitions, tuple(torn))


def parse_definition(text: str, uuid: UUID) -> ForeignDefinition | None:
    """Read one file's text; None when it defines another type of device. Raises ValueError."""
    document = _load(text)
    mdev_type, start = document.get("mdev_type"), document.get("start")
    if not isinstance(mdev_type, str) or not isinstance(start, str):
        raise ValueError("lacks the text mdev_type or start, which mdevctl demands")
    if mdev_type != MDEV_TYPE:
        return None
    # Any other word than auto is manual to mdevctl.
    return ForeignDefinition(uuid, _parse_attrs(document.get("attrs", [])), start == "auto")


def parse_kernel_number(text: str) -> int:
    """Read a number as the kernel reads a write to assign_adapter: ``021`` is 17. Raises ValueError."""
    match = _NUMBER.fullmatch(text)
    if match is None or match.lastgroup is None:
        raise KernelWouldRefuse(f"has a value {text!r} that the kernel does not take for a number")
    return int(match[match.lastgroup], _BASES[match.lastgroup])


def _read_file(path: Path, uuid: UUID) -> ForeignDefinition | None:
    text = atomic.read(path)
    return None if text is None else parse_definition(text, uuid)


def _load(text: str) -> dict[str, object]:
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}" if text.strip() else "is empty") from error
    if not isinstance(document, dict):
        raise ValueError("is not a JSON object")
    return document


def _parse_attrs(attrs: object) -> Matrix:
    """Play the writes that mdevctl would make, in their order; unknown attributes are passed over."""
    numbers: dict[str, set[int]] = {"adapter": set(), "domain": set(), "control_domain": set()}
    for name, value in _pairs(attrs):
        verb, _, member = name.partition("_")
        if name == "ap_config":
            numbers = dict(zip(numbers, _parse_ap_config(value), strict=True))
        elif verb == "assign" and member in numbers:
            numbers[member].add(_in_range(member, parse_kernel_number(value)))
        elif verb == "unassign" and member in numbers:
            numbers[member].discard(_in_range(member, parse_kernel_number(value)))
    return Matrix(
        frozenset(map(AdapterId, numbers["adapter"])),
        frozenset(map(DomainId, numbers["domain"])),
        frozenset(map(DomainId, numbers["control_domain"])),
    )


def _parse_ap_config(value: str) -> list[set[int]]:
    """Read a whole matrix as one write sets it: three masks, filled from the left (Linux 6.12)."""
    match = _AP_CONFIG.match(value)
    if match is None:
        raise KernelWouldRefuse(f"has an ap_config {value!r} that is not three masks")
    return [set(Mask(int(digits.ljust(BITS // 4, "0"), 16)).numbers()) for digits in match.groups()]


def _in_range(member: str, number: int) -> int:
    try:
        return check_adapter(number) if member == "adapter" else check_domain(number)
    except Refused as refused:
        raise KernelWouldRefuse(f"names an impossible number: {refused}") from refused


def _pairs(attrs: object) -> Iterable[tuple[str, str]]:
    if not isinstance(attrs, list):
        raise ValueError("has attrs that are not a list")
    for one in attrs:
        if not isinstance(one, dict) or len(one) != 1:
            raise ValueError("has attrs that are not objects of one key each")
        ((name, value),) = one.items()
        if not isinstance(value, str):
            raise ValueError(f"has a value of {name} that is not a text, which stops mdevctl")
        yield name, value
