# SPDX-License-Identifier: Apache-2.0
"""A change that goes back by itself unless it is confirmed in time: for admins who may cut themselves off.

The wait is a file, written with the change and removed by the confirmation, so that it outlives the
daemon. After a reboot the wait is over at once.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.domain.problems import Problem, Refused
from vfioapd.store import atomic

if TYPE_CHECKING:
    from pathlib import Path

LONGEST = 24 * 60 * 60  # seconds; who needs longer does not sit before the screen


@dataclass(frozen=True, slots=True)
class Wait:
    """What to go back to, and when."""

    revision: int | None  # None: there was none, so back to nothing
    deadline: float  # seconds since the epoch
    boot: str

    def left(self, boot: str) -> float:
        """Seconds until it goes back, 0 when it should have; a host that rebooted has waited enough."""
        return max(0.0, self.deadline - time.time()) if self.boot == boot else 0.0


def wait_text(revision: int | None, seconds: int, boot: str) -> str:
    """The file for a wait that begins now."""
    if not 1 <= seconds <= LONGEST:
        raise Refused(
            Problem.BAD_REQUEST,
            f"nobody can confirm within {seconds} seconds",
            hint=f"give 1 to {LONGEST} seconds",
        )
    return json.dumps({"revision": revision, "deadline": time.time() + seconds, "boot": boot}) + "\n"


def read_wait(path: Path) -> Wait | None:
    """The wait that is on, or None. A file that cannot be read has run out."""
    text = atomic.read(path)
    if text is None:
        return None
    try:
        record = json.loads(text)
        return Wait(record["revision"], float(record["deadline"]), str(record["boot"]))
    except (ValueError, KeyError, TypeError):
        return Wait(None, 0.0, "")


def check_no_wait(path: Path, boot: str) -> None:
    """Refuse a further change while one waits: taking that back would take this along."""
    wait = read_wait(path)
    if wait is not None:
        raise Refused(
            Problem.UNCONFIRMED,
            f"the change before this one waits to be confirmed, for another {wait.left(boot):.0f} seconds",
            hint="keep it: vfioapctl confirm; or wait until it has gone back",
        )
