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
from pathlib import Path

from vfioapd.backend import write_helper
from vfioapd.backend.sysfs import HostSysfs
from vfioapd.domain.problems import Problem, VfioApError

logger = logging.getLogger(__name__)

# A mask write returns after every moved queue was reset, one after the other, and a reset takes
# milliseconds to seconds. Beyond this the kernel waits for something that we cannot give it.
PATIENCE = 60.0


class GuardedSysfs(HostSysfs):
    """The kernel's own sysfs; each write is made by a helper process that can be left behind.

    One thread at a time writes. ``close`` ends the helper; the next write starts another.
    """

    def __init__(self, root: str = "/sys", *, patience: float = PATIENCE) -> None:
        super().__init__(root)
        self._folder = root
        self._patience = patience
        self._helper: subprocess.Popen[bytes] | None = None

    def write(self, path: str, value: str) -> None:
        """One write(2) in the helper. Raises OSError with the kernel's errno, or VfioApError when the
        write has not returned in time; it may still be made later, and nobody can take it back."""
        helper = self._helper or self._start()
        answer = self._ask(helper, f"{self._folder}/{path}", value)
        if answer:
            raise OSError(answer, os.strerror(answer), f"{self._folder}/{path}")

    def close(self) -> None:
        """End the helper, which waits for nothing: its input ends."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.communicate()

    def _ask(self, helper: subprocess.Popen[bytes], path: str, value: str) -> int:
        assert helper.stdin is not None  # both were asked for as pipes
        assert helper.stdout is not None
        helper.stdin.write(json.dumps([path, value]).encode() + b"\n")
        helper.stdin.flush()
        ready, _, _ = select.select([helper.stdout], [], [], self._patience)
        if not ready:
            raise self._abandon(helper, path)
        line = helper.stdout.readline()
        if not line:
            self._helper = None
            raise VfioApError(Problem.STEP_FAILED, f"the process that writes {path} ended: {helper.wait()}")
        return int(line)

    def _start(self) -> subprocess.Popen[bytes]:
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
