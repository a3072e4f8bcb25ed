# SPDX-License-Identifier: Apache-2.0
"""The programs that make the lab a KVM host: emulated kernel, systemd-udevd, libvirtd.

All but the first are the machine's own, unmodified, with the settings that let them live in a namespace.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.lab import peers, programs, shim_wrapper, wire, world
from vfioapd.lab.errors import LabError
from vfioapd.lab.layout import KERNEL_VARIABLE, LAB_VARIABLE, PACKAGE_PARENT
from vfioapd.lab.programs import ProgramFailed
from vfioapd.lab.requirements import find_udevd
from vfioapd.lab.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vfioapd.lab.layout import Layout

KERNEL_SECONDS = 60.0
SERVICE_SECONDS = 60.0
SETTLE_SECONDS = 60
SCRIPTS = sysconfig.get_path("scripts")  # now: in another system's root it could not be looked up
SUBSYSTEMS = ("ap", "matrix", "mdev", "zcrypt")

LIBVIRTD_CONF = """\
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:stderr"
"""
# No virtlogd, security labels, private /dev or cgroups: each needs more of a machine than a lab has.
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""


def lab_environment(layout: Layout) -> dict[str, str]:
    """For the command and all services."""
    scripts = [str(layout.bin), SCRIPTS]
    path = os.environ.get("PATH", "").split(os.pathsep)
    system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
    return {
        **os.environ,
        "PATH": os.pathsep.join(dict.fromkeys([*scripts, *path, *system])),
        # libudev else refuses a /sys that is not sysfs, silently
        "SYSTEMD_DEVICE_VERIFY_SYSFS": "0",
        LAB_VARIABLE: str(layout.root),
        KERNEL_VARIABLE: str(layout.kernel_socket),
    }


class Host:
    """Starts and stops the host software; `services` by name, in the order of their start."""

    def __init__(self, layout: Layout, host_file: Path, *, with_libvirt: bool) -> None:
        self._layout = layout
        self._environment = lab_environment(layout)
        self.kernel = self._service("kernel", _emulator(layout, host_file))
        self.services = {"udevd": self._service("udevd", [find_udevd()])}
        if with_libvirt:
            self.services["libvirtd"] = self._service("libvirtd", ["libvirtd"])

    def power_on(self) -> None:
        """Kernel first, as in a boot."""
        process = self.kernel.start(
            {**self._environment, "PYTHONPATH": _python_path()}, output=subprocess.PIPE
        )
        assert process.stdout
        self.kernel.wait_ready(process.stdout.fileno(), b"ready", KERNEL_SECONDS)
        self._show_kernel()
        peers.write_wrappers(self._layout.bin)
        if "libvirtd" in self.services:
            _configure_libvirt(self._layout)
        self.start_services()

    def reboot_kernel(self) -> None:
        """All that it knew is forgotten, the hardware stays as it is."""
        self._ask_kernel({"command": "reboot"})

    def start_services(self) -> None:
        for name in self.services:
            self.start(name)

    def start(self, name: str) -> None:
        """Returns when the service can be used."""
        service = self.services[name]
        if service.pid:
            return
        with self._notifications() as ready:
            service.start({**self._environment, "NOTIFY_SOCKET": str(self._layout.notify_socket)})
            service.wait_ready(ready, b"READY=1", SERVICE_SECONDS)
        self._make_usable(name, service)

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        self.services[name].stop(number)

    def power_off(self) -> None:
        for name in reversed(self.services):
            self.stop(name)
        # Asked kindly it would unmount first, which cannot end while its parts are bound elsewhere.
        self.kernel.stop(signal.SIGKILL)

    def collect(self, pid: int) -> bool:
        """Take the status of a service that ended by itself; False if `pid` is none of ours."""
        return any(service.collect(pid) for service in (self.kernel, *self.services.values()))

    def _show_kernel(self) -> None:
        """What a module that is not loaded yet will bring has to be bound now, so load it for a moment."""
        is_complete = world.is_complete(self._layout)
        if not is_complete:
            self._ask_kernel({"command": "load_module", "name": "vfio_ap"})
        world.bind_kernel(self._layout)
        if not is_complete:
            self.reboot_kernel()

    def _ask_kernel(self, message: wire.Message) -> None:
        answer = wire.request(self._layout.kernel_socket, message)
        if "error" in answer:
            raise LabError(f"the emulated kernel failed {message['command']}: {answer.get('message')}")

    def _service(self, name: str, arguments: Sequence[str]) -> Service:
        return Service(name, arguments, self._layout.logs / f"{name}.log")

    def _make_usable(self, name: str, service: Service) -> None:
        if name == "udevd":
            subsystems = [f"--subsystem-match={subsystem}" for subsystem in SUBSYSTEMS]
            self._run(service, ["udevadm", "trigger", "--action=add", *subsystems])
            self._run(service, ["udevadm", "settle", f"--timeout={SETTLE_SECONDS}"])
        elif name == "libvirtd":
            # READY comes before the drivers' threads are done; this call waits for those.
            self._run(service, ["virsh", "-q", "-c", "qemu:///system", "nodedev-list", "--cap", "ap_matrix"])

    def _run(self, service: Service, command: list[str]) -> None:
        try:
            programs.run(
                command,
                purpose="cannot be used",
                seconds=SETTLE_SECONDS + 5,
                environment=self._environment,
            )
        except ProgramFailed as error:
            raise service.failure(str(error)) from error

    @contextlib.contextmanager
    def _notifications(self) -> Iterator[socket.socket]:
        path = self._layout.notify_socket
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(path))
            try:
                yield listener
            finally:
                path.unlink()


def _emulator(layout: Layout, host_file: Path) -> list[str]:
    files = [str(host_file), str(layout.kernel), "--control", str(layout.kernel_socket), "--dev", "/dev"]
    # It cannot see by itself that this network namespace is a private one, as all of the lab is in it.
    return [sys.executable, "-m", "vfioapd.emulator", *files, "--uevents", "always"]


def _configure_libvirt(layout: Layout) -> None:
    Path("/etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF)
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    shim_wrapper.write(layout)


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]))
