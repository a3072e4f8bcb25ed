# SPDX-License-Identifier: Apache-2.0
"""host.toml, the one truth about what an admin wants: read strictly, changed without losing a comment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vfioapd.domain.apqn import parse_apqn
from vfioapd.domain.definition import (
    Binding,
    Definition,
    Desired,
    Require,
    Start,
    check_desired,
    check_name,
    parse_uuid,
)
from vfioapd.domain.matrix import Matrix
from vfioapd.domain.numbers import check_adapter, check_domain
from vfioapd.domain.problems import Problem, Refused
from vfioapd.store import atomic
from vfioapd.store.host_table import Source, Table, load

if TYPE_CHECKING:
    from pathlib import Path

HOST_FILE = "/etc/vfioapd/host.toml"
VERSION = 1

_TOP = ("version", "host", "matrix")
_HOST = ("keep", "binding", "repair")
_NEEDED = {
    "name": '"bastion"',
    "uuid": '"825b3872-0001-0003-0011-28a403f8b357" (uuidgen makes one)',
    "adapters": "[0x05, 0x07]",
    "domains": "[0x0011]",
}
_MATRIX = (*_NEEDED, "control_domains", "start", "guest", "require")
# Where a key belongs that is met elsewhere: to TOML a line belongs to the last table begun above it.
_HOME = {
    "version": "belongs at the top of the file, before the first table",
    **dict.fromkeys(_HOST, "belongs under [host]"),
    **dict.fromkeys(_MATRIX, "belongs under the [[matrix]] that it is about"),
}

# Which key of a [[matrix]] to point at when two definitions contradict each other.
_KEY_OF = {
    Problem.NAME_TAKEN: "name",
    Problem.UUID_TAKEN: "uuid",
    Problem.GUEST_HAS_MATRIX: "guest",
}


@dataclass(frozen=True, slots=True)
class HostFile:
    """The file as it stands: its text, for ``rewrite``, and what it says."""

    text: str
    desired: Desired


def read(path: Path) -> HostFile:
    """Read and check the file; a missing one says nothing. Raises Refused."""
    text = read_text(path) or ""
    return HostFile(text, parse(text, str(path)))


def read_text(path: Path) -> str | None:
    """The file to the letter, with mistakes or without; None: there is none. Raises Refused."""
    try:
        return atomic.read(path)
    except OSError as error:
        raise Refused(
            Problem.BAD_HOST_FILE,
            f"{path} cannot be read: {error.strerror}",
            hint="it must be a file that root may read by its mode, whoever owns it: chmod a+r",
        ) from error


def parse(text: str, file: str) -> Desired:
    """Read host.toml's text; ``file`` is the name for messages. A text without a key says nothing.

    Raises Refused(BAD_HOST_FILE) for the first mistake. A contradiction between two right definitions
    keeps the problem code that a command would get for it (QUEUE_TAKEN, NAME_TAKEN, …). Every
    sentence begins with ``FILE:LINE: ``.
    """
    _check_utf8(text, file)
    document = load(text, file)
    if not document:
        return Desired()
    top = Table(Source(file, text), (), None, document)
    top.only(_TOP, _HOME)
    _check_version(top)
    desired = replace(_host(top), definitions=tuple(map(_definition, _matrix_tables(top))))
    _check_contradictions(desired, top.source)
    return desired


def says_nothing(text: str) -> bool:
    """Whether there is no key in it, as in a file that was cut off in its first comment, or is empty."""
    return not load(text, HOST_FILE)


def _check_utf8(text: str, file: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        byte = ord(text[error.start]) & 0xFF  # surrogateescape keeps the byte in the low half
        raise Refused(
            Problem.BAD_HOST_FILE,
            f"{file}:{line}: byte 0x{byte:02x} is not UTF-8 text",
            hint="save the file as UTF-8",
        ) from error
    if text.startswith("\ufeff"):
        raise Refused(
            Problem.BAD_HOST_FILE,
            f"{file}:1: the file begins with a byte order mark, which TOML has not",
            hint="save the file as UTF-8 without one",
        )


def rewrite(text: str, after: Desired, *, file: str = HOST_FILE) -> str:
    """The text changed to say ``after``: comments, order, blank lines and spellings stay as they are.

    Raises Refused when the text is no host.toml, or is written in a way that cannot be changed in
    place (inline tables), or when ``after`` contradicts itself.
    """
    from vfioapd.store import host_edit  # only here: a restore reads, and must not wait for tomlkit

    before = parse(text, file)
    if before == after:
        return text
    original = text
    if not text.strip():
        text = host_edit.HEADER
    if not load(text, file):
        text = host_edit.append_line(text, f"version = {VERSION}\n")
    if before.keep != after.keep:
        text = host_edit.set_keep(text, after.keep)
    if before.definitions != after.definitions:
        text = host_edit.set_definitions(text, file, before.definitions, after.definitions)
    text = host_edit.end_lines_as(original, text)
    if parse(text, file) != after:  # the last guard: never hand out a text that says something else
        raise Refused(
            Problem.BAD_HOST_FILE,
            f"{file}:1: the file is written in a way that cannot be changed in place",
            hint="make the change in an editor, then run: vfioapctl apply",
        )
    return text


def _check_version(top: Table) -> None:
    if "version" not in top.values:
        for table in (_host_table(top), *_matrix_tables(top)):
            if "version" in table.values:
                raise table.misplaced("version", _HOME)
    top.needed("version", str(VERSION))
    version = top.values["version"]
    if type(version) is not int or version != VERSION:
        raise top.refusal("version", f"must be {VERSION}", "a newer vfioapd may read other versions")


def _host_table(top: Table) -> Table:
    host = top.values.get("host", {})
    if not isinstance(host, dict):
        raise top.refusal("host", "must be a table", "write [host] on a line of its own")
    return Table(top.source, ("host",), None, host)


def _host(top: Table) -> Desired:
    """What [host] says; the matrices are still to come."""
    table = _host_table(top)
    table.only(_HOST, _HOME)
    return Desired(
        keep=table.texts("keep", parse_apqn) if "keep" in table.values else frozenset(),
        binding=table.word("binding", Binding.MASKS) if "binding" in table.values else None,
        repair=table.flag("repair", default=False),
    )


def _matrix_tables(top: Table) -> list[Table]:
    tables = top.values.get("matrix", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise top.refusal("matrix", "must be a list of tables", "write [[matrix]] on a line of its own")
    return [Table(top.source, ("matrix",), number, values) for number, values in enumerate(tables)]


def _definition(table: Table) -> Definition:
    table.only(_MATRIX, _HOME)
    for key, example in _NEEDED.items():
        table.needed(key, example)
    domains = table.numbers("domains", check_domain)
    control = table.numbers("control_domains", check_domain) if "control_domains" in table.values else domains
    return Definition(
        name=table.text("name", check_name),
        uuid=table.text("uuid", parse_uuid),
        matrix=Matrix(table.numbers("adapters", check_adapter), domains, control),
        start=table.word("start", Start.AUTO),
        guest=table.text("guest", _check_guest) if "guest" in table.values else None,
        require=table.word("require", Require.ALL),
    )


def _check_guest(text: str) -> str:
    """libvirt takes nearly any name, but none that is empty, unprintable or holds a slash."""
    if not text or "/" in text or not text.isprintable():
        raise Refused(
            Problem.BAD_NAME, f"{text!r} cannot name a guest", hint="leave the line out for no guest"
        )
    return text


def _check_contradictions(desired: Desired, source: Source) -> None:
    try:
        check_desired(desired)
    except Refused:
        # Only now, since it is slow: ask again with one definition more each time, to learn which.
        for number in range(len(desired.definitions)):
            _check_up_to(desired, number, source)
        raise


def _check_up_to(desired: Desired, number: int, source: Source) -> None:
    part = replace(desired, definitions=desired.definitions[: number + 1])
    try:
        check_desired(part)
    except Refused as refused:
        place = source.at(("matrix", _KEY_OF.get(refused.problem, "")), number)
        raise Refused(
            refused.problem,
            f"{place}: {refused}",
            hint=_hint(refused, part, source),
            queues=refused.queues,
            owners=refused.owners,
        ) from refused


def _hint(refused: Refused, desired: Desired, source: Source) -> str:
    """In a file the mend is an edit, so say where the other owner stands."""
    others = [
        f"{owner} is in {source.at(('matrix',), number)}"
        for owner in refused.owners
        for number, definition in enumerate(desired.definitions[:-1])
        if owner in (definition.name, str(definition))
    ]
    if refused.problem is Problem.QUEUE_KEPT_BY_HOST:
        others = [f"keep is in {source.at(('host', 'keep'), None)}"]
    return "; ".join(dict.fromkeys(others)) or str(refused.hint)
