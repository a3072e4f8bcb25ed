# SPDX-License-Identifier: Apache-2.0
"""host.toml as it is in force and as it stands on disk: an edit by hand takes effect by apply, or at boot."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from vfioapd.domain.definition import Desired
from vfioapd.domain.problems import Problem, Refused, VfioApError
from vfioapd.domain.snapshot import Snapshot
from vfioapd.plan import wishes
from vfioapd.plan.wish import State
from vfioapd.store import atomic, host_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from vfioapd.daemon.live_host import LiveHost
    from vfioapd.daemon.places import Places
    from vfioapd.domain.definition import Definition
    from vfioapd.store.history import History

logger = logging.getLogger(__name__)


class DesiredState:
    """What the host should be. Reads files at every call: they are small, and others change them."""

    def __init__(self, places: Places, history: History) -> None:
        self._places = places
        self._history = history
        self._parsed: dict[str, Desired] = {}  # texts read of late; a host.toml of a large host takes a while

    def applied(self) -> Desired:
        """What is in force: the newest revision. Before there is any, nothing."""
        text = self.applied_text()
        if text is None:
            return Desired()
        try:
            return self.parse(text, f"revision {self._history.last()}")
        except VfioApError as error:
            return self._next_best(error)

    def _next_best(self, error: VfioApError) -> Desired:
        """A revision that cannot be read (damaged, or a newer vfioapd's) leaves host.toml to go by, and
        that, where it cannot be read or was cut off, the newest revision that can."""
        try:
            found = self._whole_host_file()
        except (VfioApError, OSError) as other:
            for number in sorted((one.number for one in self._history.revisions()), reverse=True):
                with contextlib.suppress(VfioApError, OSError):
                    found = self.parse(self._history.read(number), f"revision {number}")
                    logger.warning("%s; %s; revision %d is in force instead", error, other, number)
                    return found
            raise
        logger.warning("%s; %s is in force instead", error, self._places.host_file)
        return found

    def _whole_host_file(self) -> Desired:
        found = host_file.read(self._places.host_file)
        if host_file.says_nothing(found.text):
            sentence = f"{self._places.host_file} says nothing, as a file that was cut off"
            raise Refused(Problem.BAD_HOST_FILE, sentence)
        return found.desired

    def parse(self, text: str, name: str) -> Desired:
        """What a text says, ``name`` being what errors call it. Raises as ``host_file.parse`` does."""
        found = self._parsed.get(text)
        if found is None:
            found = host_file.parse(text, name)
            kept = list(self._parsed.items())[-1:]  # the one in force, most often; reads may come meanwhile
            self._parsed = {**dict(kept), text: found}
        return found

    def applied_text(self) -> str | None:
        """The newest revision to the letter."""
        number = self._history.last()
        return None if number is None else self._history.read(number)

    def is_edited(self) -> bool:
        """Whether host.toml on disk is not the one in force; one that cannot be read is not."""
        try:
            return (host_file.read_text(self._places.host_file) or "") != (self.applied_text() or "")
        except Refused:
            return True

    def read(self, text: str | None = None, name: str | None = None) -> tuple[str, Desired]:
        """A host.toml, which errors call ``name``: this text, or the present one.

        Raises as ``host_file.parse`` does, and refuses one that says nothing while there are matrices: a
        power cut or a slip leaves that of a file, and it would be taken for: forget all matrices.
        """
        present = self._places.host_file
        found = (host_file.read_text(present) or "") if text is None else text
        name = name or str(present)
        desired = self.parse(found, name)
        if not desired.definitions and host_file.says_nothing(found) and self.applied().definitions:
            raise Refused(
                Problem.BAD_HOST_FILE,
                f"{name} says nothing, as a file that was cut off",
                hint=f"vfioapctl restore {self._history.last()} brings it back;"
                " to forget all matrices, write: version = 1",
            )
        return found, desired

    def check_applied(self) -> None:
        """Refuse to change one thing while an edit waits: it would take effect unseen, or be lost."""
        if self.is_edited():
            self.read()  # one that cannot be read is the nearer cause
            number = self._history.last()
            raise Refused(
                Problem.UNAPPLIED_EDIT,
                f"{self._places.host_file} was edited and the edit is not in force",
                hint="vfioapctl plan shows what it would do, vfioapctl apply does it"
                + (f", vfioapctl restore {number} takes it back" if number is not None else ""),
            )

    def problems(self) -> list[str]:
        """What is wrong with host.toml as it stands; one that is only edited is said, too."""
        try:
            self.read()
        except (VfioApError, OSError) as error:
            return [str(error)]
        if self.is_edited():
            return [f"{self._places.host_file} was edited and the edit is not in force (vfioapctl plan)"]
        return []

    def state(self, host: LiveHost, *, disrupt: bool = False) -> State:
        """What a command starts from: a fresh snapshot and what is in force."""
        desired = self.applied()
        return self.state_of(host.snapshot(desired), desired, disrupt=disrupt)

    def state_of(self, snapshot: Snapshot, desired: Desired, *, disrupt: bool = False) -> State:
        """The same from a snapshot that is at hand."""
        return State(snapshot, desired, *self._taken_out(), disrupt)

    def bare_state(self, host: LiveHost) -> State:
        """The same without any call of libvirt, for what a hook may be waiting for: reading a guest would
        wait for that hook. Guests and the definitions of others are not known then."""
        return State(replace(host.bus(), guests=None), self.applied(), *self._taken_out())

    def should_run(self) -> list[Definition]:
        """The definitions whose device should exist without anybody asking for it; reads no host."""
        return wishes.should_run(self.state_of(Snapshot(), self.applied()))

    def unplugged(self) -> frozenset[str]:
        """The matrices that an admin took from their running guests."""
        return _names(self._places.unplugged)

    def note_unplugged(self, names: Iterable[str]) -> None:
        """These alone are still to be left out."""
        atomic.replace(self._places.unplugged, names_text(names))

    def _taken_out(self) -> tuple[frozenset[str], frozenset[str]]:
        return _names(self._places.stopped), self.unplugged()


def names_text(names: Iterable[str]) -> str | None:
    """Matrices one a line, as they are noted below /run; no file where there is none."""
    return "".join(f"{name}\n" for name in sorted(names)) or None


def _names(path: Path) -> frozenset[str]:
    return frozenset((atomic.read(path) or "").split())
