# SPDX-License-Identifier: Apache-2.0
"""Ends and errors at any moment of a change: around each kernel write, fsync, rename and unlink."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from doubles import PowerCut

from vfioapd.plan.steps import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import Rig

    from vfioapd.plan.steps import Step

CALLS = ("fsync", "fdatasync", "rename", "unlink")
ERRORS = (errno.ENOSPC, errno.EIO)


class Moments:
    """Counts the moments of what runs inside, and ends it at one of them, or lets one call fail."""

    def __init__(self, rig: Rig, at: int = -1, *, error: int | None = None) -> None:
        self.names: list[str] = []
        self._rig = rig
        self._at = at
        self._error = error

    @contextmanager
    def watched(self) -> Iterator[Moments]:
        """Every moment inside counts."""
        saved = {name: getattr(os, name) for name in CALLS}
        host = self._rig.host
        host.before = lambda _number, step: self._moment(f"before {describe(step)}", None)
        host.after = lambda _number, step: self._moment(f"after {describe(step)}", None)
        for name, call in saved.items():
            setattr(os, name, self._around(name, call))
        try:
            yield self
        finally:
            for name, call in saved.items():
                setattr(os, name, call)
            host.before = host.after = _nothing

    def _around(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def around(*arguments: object, **options: object) -> object:
            self._moment(f"before {name}", self._error)
            done = call(*arguments, **options)
            self._moment(f"after {name}", None)
            return done

        return around

    def _moment(self, what: str, error: int | None) -> None:
        self.names.append(what)
        if len(self.names) - 1 != self._at:
            return
        if self._error is None:
            raise PowerCut
        if error is not None:
            raise OSError(error, os.strerror(error))


def _nothing(_number: int, _step: Step) -> None:
    pass
