# SPDX-License-Identifier: Apache-2.0
"""Programs of Debian 13 for the lab, each set in a root folder of its own.

`IBM_TOOLS` (lszcrypt and its family) are s390x builds and run under qemu-user. `NEWER_STACK` (mdevctl 1.4,
libvirt 11.3) is this machine's architecture and meant for chroot.

Fetched once by the machine's apt-get with a private configuration: own sources, lists and cache, so the
machine's packages and lists stay as they are. The mirror is the one the machine itself uses, signatures
are checked with its own keyring.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.lab import programs
from vfioapd.lab.errors import Exit, LabError
from vfioapd.lab.requirements import find_program

if TYPE_CHECKING:
    from collections.abc import Iterator

CODENAME = "trixie"
# Two names of one release. Mirrors synchronise them one after the other, so that for some hours the
# lists of an architecture may not match the signature under one name and still match under the other.
SUITES = (CODENAME, "stable")
# A mirror's lists can name a build of another architecture that its pool lacks for days. A newer library
# serves the programs as well; the programs themselves are of CODENAME or not there.
SPARE_CODENAME = "forky"
TOOLS = ("lszcrypt", "chzcrypt", "lszdev", "chzdev", "zcryptctl")


@dataclass(frozen=True, slots=True)
class Peer:
    """One root folder: what is unpacked into it, and the programs it is for."""

    architecture: str
    packages: tuple[str, ...]  # the programs' own one first
    programs: tuple[str, ...]
    with_dependencies: bool = False  # else the packages are all that is fetched

    @property
    def folder(self) -> str:
        return f"{CODENAME}-{self.architecture}"


IBM_TOOLS = Peer(
    "s390x",
    (
        "s390-tools",
        "libc6",
        "libcap2",
        "libfuse3-4",
        "libgcc-s1",
        "libglib2.0-0t64",
        "libjson-c5",
        "libncurses6",
        "libtinfo6",
        "libudev1",
        "zlib1g",
    ),
    TOOLS,
)
NEWER_STACK = Peer(
    "amd64",
    ("libvirt-clients", "libvirt-daemon", "libvirt-daemon-driver-nodedev", "mdevctl"),
    ("libvirtd", "mdevctl", "virsh"),
    with_dependencies=True,
)
EMULATOR = "qemu-s390x-static"
PROGRAMS = {"apt-get": "apt", "dpkg": "dpkg", EMULATOR: "qemu-user-static"}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# Debian 13's packages hold usr/ only, but the loaders are called /lib/ld64.so.1, /lib64/ld-linux-x86-64.so.2
MERGED = ("bin", "lib", "lib64", "sbin")
FETCH_SECONDS = 300
_run = partial(programs.run, purpose="cannot fetch the peers", seconds=FETCH_SECONDS, status=Exit.MISSING)

APT_CONFIGURATION = """\
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture}"; }};
#clear APT::Update;
#clear DPkg;
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "2";
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base, "vfioap-lab") if base else Path("/var/cache/vfioap-lab")


def find(peer: Peer = IBM_TOOLS) -> Path | None:
    """Root folder of the programs, if they were fetched."""
    root = cache_folder() / peer.folder
    return root if root.is_dir() else None


def fetch(peer: Peer = IBM_TOOLS) -> Path:
    """Root folder of the programs; downloads 15 MB (NEWER_STACK: 35) the first time and blocks until done."""
    _check_machine(peer)
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache):
        root = find(peer)
        if root:
            return root
        with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as scratch:
            folder = Path(scratch)
            _download(folder, peer)
            return _unpack(folder, peer).rename(cache / peer.folder)


def write_wrappers(folder: Path) -> None:
    """Put the tools on the PATH of a lab; without fetched peers there is nothing to put."""
    if find() is None or find_program(EMULATOR) is None:
        return
    for tool in TOOLS:
        wrapper = folder / tool
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(command(tool))} "$@"\n')
        wrapper.chmod(0o755)


def command(tool: str) -> list[str]:
    """The start of a command line that runs one of TOOLS."""
    root, emulator = find(), find_program(EMULATOR)
    if root is None or emulator is None:
        raise LabError(
            f"{tool} is not here yet; fetch it outside of the lab with: vfioap-lab peers", Exit.MISSING
        )
    return [emulator, "-L", str(root), str(root / "usr/sbin" / tool)]


def _check_machine(peer: Peer) -> None:
    if peer is NEWER_STACK and platform.machine() != "x86_64":
        raise LabError(
            f"Debian's {peer.architecture} programs do not run on {platform.machine()}", Exit.MISSING
        )
    missing = sorted({package for name, package in PROGRAMS.items() if find_program(name) is None})
    if not KEYRING.exists():
        missing.append("debian-archive-keyring")
    if missing:
        raise LabError(
            f"the peers need packages that this machine lacks; "
            f"install with: apt-get install --no-install-recommends {' '.join(missing)}",
            Exit.MISSING,
        )


@contextlib.contextmanager
def locked(cache: Path) -> Iterator[None]:
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel, whatever becomes of us
        for leftover in cache.glob("new-*"):  # of a run that was interrupted
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _download(folder: Path, peer: Peer) -> None:
    configuration = APT_CONFIGURATION.format(architecture=peer.architecture, folder=folder)
    (folder / "apt.conf").write_text(configuration)
    (folder / "status").touch()
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    source = mirror()
    for suite in SUITES:
        try:
            _update(folder, source, suite, CODENAME)
            break
        except LabError:
            if suite == SUITES[-1]:
                raise
    if peer.with_dependencies:  # to apt this is a machine without any package
        _apt_get(folder, "install", "--download-only", "--no-install-recommends", "-y", *peer.packages)
    else:
        _download_each(folder, source, peer)


def _download_each(folder: Path, mirror: str, peer: Peer) -> None:
    program, *libraries = peer.packages
    _apt_get(folder, "download", program)
    missing = [library for library in libraries if not _is_downloaded(folder, library)]
    if missing:
        _update(folder, mirror, SPARE_CODENAME, SPARE_CODENAME)
        _apt_get(folder, "download", *missing)


def _is_downloaded(folder: Path, package: str) -> bool:
    try:
        _apt_get(folder, "download", package)
    except LabError:
        return False
    return True


def _update(folder: Path, mirror: str, suite: str, codename: str) -> None:
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
    # apt takes a mirror that does not answer for a warning, unless told otherwise
    _apt_get(folder, "--error-on=any", "update")
    found = _apt_get(folder, "indextargets", "--format", "$(CODENAME)").split()
    if set(found) != {codename}:
        raise LabError(f"cannot fetch the peers: {suite} is {found}, not {codename}", Exit.MISSING)


def _apt_get(folder: Path, *arguments: str) -> str:
    return _run(["apt-get", "-c", str(folder / "apt.conf"), "-qq", *arguments], folder=folder)


def mirror() -> str:
    """Where this machine gets its own release from."""
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    listing = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"]
    for line in _run([*listing, "Created-By: Packages"], folder=Path("/")).splitlines():
        address, *place = line.split()  # a flat repository has no component
        if place == [codename, "main"]:
            return address
    raise LabError(
        f"cannot fetch the peers: this machine's apt sources name no Debian mirror of {codename} main",
        Exit.MISSING,
    )


def _unpack(folder: Path, peer: Peer) -> Path:
    root = folder / "root"
    for name in MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in sorted([*folder.glob("*.deb"), *folder.glob("cache/archives/*.deb")]):
        _run(["dpkg", "-x", str(package), str(root)], folder=folder)
    _link_run(root)
    missing = [tool for tool in peer.programs if not _program(root, tool).is_file()]
    if missing:
        raise LabError(f"Debian's {peer.packages[0]} of {CODENAME} lacks {', '.join(missing)}", Exit.MISSING)
    root.chmod(0o755)
    return root


def _link_run(root: Path) -> None:
    """As the set-up script of base-files, which only an installation runs, would do it."""
    run = root / "var/run"
    if run.is_dir():
        run.rmdir()
        run.symlink_to("/run")


def _program(root: Path, name: str) -> Path:
    return next((path for path in (root / "usr/sbin" / name, root / "usr/bin" / name) if path.exists()), root)
