# SPDX-License-Identifier: Apache-2.0
"""The disk of a booted lab: an overlay of this machine's own root, with what a first boot needs.

Nothing of the machine's own services is enabled in it, and nothing that would reach past the container
into the machine's kernel: modules, sysctls, AppArmor profiles, uevents of real devices.
"""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.lab import modular, programs, syscalls
from vfioapd.lab.errors import Exit, LabError
from vfioapd.lab.host import LIBVIRTD_CONF, QEMU_CONF, SUBSYSTEMS
from vfioapd.lab.layout import PACKAGE_PARENT
from vfioapd.lab.world import FOLDERS

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST_FILE = Path("/etc/vfioap-lab/host.toml")
INSTALL_SECONDS = 120
_run = partial(programs.run, purpose="cannot fill the root to boot", seconds=INSTALL_SECONDS)

# Of these nothing of the machine's is seen: its guests, its matrices, its own services.
HIDDEN = (
    "etc/libvirt",
    "etc/mdevctl.d",
    "etc/udev/rules.d",
    "etc/vfioapd",
    "etc/systemd/system",
    *(f"etc/rc{level}.d" for level in "0123456S"),
    "var/cache/libvirt",
    "var/lib/libvirt",
    "var/lib/vfioapd",
    "var/log/journal",
    "var/log/libvirt",
)
MASKED = (
    "apparmor.service",
    "console-getty.service",
    "getty.target",
    "kmod-static-nodes.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-binfmt.service",
    "systemd-machined.service",
    "systemd-modules-load.service",
    "systemd-networkd.service",
    "systemd-random-seed.service",
    "systemd-sysctl.service",
    "systemd-timesyncd.service",
)
# Not of a host: through machined libvirt would put guests into control groups that a container does not
# have, and where a policy says so (as in many images of build machines), packages start no service.
REMOVED = (
    "usr/sbin/policy-rc.d",
    "usr/share/dbus-1/system-services/org.freedesktop.machine1.service",
    "usr/lib/systemd/system/dbus-org.freedesktop.machine1.service",
)
ENABLED = ("libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket", "libvirt-guests.service")
OURS = ("vfioapd.service", "vfioapd.socket", "vfioapd-ro.socket", "vfioapd-ready.target")

# By a package's kind. Debian's rpm knows nothing of what dpkg has installed, and wants to be told twice.
INSTALLERS = {
    "deb": ("dpkg", "--install"),
    "rpm": ("rpm", "--install", "--nodeps", "--force-debian"),
}

# Test guests have no system that could shut down; the usual 300 s would be waited for in vain. Debian does
# not save them to disk, which a guest with a device of the host's cannot be; libvirt by itself tries that.
GUESTS_CONF = "ON_SHUTDOWN=shutdown\nSHUTDOWN_TIMEOUT=3\n"
SETTINGS = ("etc/default", "etc/sysconfig")  # Debian's place, and libvirt's own

KERNEL_UNIT = """\
[Unit]
Description=Emulated AP bus (stands in for the kernel)
DefaultDependencies=no
Before=sysinit.target systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket
[Service]
Type=notify
NotifyAccess=all
Environment=PYTHONPATH={python_path} PYTHONDONTWRITEBYTECODE=1
ExecStart={python} -m vfioapd.lab.boot_kernel {host_file}
OOMScoreAdjust=-900
[Install]
WantedBy=sysinit.target
"""
# libudev refuses a /sys that is not sysfs, and udevd one that systemd takes for read-only.
DROP_INS = {
    "system.conf.d/lab.conf": "[Manager]\nDefaultEnvironment=SYSTEMD_DEVICE_VERIFY_SYSFS=0\n",
    "system/systemd-udevd.service.d/lab.conf": "[Unit]\nConditionPathIsReadWrite=\n",
    "system/systemd-udev-trigger.service.d/lab.conf": (
        "[Unit]\nConditionPathIsReadWrite=\n[Service]\nExecStart=\n"
        "ExecStart=udevadm trigger --action=add "
        + " ".join(f"--subsystem-match={subsystem}" for subsystem in SUBSYSTEMS)
        + "\n"
    ),
}
CHECKOUT_DROP_IN = """\
[Service]
ExecStart=
ExecStart={python} -c "import sys; from vfioapd.daemon.start import main; sys.exit(main())"
Environment=PYTHONPATH={python_path} PYTHONDONTWRITEBYTECODE=1
ProtectHome=read-only
"""


def build(top: Path, host_file: Path, packages: Sequence[Path], base: Path | None = None) -> Path:
    """Mount and fill the root below `top`, over this machine's own or over `base`; returns it. The
    caller's mount namespace is a private one."""
    root = _mount(top, base or Path("/"))
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    (root / "etc/hostname").write_text("vfioap-lab\n")
    for folder in FOLDERS:
        (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    (root / "etc/libvirt/libvirtd.conf").write_text(LIBVIRTD_CONF)
    (root / "etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    for folder in SETTINGS:
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "libvirt-guests").write_text(GUESTS_CONF)
    for name in REMOVED:
        (root / name).unlink(missing_ok=True)
    _write_units(root, host_file, python="/usr/bin/python3" if base else sys.executable)
    _systemctl(root, "mask", *MASKED)
    libvirts = modular.ENABLED if modular.is_modular(root) else ENABLED
    _systemctl(root, "enable", "emulated-ap.service", *libvirts)
    _systemctl(root, "set-default", "multi-user.target")
    if packages:
        _install(root, packages)
    else:
        _use_checkout(root)
    return root


def _mount(top: Path, base: Path) -> Path:
    syscalls.mount("tmpfs", str(top), "tmpfs", data="mode=755")
    upper, work, root = (top / name for name in ("disk", "work", "root"))
    for folder in (work, root, *(upper / name for name in HIDDEN)):
        folder.mkdir(parents=True)
    for name in HIDDEN:
        os.setxattr(upper / name, "trusted.overlay.opaque", b"y")
    syscalls.mount("overlay", str(root), "overlay", data=f"lowerdir={base},upperdir={upper},workdir={work}")
    return root


def _write_units(root: Path, host_file: Path, *, python: str) -> None:
    (root / "etc/vfioap-lab").mkdir(exist_ok=True)
    shutil.copy(host_file, root / str(HOST_FILE).lstrip("/"))
    unit = KERNEL_UNIT.format(python=python, python_path=PACKAGE_PARENT, host_file=HOST_FILE)
    (root / "etc/systemd/system/emulated-ap.service").write_text(unit)
    for name, text in DROP_INS.items():
        path = root / "etc/systemd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _install(root: Path, packages: Sequence[Path]) -> None:
    """As an admin does it, with a package that is at hand; it enables its own units."""
    for package in packages:
        shutil.copy(package, root / "root")
    nspawn = ["systemd-nspawn", "--quiet", f"--directory={root}", "--private-network", "--register=no"]
    for kind, installer in INSTALLERS.items():
        names = [f"/root/{package.name}" for package in packages if package.suffix == f".{kind}"]
        if names and not (root / "usr/bin" / installer[0]).exists():
            raise LabError(f"a .{kind} needs {installer[0]}, which the system lacks", Exit.MISSING)
        if names:
            _run([*nspawn, "--keep-unit", "--pipe", "--", *installer, *names])


def _use_checkout(root: Path) -> None:
    """The daemon that this very lab belongs to, by the units of its own source tree."""
    units, etc = PACKAGE_PARENT / "units", PACKAGE_PARENT / "etc"
    if not units.is_dir():
        _systemctl(root, "enable", *OURS)  # the lab is installed, and so is the daemon
        return
    for name in OURS:
        shutil.copy(units / name, root / "etc/systemd/system")
    shutil.copytree(etc / "libvirt", root / "etc/libvirt", dirs_exist_ok=True)
    shutil.copy(etc / "host.toml", root / "etc/vfioapd/host.toml")
    shutil.copy(units / "tmpfiles.d/vfioapd.conf", root / "etc/tmpfiles.d/vfioapd.conf")
    folder = root / "etc/systemd/system/vfioapd.service.d"
    folder.mkdir()
    (folder / "lab.conf").write_text(
        CHECKOUT_DROP_IN.format(python=sys.executable, python_path=PACKAGE_PARENT)
    )
    _systemctl(root, "enable", *OURS)


def _systemctl(root: Path, *arguments: str) -> None:
    _run(["systemctl", "--quiet", f"--root={root}", *arguments])
