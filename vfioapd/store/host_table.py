# SPDX-License-Identifier: Apache-2.0
"""Strict reading of the tables of host.toml: every mistake is refused with its file, line and key."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from vfioapd.domain.numbers import parse_domain
from vfioapd.domain.problems import Problem, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from enum import StrEnum

_Word = TypeVar("_Word", bound="StrEnum")
_Value = TypeVar("_Value")
_POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)")
_BARE = re.compile(r"[\w.+-]+")
_BARE_NUMBER = re.compile(r"[0-9][0-9a-fA-F]*")
MEND = "correct that line; vfioapctl plan tells whether the file can be read"
_TYPES = {
    bool: "a truth value",
    int: "a number",
    float: "a fraction",
    str: "a text",
    list: "a list",
    dict: "a table",
}


@dataclass(frozen=True, slots=True)
class Source:
    """The file that a value came from, for messages."""

    file: str
    text: str

    def at(self, path: tuple[str, ...], number: int | None) -> str:
        """``FILE:LINE`` of a key, in the form that editors and compilers share."""
        from vfioapd.store.toml_text import line_of, scan  # a file that is right needs no lines

        return f"{self.file}:{line_of(scan(self.text), path, number)}"


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the file: its values, and where each stands."""

    source: Source
    path: tuple[str, ...]
    number: int | None
    values: dict[str, object]

    @property
    def _place(self) -> str:
        if not self.path:
            return "at the top"
        return f"in [{self.path[0]}]" if self.number is None else f"in [[{self.path[0]}]]"

    def refusal(self, key: str, reason: str, hint: str | None = None) -> Refused:
        """The refusal of one key of this table."""
        place = self.source.at((*self.path, key), self.number)
        return Refused(Problem.BAD_HOST_FILE, f"{place}: {key}: {reason}", hint=hint)

    def only(self, known: Iterable[str], home: Mapping[str, str]) -> None:
        """Refuse a key that has no meaning here; a misspelt key must not be a silent default.

        `home` says of the keys of other tables where they belong.
        """
        names = list(known)
        for key in self.values:
            if key not in names:
                if key in home:
                    raise self.misplaced(key, home)
                near = _near(key, names)
                hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
                raise self.refusal(key, "unknown key", hint)

    def misplaced(self, key: str, home: Mapping[str, str]) -> Refused:
        """The refusal of a key that another table has."""
        return self.refusal(key, f"{home[key]}, not {self._place}", "move that line")

    def needed(self, key: str, example: str) -> None:
        """Refuse the table without this key."""
        if key not in self.values:
            where = self._place if self.path else "in the file"
            raise self.refusal(key, f"missing {where}", f"add a line such as: {key} = {example}")

    def text(self, key: str, read: Callable[[str], _Value]) -> _Value:
        """A text, read further by ``read``, whose refusal gets file, line and key."""
        return self._read(key, self.values[key], read)

    def texts(self, key: str, read: Callable[[str], _Value]) -> frozenset[_Value]:
        """A list of texts."""
        return frozenset(self._read(key, value, read) for value in self._list(key, "texts"))

    def numbers(self, key: str, check: Callable[[int], _Value]) -> frozenset[_Value]:
        """A list of whole numbers, each taken by ``check``."""
        values = [self._whole(key, value) for value in self._list(key, "numbers")]
        return self._explained(key, lambda: frozenset(map(check, values)))

    def word(self, key: str, default: _Word) -> _Word:
        """One of a few words."""
        value = self.values.get(key, str(default))
        words = [str(word) for word in type(default)]
        if value not in words:
            shown = repr(value) if isinstance(value, str) else _name_type(value)
            near = _near(value, words) if isinstance(value, str) else []
            hint = f"did you mean {near[0]}?" if near else None
            raise self.refusal(key, f"must be {_any_of(words)}, not {shown}", hint)
        return type(default)(str(value))

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false; the default when the key is not there."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, f"must be true or false, not {_name_type(value)}")
        return value

    def _list(self, key: str, of: str) -> list[object]:
        value = self.values[key]
        if not isinstance(value, list):
            raise self.refusal(key, f"must be a list of {of}, not {_name_type(value)}", "put it in [ ]")
        return value

    def _read(self, key: str, value: object, read: Callable[[str], _Value]) -> _Value:
        if not isinstance(value, str):
            raise self.refusal(key, f"must be a text, not {_name_type(value)}", "put it in double quotes")
        return self._explained(key, lambda: read(value))

    def _whole(self, key: str, value: object) -> int:
        # bool is an int to Python, but nobody can have meant true as an adapter.
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refusal(
                key,
                f"must hold whole numbers, not {_name_type(value)}",
                "write 17 or 0x0011, without quotes",
            )
        return value

    def _explained(self, key: str, read: Callable[[], _Value]) -> _Value:
        try:
            return read()
        except Refused as refused:
            raise self.refusal(key, str(refused), refused.hint) from refused


def load(text: str, file: str) -> dict[str, object]:
    """Parse TOML; a syntax error is refused with line, column and what is known of the cause.

    tomllib, not tomlkit, decides what is TOML: it is strict, and tomlkit reports no line for a key
    that stands twice in a table and column 0 for a bad number.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(text, file, str(error)) from error
    except (ValueError, RecursionError) as error:  # the parser does not say where
        deep = isinstance(error, RecursionError)
        what = "lists nest too deeply" if deep else "a number has too many digits"
        raise Refused(Problem.BAD_HOST_FILE, f"{file}:1: not readable: {what}") from error


def _syntax_error(text: str, file: str, message: str) -> Refused:
    lines = text.split("\n")
    match = _POSITION.search(message)
    if match and match[1]:
        line, column = int(match[1]), int(match[2])
    else:  # the parser met the end of the text; what is not closed began somewhere above
        line, column = len(lines), len(lines[-1]) + 1
    cause, hint = _explain(_token_at(lines[min(line, len(lines)) - 1], column - 1))
    reason = cause or f"not valid TOML: {_POSITION.sub('', message)}"
    return Refused(Problem.BAD_HOST_FILE, f"{file}:{line}: column {column}: {reason}", hint=hint or MEND)


def _token_at(line: str, index: int) -> str:
    """The bare word that the parser stopped in or behind."""
    return next((one[0] for one in _BARE.finditer(line) if one.start() <= index <= one.end()), "")


def _explain(token: str) -> tuple[str | None, str | None]:
    """Say what is wrong with a word that TOML does not know, in this project's terms."""
    if _BARE_NUMBER.fullmatch(token):
        try:
            parse_domain(token)
        except Refused as refused:
            return f"{token} is not a number that can be read one way only", refused.hint
    elif token and not token.isdecimal():
        return None, f'a text stands in double quotes: "{token}"'
    return None, None


def _near(word: str, known: list[str]) -> list[str]:
    """What may have been meant."""
    from difflib import get_close_matches  # a boot waits for the imports of what is right

    return get_close_matches(word, known, n=1)


def _name_type(value: object) -> str:
    return _TYPES.get(type(value), "a date or time")


def _any_of(words: list[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return " or ".join((", ".join(quoted[:-1]), quoted[-1]))
