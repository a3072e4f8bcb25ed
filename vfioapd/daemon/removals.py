# SPDX-License-Identifier: Apache-2.0
"""Devices that others removed of late: once is an accident, again and again is a program at work."""

from __future__ import annotations

import time
from collections import Counter, deque

REMEMBERED = 3600.0  # seconds
MOST = 1000


class Removals:
    """Noted by the thread that makes changes, asked for by the one that reads."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, str, str | None]] = deque(maxlen=MOST)

    def note(self, name: str, suspect: str | None) -> None:
        """A matrix has lost its device, while this program held the AP configuration lock."""
        self._noted.append((time.monotonic(), name, suspect))

    def counts(self) -> dict[str, int]:
        """How often each matrix lost its device within the last hour."""
        return dict(Counter(name for _, name, _ in self._recent()))

    def suspects(self) -> dict[str, str]:
        """Of those with a suspect the last one."""
        return {name: suspect for _, name, suspect in self._recent() if suspect}

    def _recent(self) -> list[tuple[float, str, str | None]]:
        since = time.monotonic() - REMEMBERED
        return [one for one in tuple(self._noted) if one[0] >= since]
