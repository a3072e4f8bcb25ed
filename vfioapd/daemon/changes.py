# SPDX-License-Identifier: Apache-2.0
"""A change from plan to commit: files added to the plan, one run of the engine, a check by a fresh read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vfioapd.daemon.desired import names_text
from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.domain.queue_set import EMPTY
from vfioapd.engine.run import run
from vfioapd.plan.effects import check_victims
from vfioapd.plan.planner import plan
from vfioapd.plan.steps import WriteFile, describe
from vfioapd.store import atomic, host_file
from vfioapd.store.mdevctl import format_definition

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vfioapd.daemon.live_host import LiveHost
    from vfioapd.daemon.places import Places
    from vfioapd.domain.definition import Desired
    from vfioapd.domain.snapshot import Snapshot
    from vfioapd.engine.journal import Journal
    from vfioapd.plan.planner import Plan, Target
    from vfioapd.plan.steps import Step
    from vfioapd.plan.wish import State, Wish
    from vfioapd.store.history import Author, History

    Made = tuple[Plan, list[str]]  # and one line for each step, those of files among them


@dataclass(frozen=True, slots=True)
class Note:
    """What stands in the history beside a change."""

    what: str  # the command
    author: Author
    reason: str = ""  # in the admin's words
    text: str | None = None  # host.toml to the letter; None: the present one, rewritten
    wait: str | None = None  # the file of a change that must be confirmed


class Changes:
    """Makes wishes true. One at a time: the caller holds the AP configuration lock."""

    def __init__(self, host: LiveHost, places: Places, journal: Journal, history: History) -> None:
        self._host = host
        self._places = places
        self._journal = journal
        self._history = history

    def preview(self, wish: Wish, state: State, text: str | None = None) -> Made:
        """What ``make`` with a note of this text would do; nothing is changed."""
        made = plan(state.snapshot, wish.target)
        steps = [*made.steps, *self._definitions(wish, state.desired)]
        return made, self._shown(steps, self._text_after(wish, state, text), wish)

    def make(self, wish: Wish, state: State, note: Note) -> Made:
        """Plan, run, verify, commit. Refused or failed: the host and the files are as before."""
        made, steps = self._planned(wish, state)
        text = self._text_after(wish, state, note.text)
        shown = self._shown(steps, text, wish)
        commit = [*self._taken_out(wish), *self._commit(wish, state, note, steps, text)]
        self._run(steps, commit, wish, state)
        return made, shown

    def make_true(self, wish: Wish, state: State) -> list[str]:
        """The same for what is in force already: host.toml and the history are left alone. Returns what was
        done, one line for each step."""
        _, steps = self._planned(wish, state)
        self._run(steps, list(self._taken_out(wish)), wish, state)
        return list(map(describe, steps))

    def edited_definitions(self, desired: Desired) -> dict[str, str]:
        """Matrices whose definition in mdevctl's folder is not as we wrote it, with the words for that."""
        return {
            one.name: f"its definition in {self._places.definitions} was changed or removed"
            for one in desired.definitions
            if atomic.read(self._places.definitions / str(one.uuid)) != format_definition(one)
        }

    def _planned(self, wish: Wish, state: State) -> tuple[Plan, list[Step]]:
        made = plan(state.snapshot, wish.target)
        if not wish.decided:
            check_victims(made.victims)
        return made, [*made.steps, *self._definitions(wish, state.desired)]

    def _run(self, steps: list[Step], commit: list[WriteFile], wish: Wish, state: State) -> None:
        if steps or commit:
            run(steps, commit, self._host, self._journal, lambda: self._verify(wish.target, state.snapshot))

    def _definitions(self, wish: Wish, before: Desired) -> Iterator[WriteFile]:
        """mdevctl's folder as it shall be: gone ones removed, ours written, and mended where edited."""
        after = wish.desired
        for definition in before.definitions:
            if after.by_uuid(definition.uuid) is None:
                yield from _file(self._places.definitions / str(definition.uuid), None)
        for definition in after.definitions:
            path = self._places.definitions / str(definition.uuid)
            yield from _file(path, format_definition(definition))

    def _taken_out(self, wish: Wish) -> Iterator[WriteFile]:
        for path, names in ((self._places.stopped, wish.stopped), (self._places.unplugged, wish.unplugged)):
            yield from _file(path, names_text(names), volatile=True)

    def _text_after(self, wish: Wish, state: State, text: str | None) -> str:
        """host.toml as it will be: a text to the letter, or the present one, rewritten."""
        if text is not None:
            return text
        present = host_file.read_text(self._places.host_file) or ""
        if wish.desired == state.desired:
            return present
        return host_file.rewrite(present, wish.desired, file=str(self._places.host_file))

    def _shown(self, steps: list[Step], text: str, wish: Wish) -> list[str]:
        """One line for each step; then host.toml, of which an edit by hand is only put in force. That a
        matrix is stopped follows from its steps, and is a line only where it has none."""
        lines = list(map(describe, steps))
        on_disk = _file_changed(self._places.host_file, host_file.read_text(self._places.host_file), text)
        if not on_disk and text != (self._in_force() or ""):
            lines.append(f"put {self._places.host_file} in force as it stands")
        lines += map(describe, on_disk)
        return lines or list(map(describe, self._taken_out(wish)))

    def _commit(
        self, wish: Wish, state: State, note: Note, steps: list[Step], text: str
    ) -> Iterator[WriteFile]:
        """The revision, then host.toml: with that last rename the change is made."""
        on_disk = _file_changed(self._places.host_file, host_file.read_text(self._places.host_file), text)
        taken_out = (wish.stopped, wish.unplugged)
        if not steps and taken_out == (state.stopped, state.unplugged) and text == self._in_force():
            yield from on_disk  # an edit that was never in force is taken back without a revision
            return
        about = ": ".join(filter(None, (note.what, note.reason)))
        summary = "\n".join(map(describe, steps))
        now = datetime.now(UTC)
        for path, content in self._history.files(text, note.author, now, reason=about, summary=summary):
            yield WriteFile(str(path), None, content)
        yield from _file(self._places.unconfirmed, note.wait)
        yield from on_disk

    def _in_force(self) -> str | None:
        number = self._history.last()
        return None if number is None else self._history.read(number)

    def _verify(self, target: Target, before: Snapshot) -> None:
        """A fresh read must leave nothing to plan, and guests must have what was plugged."""
        glance = self._host.glance(before)
        if glance is not None and not self._left(target, glance):
            return
        if left := self._left(target, self._host.bus()):
            raise VfioApError(
                Problem.VERIFY_FAILED,
                f"the host is not as it was set a moment ago; still to do: {'; '.join(map(describe, left))}",
                hint="another program changes masks or devices at the same time; stop it, then try again",
            )

    def _left(self, target: Target, snapshot: Snapshot) -> list[Step]:
        still = replace(target, unplugs=(), plugs=(), released=EMPTY)
        guest_steps: tuple[Step, ...] = (*target.unplugs, *target.plugs)
        return [*plan(snapshot, still).steps, *(step for step in guest_steps if not self._host.holds(step))]


def _file(path: Path, after: str | None, *, volatile: bool = False) -> Iterator[WriteFile]:
    before = atomic.read(path)
    if before != after:
        yield WriteFile(str(path), before, after, volatile)


def _file_changed(path: Path, old: str | None, text: str) -> tuple[WriteFile, ...]:
    """No file and an empty one are the same."""
    return () if text == (old or "") else (WriteFile(str(path), old, text),)
