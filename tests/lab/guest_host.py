# SPDX-License-Identifier: Apache-2.0
"""A host with the daemon in it, for tests of what guests, libvirt and the daemon do to each other: a lab
with this machine's libvirt, or a booted Debian 13 with its own libvirt, the package and the hook."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import labs
import pytest
from boots import boot

from vfioapd.lab.harness import running_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.lab.harness import Lab, Result

HOST = "rdbkvm4"
LAB = "lab"
SYSTEMS = [pytest.param(LAB, id="lab"), pytest.param("debian13", id="debian13", marks=pytest.mark.boot)]


class GuestHost:
    """Real libvirtd, virsh and QEMU; the daemon can be killed, libvirtd restarted."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def start_daemon(self) -> None:
        """Until it answers."""
        labs.start_daemon(self.lab, "--debug")

    def kill_daemon(self) -> None:
        """With SIGKILL, and until it has gone."""
        labs.kill_daemon(self.lab)

    def libvirtd(self, what: str) -> None:
        """start, stop or restart it."""
        self.lab.run("vfioap-lab", "service", what, "libvirtd")

    def ctl(self, *words: str, check: bool = True) -> Result:
        return self.lab.run("vfioapctl", *words, check=check)

    def virsh(self, *words: str, check: bool = True) -> str:
        return self.lab.run("virsh", "-q", *words, check=check).stdout

    def guest(self, name: str, *options: str) -> None:
        """Define a guest, or change how it behaves."""
        self.lab.run("vfioap-lab", "guest", name, *options)

    def show(self, name: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.ctl("show", name, "--json").stdout)
        return shown

    def places(self, name: str = "vault") -> tuple[str | None, list[str]]:
        """Where a matrix is: the running guest, the definitions."""
        row = self.show(name)
        return row["live"], row["config"]

    def log(self) -> str:
        return self.lab.run("cat", labs.DAEMON_LOG).stdout


class BootedGuestHost(GuestHost):
    """systemd starts the daemon, and starts it again when it was killed."""

    def start_daemon(self) -> None:
        self.lab.shell(labs.DAEMON_ANSWERS)

    def kill_daemon(self) -> None:
        labs.kill_daemon(self.lab, "systemctl show --value -p MainPID vfioapd")
        self.lab.run("systemctl", "reset-failed", "vfioapd")  # its limit of starts is not what is tried

    def libvirtd(self, what: str) -> None:
        # Its limit of starts is not what is tried, nor that libvirt 11.3 may never end when it is told to
        # in its first moments (its thread for udev's events then waits for good).
        self.lab.shell(
            f"systemctl reset-failed libvirtd.service libvirtd.socket; systemctl {what} libvirtd\n"
            "for _ in $(seq 100); do virsh -q nodedev-list >/dev/null 2>&1 && break; sleep 0.05; done"
        )

    def log(self) -> str:
        return self.lab.run("journalctl", "--boot", "--output=cat", "--unit=vfioapd").stdout


@contextlib.contextmanager
def guest_host(system: str) -> Iterator[GuestHost]:
    """One of SYSTEMS, with the daemon running."""
    if system == LAB:
        with running_lab(HOST) as lab:
            host = GuestHost(lab)
            host.start_daemon()
            yield host
    else:
        with boot(HOST, system) as booted:
            yield BootedGuestHost(booted)
