# SPDX-License-Identifier: Apache-2.0
"""Every file of mdevctl's that bears a UUID, wherever it stands: what a host that is adopted brings along.

mdevctl has a folder for each parent device and passes over files whose name is no UUID; a UUID in capital
letters is one to it, but ``mdevctl undefine`` then looks for the name in small letters.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import UUID

from vfioapd.plan.adopt_facts import DefinitionFile
from vfioapd.store import atomic
from vfioapd.store.mdevctl import parse_definition

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What mdevctl's parser takes as a file's name besides the usual form (Rust's uuid: Uuid::parse_str).
_UUID = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def read_definition_files(definitions: Path) -> tuple[DefinitionFile, ...]:
    """All of them, sorted by path; ``definitions`` is the folder of vfio_ap's parent device."""
    root = definitions.parent
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []
    return tuple(one for folder in folders for one in _folder(folder, is_ours=folder == definitions))


def _folder(folder: Path, *, is_ours: bool) -> Iterator[DefinitionFile]:
    for path in sorted(folder.iterdir()):
        if _UUID.fullmatch(path.name) and path.is_file():
            uuid = UUID(path.name)
            yield _read(path, uuid, in_place=is_ours and path.name == str(uuid))


def _read(path: Path, uuid: UUID, *, in_place: bool) -> DefinitionFile:
    try:
        definition = parse_definition(atomic.read(path) or "", uuid)
    except (ValueError, OSError) as error:
        return DefinitionFile(str(path), uuid, in_place, torn=str(error))
    return DefinitionFile(str(path), uuid, in_place, definition)
