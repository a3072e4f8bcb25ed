# SPDX-License-Identifier: Apache-2.0
"""Labs for programs: tests, demo and benchmarks start one and run commands in it from outside."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.lab import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VFIOAP_LAB = (sys.executable, "-m", "vfioapd.lab.main")
START_SECONDS = 120
END_SECONDS = 30
Result = subprocess.CompletedProcess[str]


class CommandFailed(Exception):
    """A command ended badly; the text holds all that it printed."""

    def __init__(self, result: Result) -> None:
        self.result = result
        super().__init__(f"{result.args} ended with {result.returncode}\n{result.stdout}\n{result.stderr}")


@dataclass(frozen=True, slots=True)
class Lab:
    """A running lab, seen from outside."""

    outer: int  # process id of `vfioap-lab run`

    @property
    def first(self) -> int:
        """The lab's own PID 1, as numbered outside."""
        return int(Path(f"/proc/{self.outer}/task/{self.outer}/children").read_text().split()[0])

    def command_line(self, *command: str) -> list[str]:
        """What runs the command inside; for callers that want to start it in their own way."""
        return [*VFIOAP_LAB, "enter", "--lab", str(self.outer), "--", *command]

    def run(self, *command: str, timeout: float = 60, check: bool = True, stdin: str = "") -> Result:
        """Run a command inside. CommandFailed unless it ends well; TimeoutExpired after `timeout` seconds."""
        return _run(self.command_line(*command), timeout=timeout, check=check, stdin=stdin)

    def shell(self, script: str, *, timeout: float = 60, check: bool = True) -> Result:
        """Run a bash script that ends at its first failure."""
        return self.run("bash", "-euc", script, timeout=timeout, check=check)

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """Start a command inside and leave it running; its stdout is a pipe."""
        return subprocess.Popen(self.command_line(*command), stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def running_lab(host: str, *options: str) -> Iterator[Lab]:
    """A lab that lives as long as the `with` block; at its end all of it is gone."""
    with started_lab("run", *options, host) as holder:
        yield Lab(holder.pid)


@contextlib.contextmanager
def started_lab(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The process that keeps a lab open, once that is up: `vfioap-lab` with these arguments."""
    holder = subprocess.Popen(
        [*VFIOAP_LAB, *arguments, "--", "sh", "-c", "echo up; exec sleep infinity"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_end_with_caller,
    )
    try:
        assert holder.stdout
        if holder.stdout.readline() != "up\n":
            output, errors = holder.communicate(timeout=START_SECONDS)
            raise CommandFailed(Result(holder.args, holder.returncode, output, errors))
        yield holder
    finally:
        holder.terminate()
        holder.communicate(timeout=END_SECONDS)


def _end_with_caller() -> None:
    """A test run that is killed takes its labs with it."""
    syscalls.set_parent_death_signal(signal.SIGTERM)


def run_in_new_lab(
    host: str, command: Sequence[str], *options: str, timeout: float = 60, check: bool = True
) -> Result:
    """One command in a lab of its own."""
    return _run([*VFIOAP_LAB, "run", *options, host, "--", *command], timeout=timeout, check=check)


def _run(command: list[str], *, timeout: float, check: bool, stdin: str = "") -> Result:
    result = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and result.returncode:
        raise CommandFailed(result)
    return result
