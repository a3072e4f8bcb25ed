# SPDX-License-Identifier: Apache-2.0
"""The record of the change being made, on disk before the kernel is touched.

One JSON object a line: ``begin`` with every step and the boot it belongs to, ``intent`` before each
step, or before several that are made without a pause, ``end``. A torn line is what a power cut leaves;
it is read as not written.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.plan.wire import decode_step, encode_step

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from vfioapd.plan.steps import Step


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run without an end: its steps, how many were begun, and whether the host rebooted since."""

    steps: tuple[Step, ...]
    begun: int
    rebooted: bool


class Journal:
    """The journal file of one host, and beside it what earlier runs have left to be undone. One writer at
    a time: the daemon's worker."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self._left = path.with_name(f"{path.name}.left")
        self._boot_id = boot_id

    @property
    def boot_id(self) -> str:
        """The boot that the host is in."""
        return self._boot_id

    def begin(self, steps: Sequence[Step]) -> None:
        """Start a new record; the finished one before it is forgotten."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self._path.exists()
        self._write({"begin": [encode_step(step) for step in steps], "boot": self._boot_id}, "w")
        if is_new:
            self._sync_folder()

    def intent(self, number: int) -> None:
        """All steps up to ``number``, counted from 0, are about to be made or were made."""
        self._write({"intent": number}, "a")

    def end(self, *, clean: bool) -> None:
        """The run is over; not clean when something could not be undone."""
        self._write({"end": "clean" if clean else "stuck"}, "a")

    def forget(self) -> None:
        """Drop the record; takes no room on a full disk."""
        self._path.unlink(missing_ok=True)

    def unfinished(self) -> Unfinished | None:
        """The run that was cut short, or None. ValueError when the record cannot be understood."""
        records = list(self._records())
        if not records or "begin" not in records[0] or any("end" in record for record in records):
            return None
        written = records[0]["begin"]
        steps = tuple(decode_step(step) for step in written) if isinstance(written, list) else ()
        begun = 1 + max((int(str(record["intent"])) for record in records if "intent" in record), default=-1)
        return Unfinished(steps, begun, rebooted=records[0].get("boot") != self._boot_id)

    def left(self) -> Unfinished | None:
        """Steps that could not be undone when their run was settled, or None. Raises as ``unfinished``."""
        if not self._left.exists():
            return None
        record = json.loads(self._left.read_text())
        steps = tuple(map(decode_step, record["steps"]))
        return Unfinished(steps, len(steps), rebooted=record["boot"] != self._boot_id)

    def leave(self, steps: Sequence[Step]) -> None:
        """Keep these steps, in the order in which they were made, and no others."""
        if not steps:
            self._left.unlink(missing_ok=True)
            return
        new = self._left.with_name(f"{self._left.name}.new")
        with open(new, "w", opener=_private) as file:
            json.dump({"steps": [encode_step(step) for step in steps], "boot": self._boot_id}, file)
            file.flush()
            os.fdatasync(file.fileno())
        new.replace(self._left)
        self._sync_folder()

    def _write(self, record: Mapping[str, object], mode: str) -> None:
        # The first line end closes a line that a power cut tore. The file object writes on after a short
        # write, so that a disk that fills up in the middle of a line is an error and not half a record.
        line = "\n" + json.dumps(record, separators=(",", ":")) + "\n"
        with open(self._path, mode, opener=_private) as file:
            file.write(line)
            file.flush()
            os.fdatasync(file.fileno())

    def _sync_folder(self) -> None:
        descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _records(self) -> Iterator[Mapping[str, object]]:
        if not self._path.exists():
            return
        for line in self._path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # blank or torn
                yield json.loads(line)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
