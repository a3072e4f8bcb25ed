# SPDX-License-Identifier: Apache-2.0
"""Booted labs for programs: tests start one, run commands in it, reboot it and cut its power."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.lab.harness import CommandFailed, Lab, Result, started_lab

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

END_SECONDS = 30


@dataclass(frozen=True, slots=True)
class BootedLab(Lab):
    """A machine with a systemd of its own."""

    holder: subprocess.Popen[str]  # says "up" after each boot

    def reboot(self) -> None:
        """An orderly shutdown, and a boot; returns when systemd has nothing left to start."""
        self.run("systemctl", "reboot", check=False)
        self.wait_up()

    def cut_power(self) -> None:
        """The processes end where they are, and a boot follows."""
        self.run("systemctl", "reboot", "--force", "--force", check=False)
        self.wait_up()

    def wait_up(self) -> None:
        """Until the end of a boot. CommandFailed when it ends otherwise."""
        assert self.holder.stdout
        if self.holder.stdout.readline() != "up\n":
            output, errors = self.holder.communicate(timeout=END_SECONDS)
            raise CommandFailed(Result(self.holder.args, self.holder.returncode, output, errors))

    def value(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).stdout.strip()


@contextlib.contextmanager
def booted_lab(host: str, *options: str) -> Iterator[BootedLab]:
    """A booted lab that lives as long as the `with` block; at its end all of it is gone."""
    with started_lab("boot", *options, host) as holder:
        yield BootedLab(holder.pid, holder)
