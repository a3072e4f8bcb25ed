# SPDX-License-Identifier: Apache-2.0
"""Problem codes and the errors that carry them.

A code is stable: it stands on the wire, in ``--json`` output and in the journal. The sentence may be
reworded at any time.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Problem(StrEnum):
    """Every way in which vfioapd can say no. docs/problems.md explains each."""

    BAD_NUMBER = "bad-number"
    BAD_QUEUE = "bad-queue"
    BAD_MASK = "bad-mask"
    BAD_NAME = "bad-name"
    BAD_UUID = "bad-uuid"
    BAD_REQUEST = "bad-request"
    INCOMPLETE_MATRIX = "incomplete-matrix"
    NOT_A_MATRIX = "not-a-matrix"
    NAME_TAKEN = "name-taken"
    UUID_TAKEN = "uuid-taken"
    UNKNOWN_MATRIX = "unknown-matrix"
    QUEUE_NOT_ON_HOST = "queue-not-on-host"
    QUEUE_KEPT_BY_HOST = "queue-kept-by-host"
    QUEUE_TAKEN = "queue-taken"
    UNKNOWN_GUEST = "unknown-guest"
    GUEST_NOT_RUNNING = "guest-not-running"
    GUEST_NOT_DEFINED = "guest-not-defined"
    GUEST_HAS_MATRIX = "guest-has-matrix"
    MATRIX_NOT_STARTED = "matrix-not-started"
    MATRIX_IN_USE = "matrix-in-use"
    NEEDS_DISRUPT = "needs-disrupt"
    UNAPPLIED_EDIT = "unapplied-edit"
    UNCONFIRMED = "unconfirmed"
    BAD_HOST_FILE = "bad-host-file"
    TORN_DEFINITION = "torn-definition"
    AP_BUS_MISSING = "ap-bus-missing"
    VFIO_AP_MISSING = "vfio-ap-missing"
    LIBVIRT_UNAVAILABLE = "libvirt-unavailable"
    LOCK_HELD = "lock-held"
    READ_ONLY = "read-only"
    NO_PERMISSION = "no-permission"
    NOT_RUNNING = "not-running"
    STEP_FAILED = "step-failed"
    WRITE_HANGS = "write-hangs"
    VERIFY_FAILED = "verify-failed"
    INTERNAL = "internal-error"


class VfioApError(Exception):
    """What could not be done, to which object, because of what; the hint names the mend.

    Every error of ours that reaches a user is one of these. ``owners`` names who holds what was
    asked for, ``queues`` the queues concerned, both in the order of the sentence.
    """

    def __init__(
        self,
        problem: Problem,
        sentence: str,
        *,
        hint: str | None = None,
        queues: Iterable[object] = (),
        owners: Iterable[str] = (),
    ) -> None:
        super().__init__(sentence)
        self.problem = problem
        self.hint = hint
        self.queues = tuple(str(queue) for queue in queues)
        self.owners = tuple(owners)


class Refused(VfioApError):
    """The request cannot be met as it stands. Nothing was changed; the admin must decide."""


class Unavailable(VfioApError):
    """Something outside of us is missing (bus, module, libvirt). Nothing was changed; try again then."""
