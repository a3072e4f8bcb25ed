# SPDX-License-Identifier: Apache-2.0
"""Colour for people, on a terminal only."""

from __future__ import annotations

import os
import sys

BOLD, DIM, RED, GREEN, YELLOW, CYAN = (f"\033[{code}m" for code in ("1", "2", "31", "32", "33", "36"))


def paint(text: str, colour: str) -> str:
    """The text in a colour when standard output is a terminal and NO_COLOR is not set."""
    if not colour or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"{colour}{text}\033[0m"
