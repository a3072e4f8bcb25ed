# SPDX-License-Identifier: Apache-2.0
"""Changes to the text of host.toml that leave every other byte as the admin wrote it.

toml_text says where tables, keys and values stand; only what changes is cut out and put in. tomlkit spells
texts, but does not make the changes: it counts the comment above a table to the table before it, and
removes one with the other, and in ``[ # why`` it puts a new first element behind the #.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import tomlkit

from vfioapd.domain.apqn import parse_apqn
from vfioapd.domain.definition import parse_uuid
from vfioapd.domain.problems import Problem, Refused
from vfioapd.store.toml_text import Block, Kind, array_parts, blocks, line_of, scan, value_span

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.definition import Definition

HEADER = """\
# Which guest gets which Crypto Express queues. vfioapctl changes this file and keeps its comments.
# After an edit by hand run: vfioapctl apply
"""
_DEFAULTS = {"start": "auto", "require": "all"}  # what a missing key means
_BLANK_LINES = r"(?:[ \t]*\r?\n)+"


def end_lines_as(before: str, after: str) -> str:
    """Lines that are new end as all of those before do, where they are of another system."""
    alone = re.compile(r"(?<!\r)\n")
    return alone.sub("\r\n", after) if "\r\n" in before and not alone.search(before) else after


def append_line(text: str, line: str) -> str:
    """Put a line, or several, at the end of a text whose last line may not be ended."""
    return text + line if not text or not line or text.endswith("\n") else f"{text}\n{line}"


def set_keep(text: str, keep: frozenset[Apqn]) -> str:
    """Change [host] keep, or add it above the first matrix."""
    wanted: dict[object, str] = {queue: f'"{queue}"' for queue in sorted(keep)}
    array = f"[{', '.join(wanted.values())}]"
    statements = scan(text)
    for one in statements:
        if one.kind is Kind.PAIR and one.path in (("host",), ("host", "keep")):
            start, end = value_span(text, one)
            inline = one.path == ("host",)  # host = {…}, which can hold nothing but keep
            value = f"{{ keep = {array} }}" if inline else _edit_array(text[start:end], wanted)
            return text[:start] + value + text[end:]
    line = f"keep = {array}\n"
    for one in statements:
        if one.is_header and one.path == ("host",):
            return append_line(text[: one.end], line) + text[one.end :]
    first = next((block.start for block in blocks(statements, "matrix")), len(text))
    gap = "\n" if text[first:] else ""
    return _append_paragraph(text[:first], f"[host]\n{line}{gap}") + text[first:]


def set_definitions(text: str, file: str, before: Sequence[Definition], after: Sequence[Definition]) -> str:
    """Change, add, remove and reorder the [[matrix]] tables."""
    statements = scan(text)
    spans = blocks(statements, "matrix")
    if len(spans) != len(before):
        raise Refused(
            Problem.BAD_HOST_FILE,
            f"{file}:{line_of(statements, ('matrix',))}: matrix: written inline, cannot be changed in place",
            hint="write each matrix as a [[matrix]] table, or make the change in an editor",
        )
    places = _arrange([text[span.start : span.end] for span in spans], before, after)
    result = _join(_between(text, spans), places[:-1])
    return _append_paragraph(result, places[-1]) if places[-1] else result


def _between(text: str, spans: Sequence[Block]) -> list[str]:
    starts = [0, *(span.end for span in spans)]
    ends = [*(span.start for span in spans), len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def _arrange(chunks: list[str], before: Sequence[Definition], after: Sequence[Definition]) -> list[str]:
    """What comes in the place of each chunk; the last one is what comes at the end of the text.

    The tables that stay share the places of the tables that stay, in their new order; a new table
    follows the one it follows in ``after``.
    """
    partners = _partners(before, after)
    kept = sorted(partner for partner in partners if partner is not None)
    places: list[str] = [""] * (len(chunks) + 1)
    seen = 0
    for new, partner in zip(after, partners, strict=True):
        seen += partner is not None
        place = kept[max(seen - 1, 0)] if kept else len(chunks)
        unchanged = partner is not None and before[partner] == new
        chunk = None if partner is None else chunks[partner]
        piece = _new(new) if chunk is None else chunk if unchanged else _edited(chunk, new)
        places[place] = _append_paragraph(places[place], piece)
    return places


def _partners(before: Sequence[Definition], after: Sequence[Definition]) -> list[int | None]:
    """For each new definition the old one it was: that of its name, else (renamed) that of its UUID."""
    by_name = {old.name: number for number, old in enumerate(before)}
    by_uuid = {old.uuid: number for number, old in enumerate(before)}
    named = [by_name.get(new.name) for new in after]
    return [
        by_uuid.get(new.uuid) if number is None and by_uuid.get(new.uuid) not in named else number
        for new, number in zip(after, named, strict=True)
    ]


def _join(between: list[str], places: list[str]) -> str:
    """Put the places between the texts; a place that became empty takes one run of blank lines along."""
    result = between[0]
    for place, gap in zip(places, between[1:], strict=True):
        if place or not re.search(r"(\A|\n)[ \t]*\r?\n\Z|\A\Z", result):
            result = append_line(append_line(result, place), gap)
        elif gap:
            result += re.sub(rf"\A{_BLANK_LINES}", "", gap)
        else:
            result = re.sub(rf"\n{_BLANK_LINES}\Z", "\n", result)
    return result


def _append_paragraph(text: str, paragraph: str) -> str:
    ended = append_line(text, "\n") if text and not text.endswith("\n") else text
    gap = "" if not ended or ended.endswith(("\n\n", "\n\r\n")) else "\n"
    return ended + gap + paragraph


def _edited(chunk: str, new: Definition) -> str:
    old = tomllib.loads(chunk)["matrix"][0]
    if parse_uuid(old["uuid"]) != new.uuid:
        chunk = _set(chunk, "uuid", _spell(str(new.uuid)))
    for key in ("name", "start", "guest", "require"):
        value: str | None = getattr(new, key)
        if old.get(key, _DEFAULTS.get(key)) != value:
            chunk = _set(chunk, key, None if value is None else _spell(str(value)))
    chunk = _set_numbers(chunk, "adapters", new.matrix.adapters, 2)
    chunk = _set_numbers(chunk, "domains", new.matrix.domains, 4)
    if "control_domains" in old or new.matrix.control_domains != new.matrix.domains:
        chunk = _set_numbers(chunk, "control_domains", new.matrix.control_domains, 4)
    return chunk


def _set(chunk: str, key: str, value: str | None) -> str:
    """Change one key of a table, take its line out, or put one below the last."""
    pairs = {one.path[-1]: one for one in scan(chunk) if one.kind is Kind.PAIR}
    pair = pairs.get(key)
    if pair is None:
        last = max(one.end for one in pairs.values())
        return append_line(chunk[:last], f"{key} = {value}\n") + chunk[last:]
    if value is None:
        return chunk[: pair.start] + chunk[pair.end :]
    start, end = value_span(chunk, pair)
    return chunk[:start] + value + chunk[end:]


def _set_numbers(chunk: str, key: str, numbers: Iterable[int], digits: int) -> str:
    pair = next((one for one in scan(chunk) if one.kind is Kind.PAIR and one.path[-1] == key), None)
    if pair is None:
        return _set(chunk, key, _spell_list(numbers, digits))
    start, end = value_span(chunk, pair)
    array = chunk[start:end]
    in_hex = "0x" in array or not array_parts(array)
    spell = f"0x{{:0{digits}x}}" if in_hex else "{}"
    wanted: dict[object, str] = {number: spell.format(number) for number in sorted(numbers)}
    return chunk[:start] + _edit_array(array, wanted) + chunk[end:]


def _edit_array(array: str, wanted: Mapping[object, str]) -> str:
    """Take out what is not wanted, add what is missing; the rest and every comment stay as they are."""
    missing, result, done, behind, dropped = dict(wanted), "", 0, 1, False
    for start, end in array_parts(array):
        part = array[start:end]
        value = _read_element(part) if part != "," else None
        dropped = value not in wanted if part != "," else dropped  # a comma goes with what is before it
        result += array[done:start]
        done = end
        if dropped:
            done += len(array[end:]) - len(array[end:].lstrip(" \t"))
            if array.startswith("\n", done):  # it had a line to itself
                result = re.sub(r"\n[ \t]*\Z", "", result)
        else:
            result += part
        if value in missing:
            missing.pop(value)
            behind = len(result)
    result += array[done:]
    return _insert(result, behind, list(missing.values()))


def _insert(array: str, behind: int, spellings: list[str]) -> str:
    """Put elements behind the last one; ``behind`` is 1 when there is none."""
    text = ", ".join(spellings)
    if text and behind > 1:
        text = f", {text}"
    elif text and array[behind] == "#":
        text += " "
    return re.sub(r", +\]\Z", "]", array[:behind] + text + array[behind:])


def _read_element(text: str) -> object:
    value: object = tomllib.loads(f"x = {text}")["x"]
    return parse_apqn(value) if isinstance(value, str) else value


def _new(definition: Definition) -> str:
    matrix = definition.matrix
    values = {
        "name": _spell(definition.name),
        "uuid": _spell(str(definition.uuid)),
        "adapters": _spell_list(matrix.adapters, 2),
        "domains": _spell_list(matrix.domains, 4),
    }
    if matrix.control_domains != matrix.domains:
        values["control_domains"] = _spell_list(matrix.control_domains, 4)
    values["start"] = _spell(str(definition.start))
    if definition.guest is not None:
        values["guest"] = _spell(definition.guest)
    values["require"] = _spell(str(definition.require))
    return "[[matrix]]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())


def _spell(text: str) -> str:
    return tomlkit.string(text).as_string()


def _spell_list(numbers: Iterable[int], digits: int) -> str:
    return f"[{', '.join(f'0x{number:0{digits}x}' for number in sorted(numbers))}]"
