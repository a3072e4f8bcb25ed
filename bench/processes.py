# SPDX-License-Identifier: Apache-2.0
"""Programs as the measurements start them: timed to their end, or a daemon until it says READY."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.figures import Figure

BIN = Path(sys.executable).parent
VFIOAPD = str(BIN / "vfioapd")
VFIOAPCTL = str(BIN / "vfioapctl")
READY_SECONDS = 60.0

Command = tuple[str, ...]


def milliseconds(act: Callable[[], object]) -> float:
    """How long the call takes by the wall clock."""
    started = time.perf_counter()
    act()
    return (time.perf_counter() - started) * 1000


def run(*command: str) -> str:
    """Run a program that must succeed; its standard output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def time_whole_processes(figures: Sequence[tuple[Figure, Command]], rounds: int) -> None:
    """Fill the figures, one process of each in every round, so that all see the same machine.

    The order turns from round to round: no program always runs behind the same other one.
    """
    for _, command in figures:
        run(*command)  # warm: the page cache has everything
    for number in range(rounds):
        at = number % len(figures)
        for figure, command in (*figures[at:], *figures[:at]):
            figure.samples.append(milliseconds(lambda: run(*command)))  # noqa: B023 - called at once


class Daemon:
    """vfioapd, from its start to READY and to its end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running daemon."""
        assert self._process
        return self._process.pid

    def start(self) -> float:
        """Start it without a watchdog; the milliseconds until it said READY."""
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(f"{folder}/notify")
            ear.settimeout(READY_SECONDS)
            environment = {**os.environ, "NOTIFY_SOCKET": f"{folder}/notify"}
            environment.pop("WATCHDOG_USEC", None)
            return milliseconds(lambda: self._start_and_wait(environment, ear))

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Not running meanwhile, so that it takes no time from whoever is measured."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def _start_and_wait(self, environment: dict[str, str], ear: socket.socket) -> None:
        with Path("/run/vfioapd-bench.log").open("ab") as log:
            self._process = subprocess.Popen([VFIOAPD], env=environment, stderr=log)
        while b"READY=1" not in ear.recv(4096):
            pass


@contextlib.contextmanager
def running_daemon() -> Iterator[Daemon]:
    """A daemon that serves as long as the block lasts."""
    daemon = Daemon()
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.stop()
