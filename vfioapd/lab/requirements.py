# SPDX-License-Identifier: Apache-2.0
"""What the machine must have for a lab, checked before anything is started."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vfioapd.lab.errors import Exit, LabError
from vfioapd.lab.layout import HOSTS

SYSTEM_PATH = ("/usr/sbin", "/sbin")
UDEVD = ("/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd")

# program -> Debian package
KERNEL_PROGRAMS = {"udevadm": "udev"}
LIBVIRT_PROGRAMS = {
    "libvirtd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "mdevctl": "mdevctl",
    "qemu-system-s390x": "qemu-system-misc",
}
CONTAINER_PROGRAMS = {"systemd-nspawn": "systemd-container"}


def check_root() -> None:
    if os.geteuid() != 0:
        raise LabError("a lab needs root, as it makes namespaces and mounts; run it with sudo", Exit.NOT_ROOT)


def check_programs(*, with_libvirt: bool, boots: bool = False) -> None:
    wanted = KERNEL_PROGRAMS | (LIBVIRT_PROGRAMS if with_libvirt else {})
    wanted |= CONTAINER_PROGRAMS if boots else {}
    missing = {program: package for program, package in wanted.items() if find_program(program) is None}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise LabError(
            f"a lab needs {', '.join(missing)}, which this machine lacks; "
            f"install with: apt-get install --no-install-recommends {packages}",
            Exit.MISSING,
        )
    if not Path("/dev/fuse").exists():
        raise LabError("a lab needs /dev/fuse, which this machine lacks; try: modprobe fuse", Exit.MISSING)


def find_program(name: str) -> str | None:
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(name, path=os.pathsep.join([path, *SYSTEM_PATH]))


def find_udevd() -> str:
    return next((path for path in UDEVD if Path(path).exists()), UDEVD[0])


def find_host_file(name: str) -> Path:
    """A path, or the name of a host that comes with the lab."""
    path = Path(name)
    if path.is_file():
        return path.resolve()
    shipped = HOSTS / f"{name}.toml"
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(host.stem for host in HOSTS.glob("*.toml"))) or "none"
    raise LabError(
        f"host file {name} does not exist and no shipped host has that name (shipped: {known})", Exit.USAGE
    )
