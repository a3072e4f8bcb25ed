# SPDX-License-Identifier: Apache-2.0
"""Exit statuses of vfioap-lab and the one exception it ends with."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """`run` and `enter` return the status of their command instead, once it was started."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_LAB = 3
    NOT_ROOT = 4
    MISSING = 5  # packages of this machine, or peers that could not be fetched


class LabError(Exception):
    """One sentence for the user: which object, why, what to do."""

    def __init__(self, sentence: str, status: Exit = Exit.FAILED) -> None:
        super().__init__(sentence)
        self.status = status
