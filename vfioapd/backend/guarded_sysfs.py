# SPDX-License-Identifier: Apache-2.0
"""Sysfs writes that cannot hang the daemon: another process makes them, within a time limit."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.backend import write_helper
from vfioapd.backend.sysfs import HostSysfs
from vfioapd.domain.problems import Problem, VfioApError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vfioapd.backend.sysfs import Write

logger = logging.getLogger(__name__)

# A mask write returns after every moved queue was reset, one after the other, and a reset takes
# milliseconds to seconds. Beyond this the kernel waits for something that we cannot give it.
PATIENCE = 60.0
PIPE = 65536  # bytes; what a pipe holds


class GuardedSysfs(HostSysfs):
    """The kernel's own sysfs; each write is made by a helper process that can be left behind.

    One thread at a time writes. ``close`` ends the helper; the next write starts another.
    """

    def __init__(self, root: str = "/sys", *, patience: float = PATIENCE) -> None:
        super().__init__(root)
        self._folder = root
        self._patience = patience
        self._helper: subprocess.Popen[bytes] | None = None
        self._heard = b""  # answers of it that were not looked at yet

    def prepare(self) -> None:
        """Start the helper now: a write that is to come soon does not wait for it then."""
        self._helper = self._helper or self._start()

    def write(self, path: str, value: str) -> None:
        """One write(2) in the helper. Raises OSError with the kernel's errno, or VfioApError when the
        write has not returned in time; it may still be made later, and nobody can take it back."""
        for _ in self.write_each([(path, value)]):
            pass

    def write_each(self, writes: Sequence[Write]) -> Iterator[None]:
        """The same for writes in turn, up to the first that fails. All of them have the time of one."""
        made, error = self._hand_over(writes)
        yield from [None] * made
        if error is not None:
            raise error

    def close(self) -> None:
        """End the helper, which waits for nothing: its input ends."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.communicate()

    def _hand_over(self, writes: Sequence[Write]) -> tuple[int, Exception | None]:
        """How many were made, and what was wrong with the next one. All answers are awaited, so that the
        helper is at rest whatever the caller does next."""
        helper = self._helper or self._start()
        lines = [(f"{self._folder}/{path}", value) for path, value in writes]
        deadline = time.monotonic() + self._patience
        made = 0
        try:
            self._ask(helper, lines)
            for path, _ in lines:
                self._await(helper, path, deadline)
                made += 1
        except (OSError, VfioApError) as error:
            return made, error
        return made, None

    def _ask(self, helper: subprocess.Popen[bytes], writes: Sequence[Write]) -> None:
        assert helper.stdin is not None  # it was asked for as a pipe
        with contextlib.suppress(BrokenPipeError):  # then its output has ended, too, and that is told
            helper.stdin.write(json.dumps(writes).encode() + b"\n")
            helper.stdin.flush()

    def _await(self, helper: subprocess.Popen[bytes], path: str, deadline: float) -> None:
        """One answer, which is an errno."""
        assert helper.stdout is not None  # as above
        output = helper.stdout.fileno()
        while b"\n" not in self._heard:
            if not select.select([output], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._abandon(helper, path)
            if not (some := os.read(output, PIPE)):
                self._helper = None
                raise VfioApError(
                    Problem.STEP_FAILED, f"the process that writes {path} ended: {helper.wait()}"
                )
            self._heard += some
        line, _, self._heard = self._heard.partition(b"\n")
        if answer := int(line):
            raise OSError(answer, os.strerror(answer), path)

    def _start(self) -> subprocess.Popen[bytes]:
        self._heard = b""
        self._helper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(write_helper.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a signal to the daemon's group must not cut a write in two
        )
        return self._helper

    def _abandon(self, helper: subprocess.Popen[bytes], path: str) -> VfioApError:
        """Leave the helper to the kernel. SIGKILL ends it where the kernel lets it."""
        self._helper = None
        with contextlib.suppress(ProcessLookupError):
            helper.kill()
        logger.error("a write to %s hangs in the kernel; PID %d is left behind", path, helper.pid)
        return VfioApError(
            Problem.WRITE_HANGS,
            f"the kernel has not answered a write to {path} within {self._patience:g} s",
            hint=f"it may yet be made: process {helper.pid} waits in the kernel (/proc/{helper.pid}/stack)",
        )
