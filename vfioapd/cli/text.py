# SPDX-License-Identifier: Apache-2.0
"""Text for people: columns, colour on a terminal only. Standard library, and little of it."""

import os
import sys

RED, GREEN, YELLOW, BLUE, BOLD, DIM = "31", "32", "33", "34", "1", "2"

Cell = tuple[str, str]  # text and colour; an empty colour is none


def paint(text: str, colour: str) -> str:
    """The text in a colour when standard output is a terminal and NO_COLOR is not set."""
    if not colour or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{colour}m{text}\033[0m"


def columns(header: list[str], rows: list[list[Cell]]) -> str:
    """A table with two spaces between columns, each as wide as its widest cell."""
    table = [[(title, BOLD) for title in header], *rows]
    widths = [max(len(row[i][0]) for row in table) for i in range(len(header))]
    return "\n".join(_line(row, widths) for row in table)


def terminal_width() -> int:
    """Columns of the terminal; 80 where there is none."""
    try:
        return int(os.environ.get("COLUMNS", "")) or 80
    except ValueError:
        pass
    try:
        return os.get_terminal_size().columns or 80
    except OSError:
        return 80


def plural(number: int, one: str, many: str) -> str:
    """1 queue, 2 queues."""
    return f"{number} {one if number == 1 else many}"


def _line(row: list[Cell], widths: list[int]) -> str:
    cells = [
        paint(text, colour) + " " * (width - len(text))
        for (text, colour), width in zip(row, widths, strict=True)
    ]
    return "  ".join(cells).rstrip()
