# SPDX-License-Identifier: Apache-2.0
"""What was measured, and how it is written down. A goal is always held against the median."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field

LEFT, RIGHT = ":--", "--:"


@dataclass(frozen=True, slots=True)
class Figure:
    """The samples of one quantity."""

    what: str
    unit: str
    samples: list[float]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    def row(self) -> str:
        """One line of a table."""
        numbers = (min(self.samples), self.median, max(self.samples))
        return _row(self.what, self.unit, str(len(self.samples)), *map(_number, numbers))


@dataclass(frozen=True, slots=True)
class Goal:
    """Something measured and the most that it may be."""

    what: str
    unit: str
    measured: float
    most: float
    inclusive: bool = True

    @property
    def is_met(self) -> bool:
        """Whether the measured value is within the goal."""
        return self.measured <= self.most if self.inclusive else self.measured < self.most

    def row(self) -> str:
        """One line of a table."""
        bound = "at most" if self.inclusive else "under"
        verdict = "yes" if self.is_met else "**no**"
        return _row(self.what, f"{bound} {_number(self.most)} {self.unit}", _number(self.measured), verdict)


@dataclass(frozen=True, slots=True)
class Section:
    """One subject: how it was measured, the figures, what follows from them."""

    title: str
    method: str
    figures: list[Figure] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def encode(self) -> str:
        """As one line of JSON, to leave the lab with."""
        return json.dumps(asdict(self))

    def markdown(self) -> str:
        """As a chapter of RESULTS.md."""
        parts = [f"## {self.title}", self.method, _table(FIGURES_HEAD, [one.row() for one in self.figures])]
        if self.goals:
            parts.append(goals_table(self.goals))
        if self.notes:
            parts.append("\n".join(f"* {note}" for note in self.notes))
        return "\n\n".join(parts)


FIGURES_HEAD = (
    ("figure", LEFT),
    ("unit", LEFT),
    ("n", RIGHT),
    ("min", RIGHT),
    ("median", RIGHT),
    ("max", RIGHT),
)
GOALS_HEAD = (("goal, by medians", LEFT), ("limit", LEFT), ("measured", RIGHT), ("met", LEFT))


def decode_section(line: str) -> Section:
    """Read what Section.encode wrote."""
    record = json.loads(line)
    record["figures"] = [Figure(**one) for one in record["figures"]]
    record["goals"] = [Goal(**one) for one in record["goals"]]
    return Section(**record)


def goals_table(goals: list[Goal]) -> str:
    """The goals as a table."""
    return _table(GOALS_HEAD, [goal.row() for goal in goals])


def ratio(one: Figure, other: Figure) -> float:
    """How many times the median of one is that of the other."""
    return one.median / other.median


def _table(head: tuple[tuple[str, str], ...], rows: list[str]) -> str:
    return "\n".join([_row(*(title for title, _ in head)), _row(*(side for _, side in head)), *rows])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Whole numbers as they are, others with one digit, small ones with two."""
    if value == int(value):
        return str(int(value))
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
