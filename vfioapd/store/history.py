# SPDX-License-Identifier: Apache-2.0
"""Every committed host.toml is kept: NNNNNN.toml, and beside it NNNNNN.json with who, when and why.

The .toml makes a revision, and it is written last. The .json only explains it: when it is torn or gone the
revision is still listed and can still be restored.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.domain.problems import Problem, Refused
from vfioapd.store import atomic

if TYPE_CHECKING:
    from collections.abc import Mapping

REVISIONS = Path("/var/lib/vfioapd/revisions")

_NAME = re.compile(r"([0-9]{6,})\.toml")


@dataclass(frozen=True, slots=True)
class Author:
    """The process that asked for the change (SO_PEERCRED), and what it is called."""

    uid: int
    pid: int
    name: str


@dataclass(frozen=True, slots=True)
class Revision:
    """One kept host.toml. ``time`` and ``author`` are None, the texts empty, where that is not known."""

    number: int
    time: datetime | None = None  # in UTC
    author: Author | None = None
    reason: str = ""  # the command that was given
    summary: str = ""  # what it changed


class History:
    """The revisions in one folder, numbered from 1. One writer at a time. Calls raise OSError."""

    def __init__(self, folder: Path = REVISIONS) -> None:
        self._folder = folder

    def files(
        self, text: str, author: Author, time: datetime, *, reason: str, summary: str
    ) -> tuple[tuple[Path, str], ...]:
        """The two files of the next revision, in the order in which to write them."""
        number = max(self._numbers(), default=0) + 1
        about = {
            "time": time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "uid": author.uid,
            "pid": author.pid,
            "name": author.name,
            "reason": reason,
            "summary": summary,
        }
        explained = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        return (self._path(number, "json"), explained), (self._path(number, "toml"), text)

    def record(self, text: str, author: Author, time: datetime, *, reason: str, summary: str) -> int:
        """Keep a text that was committed, durably, and return its number. ``time`` knows its zone."""
        for path, content in self.files(text, author, time, reason=reason, summary=summary):
            atomic.replace(path, content)
        return max(self._numbers())

    def last(self) -> int | None:
        """The number of the newest revision, or None."""
        return max(self._numbers(), default=None)

    def revisions(self) -> tuple[Revision, ...]:
        """All revisions, the oldest first."""
        return tuple(self._revision(number) for number in sorted(self._numbers()))

    def read(self, number: int) -> str:
        """The host.toml of one revision; refused with the numbers there are."""
        text = atomic.read(self._path(number, "toml"))
        if text is None:
            numbers = self._numbers()
            known = f"{min(numbers)} to {max(numbers)}" if numbers else "none"
            raise Refused(
                Problem.BAD_REQUEST, f"there is no revision {number}", hint=f"revisions kept: {known}"
            )
        return text

    def _numbers(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return [int(match[1]) for match in found if match]

    def _path(self, number: int, suffix: str) -> Path:
        return self._folder / f"{number:06}.{suffix}"

    def _revision(self, number: int) -> Revision:
        try:
            about = json.loads(atomic.read(self._path(number, "json")) or "")
        except (ValueError, RecursionError):
            about = None
        return _explained(number, about) if isinstance(about, dict) else Revision(number)


def _explained(number: int, about: Mapping[str, object]) -> Revision:
    """Take from the .json what is right in it."""
    return Revision(
        number,
        _time(about.get("time")),
        _author(about.get("uid"), about.get("pid"), about.get("name")),
        _text(about.get("reason")),
        _text(about.get("summary")),
    )


def _author(uid: object, pid: object, name: object) -> Author | None:
    if isinstance(uid, int) and isinstance(pid, int) and isinstance(name, str):
        return Author(uid, pid, name)
    return None


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(_text(value))
    except ValueError:
        return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
