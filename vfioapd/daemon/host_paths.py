# SPDX-License-Identifier: Apache-2.0
"""Files and folders as they are, beside what they should be: who may write what root reads."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from typing import TYPE_CHECKING

from vfioapd.plan.doctor_facts import HookFacts, PathFacts
from vfioapd.rpc.server import GROUP, READ_ONLY_MODE, WRITABLE_MODE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vfioapd.daemon.places import Places

FOLDER_MODE, FILE_MODE = 0o755, 0o644


def read_paths(places: Places, *, daemon_runs: bool) -> tuple[PathFacts, ...]:
    """Those that matter. Sockets are there while the daemon runs; the others may be made by it, too."""
    return tuple(_paths(places, daemon_runs=daemon_runs))


def read_hook(places: Places, originals: tuple[Path, ...]) -> HookFacts:
    """Ours among libvirt's hooks, compared with the first of these that is there."""
    path, original = places.hook, next(filter(os.path.isfile, originals), None)
    shown = f"/{path.relative_to(places.root)}"
    if not path.is_file():
        return HookFacts(shown, str(original) if original else None, exists=False)
    return HookFacts(
        path=shown,
        original=str(original) if original else None,
        executable=os.access(path, os.X_OK),
        same=original is None or path.read_bytes() == original.read_bytes(),
        changed=path.stat().st_ctime,
        others_since=min((one.stat().st_ctime for one in _other_hooks(path)), default=None),
    )


def has_group() -> bool:
    """Whether there is the group that may change things."""
    try:
        grp.getgrnam(GROUP)
    except KeyError:
        return False
    return True


def _paths(places: Places, *, daemon_runs: bool) -> Iterator[PathFacts]:
    folders = (places.host_file.parent, places.definitions.parent, places.definitions, places.state)
    for folder in folders:
        yield _path(folder, f"install -d -m 755 {folder}", FOLDER_MODE)
    for file in (places.host_file, places.hook.parent, places.hook):
        if file.exists():
            yield _path(file, "", FOLDER_MODE)
    if daemon_runs:
        yield _path(places.runtime, "", FOLDER_MODE, exact=True)
        # Not restart: systemd starts the daemon again before its sockets, and then refuses to start those.
        units = "vfioapd.socket vfioapd-ro.socket vfioapd.service"
        mend = f"systemctl stop {units} && systemctl start {units}"
        group = GROUP if has_group() else None
        yield _path(places.socket, mend, WRITABLE_MODE, exact=True, group=group)
        yield _path(places.read_only_socket, mend, READ_ONLY_MODE, exact=True)


def _path(path: Path, mend: str, mode: int, *, exact: bool = False, group: str | None = None) -> PathFacts:
    try:
        found = path.stat()
    except FileNotFoundError:
        return PathFacts(str(path), mend, exists=False)
    return PathFacts(
        str(path),
        mend,
        wanted_mode=mode,
        wanted_group=group,
        exact=exact,
        mode=stat.S_IMODE(found.st_mode),
        owner=_user(found.st_uid),
        group=_group(found.st_gid),
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"uid {number}"


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return f"gid {number}"


def _other_hooks(ours: Path) -> Iterator[Path]:
    """libvirt looks into the folder again at each guest's start once it knows of one QEMU hook."""
    for path in (ours.parent.parent / "qemu", *ours.parent.glob("*")):
        if path != ours and path.is_file() and os.access(path, os.X_OK):
            yield path
