# SPDX-License-Identifier: Apache-2.0
"""Other systems than this machine's own to boot: their root folders, made once and kept.

Made by debootstrap and then by the new system's own apt in a container. The mirror is the one that the
machine itself uses, signatures are checked with its keyring; its own packages and lists stay as they are.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vfioapd.lab import modular, peers, programs
from vfioapd.lab.errors import Exit, LabError
from vfioapd.lab.programs import ProgramFailed
from vfioapd.lab.requirements import find_program

BASE = ("systemd", "systemd-sysv", "libpam-systemd", "dbus", "udev")
# What vfioapd and a lab need, as `make debian` installs it on Debian 12. debootstrap takes no alternatives
# and no virtual packages, so apt installs them.
PACKAGES = (
    "iproute2",
    "kmod",
    "libvirt-clients",
    "libvirt-daemon-system",
    "man-db",
    "mdevctl",
    "procps",  # libvirt's units reload by its kill
    "python3-libvirt",
    "python3-lxml",
    "python3-pyudev",
    "python3-systemd",
    "python3-tomlkit",
)
QEMU = ("qemu-system-misc", "qemu-system-s390x")  # the first that has the program
QEMU_PROGRAM = "usr/bin/qemu-system-s390x"
PROGRAMS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
BUILD_SECONDS = 3600  # for each program; a compiler takes longest
_run = partial(
    programs.run, purpose="cannot make that system's root", seconds=BUILD_SECONDS, status=Exit.MISSING
)
# apt names each file that the mirror's lists promise and its pool lacks
_NOT_FETCHED = re.compile(r"Failed to fetch \S+/([^/_\s]+)_[^/\s]+\.deb")


@dataclass(frozen=True, slots=True)
class System:
    """A system that can be booted instead of the machine's own."""

    codename: str
    spare: str  # the release that lends a package which the mirror's pool lacks for the moment
    is_modular: bool = False


SYSTEMS = {
    "debian13": System(peers.CODENAME, peers.SPARE_CODENAME),
    "debian12-modular": System("bookworm", peers.CODENAME, is_modular=True),
    "debian13-modular": System(peers.CODENAME, peers.SPARE_CODENAME, is_modular=True),
}


def find(name: str) -> Path | None:
    """Root folder of the system, if it was made."""
    root = _folder(name)
    return root if root.is_dir() else None


def fetch(name: str) -> Path:
    """Root folder of the system; the first time this downloads 300 MB and takes minutes, twice as many where
    libvirt is built."""
    return find(name) or _make(name)


def _make(name: str) -> Path:
    cache = peers.cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with peers.locked(cache):
        root = find(name)
        if root:  # somebody else has made it meanwhile
            return root
        _check_machine()
        with tempfile.TemporaryDirectory(dir=cache, prefix="new-", ignore_cleanup_errors=True) as scratch:
            return _build(Path(scratch) / "root", SYSTEMS[name]).rename(_folder(name))


def _folder(name: str) -> Path:
    """One for each list of packages: what was made by an earlier one may lack some, or be in use."""
    system = SYSTEMS[name]
    recipe = repr((system, BASE, PACKAGES, QEMU, modular.RECIPE if system.is_modular else ()))
    return peers.cache_folder() / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"


def _check_machine() -> None:
    missing = sorted(package for program, package in PROGRAMS.items() if find_program(program) is None)
    if not peers.KEYRING.exists():
        missing.append("debian-archive-keyring")
    if missing:
        raise LabError(
            f"another system needs packages that this machine lacks; "
            f"install with: apt-get install --no-install-recommends {' '.join(missing)}",
            Exit.MISSING,
        )


def _build(root: Path, system: System) -> Path:
    mirror = peers.mirror()
    _bootstrap(root, system, mirror)
    made = _make_modular(root) if system.is_modular else None
    _install(root, system, mirror, [*PACKAGES, QEMU[0]])
    if not (root / QEMU_PROGRAM).exists():
        _install(root, system, mirror, [QEMU[1]])
    if made:
        _copy(made, root)
    _apt_get(root, "clean")
    root.chmod(0o755)
    return root


def _make_modular(root: Path) -> Path:
    """What is to be put over the system's packages, once those are there."""
    copy = root.with_name("copy")
    _copy(root, copy)
    modular.prepare(copy, lambda command: _in_container(copy, command))
    return copy / modular.RESULT


def _copy(folder: Path, to: Path) -> None:
    to.mkdir(exist_ok=True)
    _run(["cp", "--archive", f"{folder}/.", str(to)])


def _bootstrap(root: Path, system: System, mirror: str) -> None:
    """With the keyring that the machine trusts; the new system gets the same mirror as its source."""
    options = ["--variant=minbase", f"--include={','.join(BASE)}", f"--keyring={peers.KEYRING}"]
    _run(["debootstrap", *options, system.codename, str(root), mirror])


def _install(root: Path, system: System, mirror: str, packages: list[str]) -> None:
    """What the pool lacks comes from the next release; the programs under test are never asked for there."""
    try:
        _apt_get(root, "install", "--no-install-recommends", "--yes", *packages)
    except ProgramFailed as error:
        lent = sorted(set(_NOT_FETCHED.findall(error.said)) - set(packages))
        if not lent:
            raise
        with (root / "etc/apt/sources.list").open("a") as sources:
            sources.write(f"deb {mirror} {system.spare} main\n")
        (root / "etc/apt/apt.conf.d/lab").write_text(f'APT::Default-Release "{system.codename}";\n')
        _apt_get(root, "update")
        chosen = [f"{package}/{system.spare}" for package in lent]
        _apt_get(root, "install", "--no-install-recommends", "--yes", *packages, *chosen)


def _apt_get(root: Path, *arguments: str) -> None:
    _in_container(root, ["apt-get", "-q", *arguments])


def _in_container(root: Path, command: list[str]) -> None:
    container = ["systemd-nspawn", "--quiet", f"--directory={root}", "--register=no", "--keep-unit"]
    _run([*container, "--pipe", "--setenv=DEBIAN_FRONTEND=noninteractive", "--", *command])
