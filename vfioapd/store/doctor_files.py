# SPDX-License-Identifier: Apache-2.0
"""Files of others that decide whether vfio_ap is loaded, who sets masks, and what mdevctl meets."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from vfioapd.domain.definition import parse_uuid
from vfioapd.domain.problems import Refused
from vfioapd.plan.doctor_facts import BootFacts, ModuleFacts
from vfioapd.store import atomic
from vfioapd.store.boot_masks import (
    COMMAND_LINE,
    MODPROBE_FOLDERS,
    UDEV_FOLDERS,
    config_files,
    read_boot_masks,
)
from vfioapd.store.mdevctl import read_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vfioapd.store.mdevctl import TornDefinition

LOAD_FOLDERS = tuple(
    f"{top}/modules-load.d"
    for top in ("etc", "run", "usr/local/lib", "usr/lib")  # modules-load.d(5)
)
BOOT_CONFIGS = ("etc/zipl.conf", "etc/default/grub", "etc/kernel/cmdline")
BOOT_ENTRIES = "boot/loader/entries"
BOOT_TOOLS = ("grubby", "zipl", "update-grub", "grub2-mkconfig")
SCRIPTS = ("callouts", "notifiers")

_NAME = re.compile(r"\s*vfio[-_]ap\s*")
_FORBID = re.compile(r"\s*(blacklist|install)\s+vfio[-_]ap(\s|$)")
_BLACKLIST = re.compile(r"(?:module_blacklist|(?:rd\.)?modprobe\.blacklist|(?:rd\.)?driver\.blacklist)=(.*)")
_LOAD = re.compile(r"(?:rd\.)?modules[-_]load=(.*)")
_MASKS = re.compile(r"\bap\.a[pq]mask=")


def read_modules(root: Path) -> ModuleFacts:
    """Who loads vfio_ap at boot, and who keeps it from being loaded."""
    return ModuleFacts(tuple(_loaders(root)), tuple(_forbidders(root)))


def read_boot(root: Path) -> BootFacts:
    """Who sets masks at boot, and what the boot loader is configured with."""
    configs = [root / name for name in BOOT_CONFIGS]
    configs += sorted((root / BOOT_ENTRIES).glob("*.conf"))
    with_masks = [path for path in configs if _MASKS.search(_text(path))]
    return BootFacts(
        read_boot_masks(root),
        tuple(f"/{path.relative_to(root)}" for path in with_masks),
        frozenset(name for name in BOOT_TOOLS if find_program(root, name)),
    )


def strays(folder: Path) -> tuple[str, ...]:
    """Files in mdevctl's folder that are no definitions by their names."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return tuple(str(path) for path in found if not _is_uuid(path.name))


def torn_elsewhere(folder: Path) -> Iterator[TornDefinition]:
    """Files of other parent devices that cannot be read: one of them stops mdevctl for all parents."""
    others = sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []
    for other in others:
        if other != folder and other.is_dir() and other.name != "scripts.d":
            yield from read_folder(other).torn


def missing_script_folders(root: Path, complaint: str) -> tuple[str, ...]:
    """Of the folders without which mdevctl refuses to run those that are missing; which pair it demands
    depends on its version, and its complaint names that."""
    top = next(
        (one for one in ("etc/mdevctl.d", "usr/lib/mdevctl") if f"/{one}/scripts.d" in complaint), None
    )
    if top is None:
        return ()
    return tuple(
        f"/{top}/scripts.d/{name}" for name in SCRIPTS if not (root / top / "scripts.d" / name).is_dir()
    )


def find_program(root: Path, name: str) -> Path | None:
    """Where a program of this host is, in the folders that root's shells look into."""
    folders = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
    found = (root / folder / name for folder in folders)
    return next((path for path in found if os.access(path, os.X_OK)), None)


def _loaders(root: Path) -> Iterator[str]:
    for path in config_files(root, LOAD_FOLDERS, ".conf"):
        if any(map(_NAME.fullmatch, _text(path).splitlines())):
            yield f"/{path.relative_to(root)}"
    for path in config_files(root, UDEV_FOLDERS, ".rules"):  # chzdev's rule does
        lines = _text(path).splitlines()
        if any("kmod load vfio_ap" in line for line in lines if not line.lstrip().startswith("#")):
            yield f"/{path.relative_to(root)}"
    if any("vfio_ap" in listed for listed in _listed(root, _LOAD)):
        yield f"/{COMMAND_LINE}"
    for path in (root / "lib/modules").glob(f"{os.uname().release}/modules.builtin"):
        if "/vfio_ap.ko" in _text(path):
            yield f"/{path.relative_to(root)}"


def _forbidders(root: Path) -> Iterator[str]:
    for path in config_files(root, MODPROBE_FOLDERS, ".conf"):
        if any(map(_FORBID.match, _text(path).splitlines())):
            yield f"/{path.relative_to(root)}"
    if any("vfio_ap" in listed for listed in _listed(root, _BLACKLIST)):
        yield f"/{COMMAND_LINE}"


def _listed(root: Path, parameter: re.Pattern[str]) -> list[list[str]]:
    """The lists of modules that a kernel parameter was given."""
    words = _text(root / COMMAND_LINE).partition(" -- ")[0].split()
    matches = filter(None, map(parameter.fullmatch, words))
    return [match[1].replace("-", "_").split(",") for match in matches]


def _text(path: Path) -> str:
    """A link to nowhere is no file, and a folder none either."""
    try:
        return atomic.read(path) or ""
    except IsADirectoryError:
        return ""


def _is_uuid(name: str) -> bool:
    try:
        parse_uuid(name)
    except Refused:
        return False
    return True
