# SPDX-License-Identifier: Apache-2.0
"""Where things stand in a TOML text: lines for error messages, spans for changes that touch nothing else.

Only for text that a TOML parser has accepted: what is wrong there was refused before. Neither tomllib
nor tomlkit tells the line of a key that parsed well.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TOKEN = re.compile(
    r'''
      """(?:\\.|[^\\])*?"{3,5}      # a text may end in one or two quotes of its own
    | \'\'\'.*?\'{3,5}
    | "(?:\\.|[^"\\])*"
    | '[^']*'
    | \#[^\n]*
    | [\[\]{}=,\n]
    | [^"'\#\[\]{}=,\n]+
    ''',
    re.DOTALL | re.VERBOSE,
)


class Kind(Enum):
    """What one statement is."""

    BLANK = auto()
    COMMENT = auto()
    TABLE = auto()
    ARRAY_TABLE = auto()
    PAIR = auto()


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement with its line end; a value of many lines is one statement."""

    kind: Kind
    line: int  # of its first character, from 1
    start: int
    end: int  # offsets into the text
    table: tuple[str, ...] = ()  # where a pair stands
    path: tuple[str, ...] = ()  # from the root: of a table itself, of a pair with its table
    number: int | None = None  # which of the array's tables it is or is in, from 0

    @property
    def is_header(self) -> bool:
        """Whether a table begins here."""
        return self.kind in (Kind.TABLE, Kind.ARRAY_TABLE)


@dataclass(frozen=True, slots=True)
class Block:
    """One table of an array, with the comments that are surely its own."""

    start: int
    end: int


def scan(text: str) -> tuple[Statement, ...]:
    """Cut valid TOML into its statements, in order and without gaps."""
    found: list[Statement] = []
    table: tuple[str, ...] = ()
    counts: dict[str, int] = {}
    line = 1
    for start, tokens in _split(text):
        kind, key = _classify(tokens)
        if kind is Kind.ARRAY_TABLE and len(key) == 1:
            counts[key[0]] = counts.get(key[0], -1) + 1
        if kind in (Kind.TABLE, Kind.ARRAY_TABLE):
            table, path = key, key
        else:
            path = table + key if key else ()
        number = counts.get(path[0]) if path else None
        length = sum(map(len, tokens))
        found.append(Statement(kind, line, start, start + length, table, path, number))
        line += sum(token.count("\n") for token in tokens)
    return tuple(found)


def line_of(statements: Sequence[Statement], path: tuple[str, ...], number: int | None = None) -> int:
    """The line of a key, or of the nearest thing around it that has one; 1 for the file as a whole."""
    best = max(
        (one for one in statements if one.path and one.path == path[: len(one.path)] and _is_in(one, number)),
        key=lambda one: len(one.path),
        default=None,
    )
    return best.line if best else 1


def blocks(statements: Sequence[Statement], array: str) -> tuple[Block, ...]:
    """The [[array]] tables, each from its own comments to its last pair and the comments below it.

    Comments squeezed between the last pair of one table and the header of the next may belong to
    either, so they belong to none: removing a table never takes a comment of its neighbour along.
    """
    heads = [at for at, one in enumerate(statements) if one.kind is Kind.ARRAY_TABLE and one.path == (array,)]
    return tuple(
        Block(statements[_first(statements, at)].start, statements[_last(statements, at)].end) for at in heads
    )


def value_span(text: str, pair: Statement) -> tuple[int, int]:
    """Where the value of a pair begins and ends: without the blanks around it and the comment behind it."""
    start = end = 0
    for match in _TOKEN.finditer(text, pair.start, pair.end):
        token = match[0]
        if token.strip() and not token.startswith("#"):
            end = match.start() + len(token.rstrip())
            if not start and token == "=":
                start = match.end()
    return start + len(text[start:end]) - len(text[start:end].lstrip()), end


def array_parts(array: str) -> list[tuple[int, int]]:
    """Where the elements and the commas of a flat array stand in its text, in order."""
    found = []
    for match in _TOKEN.finditer(array):
        token = match[0].strip()
        if token and token not in ("[", "]") and not token.startswith("#"):
            start = match.start() + len(match[0]) - len(match[0].lstrip())
            found.append((start, start + len(token)))
    return found


def _split(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each statement's offset and tokens; brackets keep a statement going over line ends."""
    tokens: list[str] = []
    start = depth = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        tokens.append(token)
        depth += (token in ("[", "{")) - (token in ("]", "}"))
        if token == "\n" and depth == 0:
            yield start, tokens
            tokens, start = [], match.end()
    if tokens:
        yield start, tokens


def _classify(tokens: list[str]) -> tuple[Kind, tuple[str, ...]]:
    solid = [token for token in tokens if token.strip()]
    if not solid:
        return Kind.BLANK, ()
    if solid[0].startswith("#"):
        return Kind.COMMENT, ()
    if solid[0] == "[":
        kind = Kind.ARRAY_TABLE if solid[1] == "[" else Kind.TABLE
        return kind, _key("".join(token for token in solid if token not in "[]" and token[0] != "#"))
    return Kind.PAIR, _key("".join(solid[: solid.index("=")]))


def _key(text: str) -> tuple[str, ...]:
    """Let the TOML parser undo quotes, dots and escapes."""
    path: list[str] = []
    inner: object = tomllib.loads(f"{text.strip()} = 0")
    while isinstance(inner, dict):
        ((name, inner),) = inner.items()
        path.append(name)
    return tuple(path)


def _is_in(statement: Statement, number: int | None) -> bool:
    return None in (number, statement.number) or statement.number == number


def _first(statements: Sequence[Statement], head: int) -> int:
    first = head
    while first > 0 and statements[first - 1].kind is Kind.COMMENT:
        first -= 1
    squeezed = first > 0 and statements[first - 1].kind is not Kind.BLANK
    return head if squeezed else first


def _last(statements: Sequence[Statement], head: int) -> int:
    last = at = head
    while at + 1 < len(statements) and not statements[at + 1].is_header:
        at += 1
        if statements[at].kind is Kind.PAIR:
            last = at
    after = last
    while after + 1 < len(statements) and statements[after + 1].kind is Kind.COMMENT:
        after += 1
    squeezed = after + 1 < len(statements) and statements[after + 1].is_header
    return last if squeezed else after
