# SPDX-License-Identifier: Apache-2.0
"""This machine's Debian, booted in a container on emulated hardware, and one command in it.

The container is systemd-nspawn's; a reboot inside is one of the container, on the same disk. All of it
is gone when the command ends: the disk is a tmpfs of a private mount namespace, and whoever kills this
process kills the container.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.lab import boot_root, syscalls
from vfioapd.lab.errors import Exit, LabError
from vfioapd.lab.host import lab_environment
from vfioapd.lab.layout import PACKAGE_PARENT, Layout
from vfioapd.lab.namespaces import exit_status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BOOT_SECONDS = 180.0
STOP_SECONDS = 10.0
CGROUPS = Path("/sys/fs/cgroup")
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
    "--console=passive",
    "--bind=/dev/fuse",
    "--capability=all",
    "--drop-capability=CAP_SYS_MODULE",
)


def run(host_file: Path, command: Sequence[str], packages: Sequence[Path]) -> int:
    """Boot, run the command after each boot, and return its status once it has ended by itself."""
    _check_debs(packages)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    with tempfile.TemporaryDirectory(prefix="vfioap-lab-") as folder, _ended_by_signals():
        top = Path(folder)
        try:
            root = boot_root.build(top, host_file, packages)
            with _Container(top, root) as container:
                return _serve(container, command)
        finally:
            _unmount(top)


def environment(layout: Layout) -> dict[str, str]:
    """For commands inside: the host's own programs come first, as for an admin who logs in."""
    path = lab_environment(layout)["PATH"].split(os.pathsep)
    ours = [folder for folder in path if folder not in ("/usr/sbin", "/usr/bin", "/sbin", "/bin")]
    system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
    return {**lab_environment(layout), "PATH": os.pathsep.join([*system, *ours]), "HOME": "/root"}


def _serve(container: _Container, command: Sequence[str]) -> int:
    while True:
        container.wait_booted()
        status = container.run(command)
        if not container.is_going_down():
            return status
        if not container.comes_back():
            return status


class _Container:
    """systemd-nspawn, from its start to its end."""

    def __init__(self, top: Path, root: Path) -> None:
        self._log = top / "console.log"
        self._cgroups = _CgroupFolders(f"vfioap-lab-{os.getpid()}")
        self._news = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._news.bind(str(top / "notify.sock"))
        self._nspawn = self._start(root, {**os.environ, "NOTIFY_SOCKET": str(top / "notify.sock")})
        self._leader = 0

    def __enter__(self) -> _Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._nspawn.kill()  # a power cut: there is nobody left who would want to know of a shutdown
        self._nspawn.wait()
        self._wait_for_leader()
        self._news.close()
        self._cgroups.remove()

    def wait_booted(self) -> None:
        """Until systemd inside has nothing left to start. LabError when that takes too long."""
        deadline = time.monotonic() + BOOT_SECONDS
        while not self._hear(deadline - time.monotonic()):
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").splitlines()[-15:]
                raise LabError("\n  ".join(["the container did not boot; its last words:", *lines]))

    def run(self, command: Sequence[str]) -> int:
        """Run a command inside; its status."""
        enter = [sys.executable, "-m", "vfioapd.lab.main", "enter", "--lab", str(self._leader), "--"]
        python_path = os.pathsep.join(filter(None, [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
        done = subprocess.run([*enter, *command], env={**os.environ, "PYTHONPATH": python_path}, check=False)
        return exit_status(done.returncode)

    def is_going_down(self) -> bool:
        """Whether the system inside has ended, or is about to; then its commands were ended, too."""
        try:
            return Path(f"/proc/{self._leader}/comm").read_text() != "systemd\n"
        except OSError:
            return True

    def comes_back(self) -> bool:
        """Wait for the end of the old system; True when a new one follows, as after a reboot."""
        self._wait_for_leader()
        old = self._leader
        deadline = time.monotonic() + STOP_SECONDS
        while self._leader == old and self._nspawn.poll() is None and time.monotonic() < deadline:
            self._hear(0.1)
        return self._leader != old

    def _start(self, root: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [*NSPAWN, f"--directory={root}", *_binds()],
                env={**variables, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self._prepare,
            )

    def _prepare(self) -> None:
        syscalls.set_parent_death_signal(signal.SIGKILL)
        self._cgroups.join()

    def _hear(self, seconds: float) -> bool:
        """One message of systemd-nspawn; True when it says that the system is up."""
        if not select.select([self._news], [], [], max(0.0, min(seconds, 1.0)))[0]:
            return False
        words = self._news.recv(4096).decode(errors="replace").splitlines()
        for word in words:
            name, _, value = word.partition("=")
            if name == "X_NSPAWN_LEADER_PID":
                self._leader = int(value)
        return "READY=1" in words

    def _wait_for_leader(self) -> None:
        with contextlib.suppress(ProcessLookupError, ValueError):
            descriptor = os.pidfd_open(self._leader)
            select.select([descriptor], [], [], STOP_SECONDS)
            os.close(descriptor)


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


def _binds() -> Iterator[str]:
    """The lab's own program and interpreter, if an overlay of / does not show them already."""
    device = os.stat("/").st_dev
    for path in (PACKAGE_PARENT, Path(sys.prefix)):
        if path.stat().st_dev != device:
            yield f"--bind-ro={path}"


def _check_debs(packages: Sequence[Path]) -> None:
    for package in packages:
        if not package.is_file():
            raise LabError(f"package {package} does not exist; make it with: make deb", Exit.USAGE)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the container; the terminal's signals are for the command inside."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda _number, _frame: None)
    yield


def _unmount(top: Path) -> None:
    for point in (top / "root", top):
        with contextlib.suppress(OSError):
            syscalls.unmount(str(point))
