# SPDX-License-Identifier: Apache-2.0
"""Programs of the machine that the lab calls for one thing and waits for."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from vfioapd.lab.errors import Exit, LabError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SAID_LINES, LAST_LINES = 5, 3


class ProgramFailed(LabError):
    """A sentence with the purpose, the program and its reason; `said` is all that it printed."""

    def __init__(self, sentence: str, status: Exit, said: str = "") -> None:
        super().__init__(sentence, status)
        self.said = said


def run(
    command: Sequence[str],
    *,
    purpose: str,
    seconds: float | None = None,
    status: Exit = Exit.FAILED,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    document: str = "",
) -> str:
    """What the program printed. ProgramFailed unless it ends well, and within the seconds.

    `purpose` begins the sentence of an error: what could not be done because of it.
    """
    try:
        result = subprocess.run(
            command,
            input=document,
            cwd=folder,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramFailed(f"{purpose}: {command[0]} took over {seconds:g} s", status) from error
    except OSError as error:
        raise ProgramFailed(f"{purpose}: {command[0]}: {error.strerror}", status) from error
    if result.returncode:
        said = result.stdout + result.stderr
        reason = _reason(said) or f"exit status {result.returncode}"
        raise ProgramFailed(f"{purpose}: {command[0]}: {reason}", status, said)
    return result.stdout


def _reason(said: str) -> str:
    """Its errors, where it marks them as apt and virsh do, else its last words."""
    lines = list(dict.fromkeys(line.strip() for line in said.splitlines() if line.strip()))
    errors = [line for line in lines if line.startswith(("E:", "W:", "error:"))]
    return "; ".join(errors[:SAID_LINES] or lines[-LAST_LINES:])
