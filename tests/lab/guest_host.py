# SPDX-License-Identifier: Apache-2.0
"""A host with the daemon in it, for tests of what guests, libvirt and the daemon do to each other: a lab
with this machine's libvirt, or a booted system with its own libvirt, the package and the hook."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import labs
import pytest
from boots import MODULAR, boot, libvirts_daemon

from vfioapd.lab.harness import running_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.lab.boot_harness import BootedLab
    from vfioapd.lab.harness import Lab, Result

HOOK = Path(__file__).parents[2] / "etc/libvirt/hooks/qemu.d/vfioapd"
HOOKS = "/etc/libvirt/hooks/qemu.d"
HOST = "rdbkvm4"
LAB = "lab"
SYSTEMS = [
    pytest.param(LAB, id="lab"),
    pytest.param("debian13", id="debian13", marks=pytest.mark.boot),
    *MODULAR,
]
# What the daemon of a booted system tells beyond its usual log is what tests wait for.
DEBUG = """\
[Service]
ExecStart=
ExecStart=/usr/sbin/vfioapd --debug
"""
SOCKETS = "vfioapd.socket vfioapd-ro.socket"


class GuestHost:
    """Real libvirtd, virsh and QEMU; the daemon can be killed, libvirtd restarted."""

    PID = f"cat {labs.DAEMON_PID}"  # prints which process the daemon is

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @property
    def libvirts_daemon(self) -> str:
        return libvirts_daemon(self.lab)

    def install_hook(self) -> None:
        """Where no package has done it."""
        self.lab.shell(f"mkdir -p {HOOKS}; install -m 755 {HOOK} {HOOKS}/vfioapd")
        self.libvirtd("restart")  # finds out about hooks when it starts

    def start_daemon(self) -> None:
        """Until it answers."""
        labs.start_daemon(self.lab, "--debug")

    def kill_daemon(self) -> None:
        """With SIGKILL, and until it has gone."""
        labs.kill_daemon(self.lab, self.PID)

    def take_down_daemon(self) -> None:
        """It is dead, and nobody starts it."""
        self.kill_daemon()

    def signal_daemon(self, number: int) -> None:
        self.lab.shell(f"kill -{number} $({self.PID})")

    def libvirtd(self, what: str) -> None:
        """start, stop or restart it."""
        self.lab.run("vfioap-lab", "service", what, "libvirtd")

    def reboot(self) -> None:
        """Until the daemon answers."""
        self.lab.run("vfioap-lab", "reboot")
        assert not self.lab.run("ls", "/sys/bus/mdev/devices").stdout, (
            "what is there later is the daemon's work"
        )
        self.start_daemon()

    def leave_libvirtd_to_its_socket(self) -> None:
        """It ends, and whoever needs it next has systemd start it."""
        pytest.skip("a lab has no systemd, whose sockets start libvirt's daemons")

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

    PID = "systemctl show --value -p MainPID vfioapd"
    lab: BootedLab

    def debug(self) -> None:
        """Have it log as in a lab."""
        self.lab.shell("mkdir /etc/systemd/system/vfioapd.service.d")
        self.lab.run("tee", "/etc/systemd/system/vfioapd.service.d/debug.conf", stdin=DEBUG)
        self.lab.shell("systemctl daemon-reload; systemctl restart vfioapd")

    def install_hook(self) -> None:
        pass

    def start_daemon(self) -> None:
        self.lab.shell(f"systemctl start {SOCKETS}; {labs.DAEMON_ANSWERS}")

    def kill_daemon(self) -> None:
        super().kill_daemon()
        self.lab.run("systemctl", "reset-failed", "vfioapd")  # its limit of starts is not what is tried

    def take_down_daemon(self) -> None:
        self.lab.shell(f"systemctl stop {SOCKETS} vfioapd.service")

    def libvirtd(self, what: str) -> None:
        name = self.libvirts_daemon
        # Its limit of starts is not what is tried.
        self.lab.shell(f"systemctl reset-failed {name}.service {name}.socket")
        if what == "stop":
            self.lab.shell(f"systemctl stop {name}{{,-ro,-admin}}.socket {name}.service")
            return
        # Nor that libvirt 11.3 may never end when it is told to in its first moments (its thread for udev's
        # events then waits for good). The service takes its sockets along when it starts.
        self.lab.shell(
            f"systemctl {what} {name}.service\n"
            "for _ in $(seq 100); do virsh -q nodedev-list >/dev/null 2>&1 && break; sleep 0.05; done"
        )

    def reboot(self) -> None:
        self.lab.reboot()
        self.start_daemon()

    def leave_libvirtd_to_its_socket(self) -> None:
        unit = f"{self.libvirts_daemon}.service"
        self.lab.shell(f"systemctl reset-failed {unit}; systemctl stop {unit}")

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
            host = BootedGuestHost(booted)
            host.debug()
            host.start_daemon()
            yield host
