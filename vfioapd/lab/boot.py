# SPDX-License-Identifier: Apache-2.0
"""This machine's Debian, booted in a container on emulated hardware, and one command in it.

The container is systemd-nspawn's; a reboot inside is one of the container, on the same disk. It stands
in namespaces of its own, so that all of it is gone when the command ends, or when this process is killed:
the processes with the PID namespace, the disk, a tmpfs, with the mount namespace.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.lab import boot_root, namespaces, syscalls
from vfioapd.lab.errors import Exit, LabError
from vfioapd.lab.host import lab_environment
from vfioapd.lab.init import Ended
from vfioapd.lab.layout import PACKAGE_PARENT, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

TOP = Path("/mnt")  # covered in our own mount namespace
BOOT_SECONDS = 180.0
STOP_SECONDS = 60.0
REBOOT = 133  # what systemd-nspawn --keep-unit ends with when the system inside reboots
CGROUPS = Path("/sys/fs/cgroup")
PF_EXITING = 0x4  # include/linux/sched.h
# Modules are the machine's; the emulated kernel has its own.
NSPAWN = (
    "systemd-nspawn",
    "--quiet",
    "--boot",
    "--register=no",
    "--keep-unit",
    "--private-network",
    "--notify-ready=yes",
    "--link-journal=no",
    "--console=read-only",  # read, since systemd waits for a console that nobody reads
    "--bind=/dev/fuse",
    "--capability=all",
    "--drop-capability=CAP_SYS_MODULE",
)
# systemd 256 and newer refuse a machine with the control groups of old, unless told.
INIT = ("SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",)


def check_packages(packages: Sequence[Path], *, on_another_system: bool) -> None:
    """Refuse what could not be installed, before anything is fetched for it."""
    for package in packages:
        kind = package.suffix.removeprefix(".")
        if kind not in boot_root.INSTALLERS:
            raise LabError(f"package {package} is neither a .deb nor an .rpm", Exit.USAGE)
        if not package.is_file():
            raise LabError(f"package {package} does not exist; make it with: make {kind}", Exit.USAGE)
    if on_another_system and not packages:
        raise LabError("another system runs vfioapd from its package: --deb FILE (make deb)", Exit.USAGE)


def run(host_file: Path, command: Sequence[str], packages: Sequence[Path], base: Path | None = None) -> int:
    """Boot, run the command after each boot, and return its status once it has ended by itself.

    ``base`` is the root folder of another system than this machine's own."""
    cgroups = _CgroupFolders(f"vfioap-lab-{os.getpid()}")
    try:
        return namespaces.run_new(lambda: _boot(cgroups, host_file, command, packages, base))
    finally:
        cgroups.remove()


def _boot(
    cgroups: _CgroupFolders,
    host_file: Path,
    command: Sequence[str],
    packages: Sequence[Path],
    base: Path | None,
) -> int:
    """Body of the first process of the namespaces."""
    for number in namespaces.FORWARDED:
        signal.signal(number, _end)
    for number in namespaces.LEFT_TO_COMMAND:
        signal.signal(number, _nothing)
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("proc", "/proc", "proc")
    try:
        root = boot_root.build(TOP, host_file, packages, base)
        return _serve(_Container(root, cgroups, base), command)
    except Ended as ended:
        return 128 + ended.number


def _end(number: int, _frame: FrameType | None) -> None:
    raise Ended(number)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass


def environment(layout: Layout) -> dict[str, str]:
    """For commands inside: the host's own programs come first, as for an admin who logs in."""
    path = lab_environment(layout)["PATH"].split(os.pathsep)
    ours = [folder for folder in path if folder not in ("/usr/sbin", "/usr/bin", "/sbin", "/bin")]
    system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    return {**lab_environment(layout), "PATH": os.pathsep.join([*system, *ours]), "HOME": "/root"}


def _serve(container: _Container, command: Sequence[str]) -> int:
    while True:
        container.power_on()
        container.wait_booted()
        status = container.run(command)
        if not container.is_going_down() or not container.reboots():
            return status


class _Container:
    """systemd-nspawn, from the start of a system to its end; and again."""

    def __init__(self, root: Path, cgroups: _CgroupFolders, base: Path | None) -> None:
        self._root = root
        self._binds = list(_binds(base))
        self._cgroups = cgroups
        self._log = TOP / "console.log"
        self._boots = 0

    def power_on(self) -> None:
        """Start; returns at once."""
        self._boots += 1
        self._news = _News(TOP / f"notify{self._boots}.sock")
        with self._log.open("wb") as log:
            self._nspawn = subprocess.Popen(
                [*NSPAWN, f"--directory={self._root}", *self._binds, *INIT],
                env={
                    **os.environ,
                    "NOTIFY_SOCKET": str(self._news.path),
                    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self._cgroups.join,
            )

    def wait_booted(self) -> None:
        """Until systemd inside has nothing left to start. LabError when that takes too long."""
        deadline = time.monotonic() + BOOT_SECONDS
        while not self._news.booted.wait(0.5):
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                raise self._failure("did not boot")

    def run(self, command: Sequence[str]) -> int:
        """Run a command inside; its status."""
        enter = [sys.executable, "-m", "vfioapd.lab.main", "enter", "--lab", str(self._news.leader), "--"]
        python_path = os.pathsep.join(filter(None, [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
        done = subprocess.run([*enter, *command], env={**os.environ, "PYTHONPATH": python_path}, check=False)
        return namespaces.exit_status(done.returncode)

    def is_going_down(self) -> bool:
        """Whether the system inside has ended, or is about to; then its commands were ended, too.

        An orderly end runs another program in its place. A forced one kills it, and it goes on under its
        name, exiting, until all processes inside are gone and after that until it is waited for.
        """
        try:
            name, _, rest = Path(f"/proc/{self._news.leader}/stat").read_text().rpartition(")")
        except OSError:
            return True
        flags = int(rest.split()[6])  # proc_pid_stat(5): (9) flags, where (3) comes first here
        return not name.endswith("(systemd") or bool(flags & PF_EXITING)

    def reboots(self) -> bool:
        """Wait for the end of the system; True when it is to be started again."""
        try:
            is_reboot = self._nspawn.wait(STOP_SECONDS) == REBOOT
            self._news.close()
            return is_reboot
        except subprocess.TimeoutExpired as error:
            raise self._failure(f"has not ended within {STOP_SECONDS:g} s") from error

    def _failure(self, what: str) -> LabError:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()][-15:]
        return LabError("\n  ".join([f"the container {what}; its last words:", *lines]))


class _News:
    """What systemd-nspawn says of one boot. It is always listened to: a full socket would stop nspawn, and
    with it the console, and systemd 253 and newer say something at each reload."""

    def __init__(self, path: Path) -> None:
        self.leader = 0  # PID of the system's first process
        self.booted = threading.Event()
        self.path = path
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        self._socket.sendto(b"", str(self.path))

    def _listen(self) -> None:
        while message := self._socket.recv(4096):
            words = message.decode(errors="replace").splitlines()
            for word in words:
                name, _, value = word.partition("=")
                if name == "X_NSPAWN_LEADER_PID":
                    self.leader = int(value)
            if "READY=1" in words:
                self.booted.set()
        self._socket.close()


class _CgroupFolders:
    """A control group of our own in each hierarchy that systemd uses, so that none of the machine's is
    changed. systemd inside makes its groups below, and they stay when it is killed."""

    def __init__(self, name: str) -> None:
        hierarchies = [CGROUPS] if (CGROUPS / "cgroup.procs").exists() else []
        hierarchies += [CGROUPS / each for each in ("systemd", "unified") if (CGROUPS / each).is_dir()]
        self._folders = [hierarchy / name for hierarchy in hierarchies]
        for folder in self._folders:
            folder.mkdir()

    def join(self) -> None:
        for folder in self._folders:
            (folder / "cgroup.procs").write_text("0")

    def remove(self) -> None:
        for top in self._folders:
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # a process that the kernel has not let go yet
                    os.rmdir(folder)


def _binds(base: Path | None) -> Iterator[str]:
    """The lab's own program and interpreter, if an overlay of / does not show them already, or if they
    are where the container has folders of its own. Another system has an interpreter of its own."""
    device = os.stat("/").st_dev
    for path in (PACKAGE_PARENT,) if base else (PACKAGE_PARENT, Path(sys.prefix)):
        if base or path.stat().st_dev != device or path.parts[1] in ("tmp", "run", "dev"):
            yield f"--bind-ro={path}"
