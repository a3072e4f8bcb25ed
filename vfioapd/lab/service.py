# SPDX-License-Identifier: Apache-2.0
"""One program that the lab runs: started, waited for until it is ready, stopped.

Every wait is for an event (a message, the end of the process) with a time limit, and ends in an error
that shows the last lines of the program's log.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from vfioapd.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LOG_LINES = 15
STOP_SECONDS = 5.0


class Service:
    """A child process with a log file and a name for messages."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, environment: Mapping[str, str], *, output: int | None = None) -> subprocess.Popen[bytes]:
        """`output` (such as subprocess.PIPE) takes stdout away from the log."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log if output is None else output,
                stderr=log,
                cwd="/",
                start_new_session=True,  # ctrl-C in the terminal is for the command alone
            )
        return self._process

    def wait_ready(self, source: int | socket.socket, word: bytes, seconds: float) -> None:
        """Until `source` says `word`; blocks at most `seconds`."""
        deadline = time.monotonic() + seconds
        heard = b""
        while word not in heard:
            ready = self._wait_for_any(source, deadline)
            if not ready:
                raise self.failure(f"was not ready within {seconds:g} s")
            said = _read(source) if source in ready else b""
            if not said:
                raise self.failure("ended before it was ready")
            heard += said

    def _wait_for_any(self, source: int | socket.socket, deadline: float) -> list[int | socket.socket]:
        assert self._process
        process = os.pidfd_open(self._process.pid)
        try:
            return select.select([source, process], [], [], max(0.0, deadline - time.monotonic()))[0]
        finally:
            os.close(process)

    def failure(self, what: str) -> LabError:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:] if self.log.exists() else []
        if not lines:
            return LabError(f"{self.name} {what}, and its log is empty")
        return LabError("\n  ".join([f"{self.name} {what}; the end of its log:", *lines]))

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask, wait, and kill what does not listen."""
        if self._process is None:
            return
        for request in (number, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(request)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
                break
        if self._process.stdout:
            self._process.stdout.close()
        self._process = None

    def collect(self, pid: int) -> bool:
        """Take the status of this service's process, if it is `pid` and has ended."""
        return self._process is not None and self._process.pid == pid and self._process.poll() is not None


def _read(source: int | socket.socket) -> bytes:
    return source.recv(4096) if isinstance(source, socket.socket) else os.read(source, 4096)
