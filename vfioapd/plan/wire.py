# SPDX-License-Identifier: Apache-2.0
"""Steps as plain JSON values and back: for the journal, which must be read after a crash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING
from uuid import UUID

from vfioapd.domain.apqn import Apqn, parse_apqn
from vfioapd.domain.mask import Mask, parse_mask
from vfioapd.domain.matrix import Matrix
from vfioapd.domain.numbers import check_adapter, check_domain
from vfioapd.domain.problems import VfioApError
from vfioapd.plan.steps import (
    Assign,
    Axis,
    Bind,
    CreateMdev,
    Member,
    Plug,
    RemoveMdev,
    SetMatrix,
    SetOverride,
    Step,
    Unassign,
    Unbind,
    Unplug,
    Where,
    WriteFile,
    WriteMask,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Json = None | bool | int | str | Sequence["Json"] | Mapping[str, "Json"]

_STEPS: dict[str, Callable[..., Step]] = {
    one.__name__: one
    for one in (
        WriteMask,
        SetOverride,
        Bind,
        Unbind,
        CreateMdev,
        RemoveMdev,
        SetMatrix,
        Assign,
        Unassign,
        Plug,
        Unplug,
        WriteFile,
    )
}


def encode_step(step: Step) -> dict[str, Json]:
    """One JSON object: the step's kind and its fields."""
    values = {one.name: _encode(getattr(step, one.name)) for one in fields(step)}
    return {"step": type(step).__name__, **values}


def decode_step(record: Mapping[str, Json]) -> Step:
    """The step that was encoded; ValueError when the record is none."""
    kind = str(record.get("step"))
    ends = _ENDS.get(kind, _unchanged)  # of a file, before and after are texts whatever they look like
    decoders = {**_SCALARS, "before": ends, "after": ends}
    try:
        values = {
            name: decoders.get(name, _unchanged)(value) for name, value in record.items() if name != "step"
        }
        return _STEPS[kind](**values)
    except (KeyError, TypeError, VfioApError) as error:
        raise ValueError(f"not a step: {dict(record)}") from error


def _encode(value: object) -> Json:
    match value:
        case Mask() | UUID() | Apqn():
            return str(value)
        case Matrix(adapters, domains, control_domains):
            return {
                "adapters": sorted(adapters),
                "domains": sorted(domains),
                "control": sorted(control_domains),
            }
        case tuple():
            return [encode_step(one) for one in value]
        case None | int() | str():
            return value
        case _:
            raise TypeError(f"{value!r} has no JSON form")


def _decode_refill(value: Json) -> tuple[Step, ...]:
    records = value if isinstance(value, list) else []
    return tuple(decode_step(record) for record in records if isinstance(record, dict))


def _decode_matrix(lists: Json) -> Matrix:
    if not isinstance(lists, dict):
        raise TypeError(f"{lists!r} is no matrix")
    return Matrix(
        frozenset(map(check_adapter, _ints(lists["adapters"]))),
        frozenset(map(check_domain, _ints(lists["domains"]))),
        frozenset(map(check_domain, _ints(lists["control"]))),
    )


def _ints(value: Json) -> list[int]:
    return [one for one in value if isinstance(one, int)] if isinstance(value, list) else []


def _unchanged(value: Json) -> Json:
    return value


_SCALARS: dict[str, Callable[[Json], object]] = {
    "refill": _decode_refill,
    "uuid": lambda value: UUID(str(value)),
    "queue": lambda value: parse_apqn(str(value)),
    "axis": lambda value: Axis(str(value)),
    "member": lambda value: Member(str(value)),
    "where": lambda value: Where(str(value)),
}

_ENDS: dict[str, Callable[[Json], object]] = {
    WriteMask.__name__: lambda value: parse_mask(str(value)),
    SetMatrix.__name__: _decode_matrix,
}
