# SPDX-License-Identifier: Apache-2.0
"""Replays recorded sessions of the real kernel on the emulator and says where the two differ.

Only differences that the recordings' own README allows are left out; each is named where it is.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .faces import Blocked, Face, InProcess, Mounted, failed_call
from .generation import GENERATIONS
from .kernel import REQUEST_INTERVAL, Kernel
from .replay_guests import GuestPlayer
from .replay_tools import ToolPlayer
from .snapshot import snapshot
from .traces import (
    Event,
    Line,
    Session,
    change_machine,
    comparable_event,
    comparable_text,
    difference,
    is_asynchronous,
    load_session,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SHOWN_DIFFERENCES = 5

# What is compared of each kind of line; the fields are the recording's.
_RESULT_FIELDS = ("errno", "err", "at", "ret", "text", "entries", "target", "rc")
# Operations with nothing to agree about.
_SILENT = ("note", "wait")
# Operations that cannot change anything, so that no snapshot need be taken.
_READING = ("read", "list", "readlink", "guest_do")


@dataclass(frozen=True, slots=True)
class Difference:
    """One operation that did not agree: field, what the kernel did, what the emulator did."""

    seq: int
    operation: str
    field: str
    kernel: object
    emulator: object

    def __str__(self) -> str:
        return (
            f"  seq {self.seq}: {self.operation}\n    {self.field}\n"
            f"      kernel:   {self.kernel}\n      emulator: {self.emulator}"
        )


@dataclass(slots=True)
class Outcome:
    """How one session went."""

    session: str
    kernel: str
    operations: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def agreed(self) -> int:
        return self.operations - len({difference.seq for difference in self.differences})


class Replayer:
    """One session on one emulated kernel through one face."""

    def __init__(self, session: Session, kernel: Kernel, face: Face) -> None:
        self._session = session
        self._kernel = kernel
        self._face = face
        self._events: list[Event] = []
        self._expected_async: list[tuple[int, Event]] = []
        self._seen_async: list[tuple[int, Event]] = []
        self._outcome = Outcome(session.name, session.kernel)
        self._guests = GuestPlayer(kernel)
        self._tools = ToolPlayer(kernel, face)
        self._state: Line = {}
        kernel.events.subscribe(self._note_event)

    def run(self) -> Outcome:
        self._state = dict(snapshot(self._face))
        self._outcome.operations += 1
        differs = difference(self._session.state, self._state)
        self._compare(0, "the state after boot", "differs", {}, differs)
        for line in self._session.lines:
            self._operation(line)
        self._compare_async()
        self._kernel.events.unsubscribe(self._note_event)
        return self._outcome

    def _note_event(self, event: Any) -> None:
        comparable = comparable_event(event.action, event.devpath, event.env)
        if comparable:
            self._events.append(comparable)

    def _operation(self, line: Line) -> None:
        seq, operation = line["seq"], line["op"]
        result = self._perform(line)
        self._let_timer_scan(line)
        changed = self._changed(line)
        events, self._events = self._events, []
        if operation in _SILENT and not (events or changed or _has_effect(line)):
            return
        self._outcome.operations += 1
        name = _describe(line)
        for key in _RESULT_FIELDS:
            expected, got = _recorded(line, key), result.get(key)
            if key in result or key in line:
                self._compare(seq, name, key, expected, got)
        for key, value in result.get("more", {}).items():
            self._compare(seq, name, key, line.get(key), value)
        self._compare(seq, name, "changed", line.get("changed") or {}, changed)
        self._compare_events(seq, name, line, events)

    def _compare(self, seq: int, name: str, what: str, expected: object, got: object) -> None:
        if expected != got:
            self._outcome.differences.append(Difference(seq, name, what, expected, got))

    def _changed(self, line: Line) -> Line:
        if line["op"] in (*_READING, *_SILENT) and not _has_effect(line):
            return {}
        before, self._state = self._state, dict(snapshot(self._face))
        return difference(before, self._state)

    # --- operations

    def _perform(self, line: Line) -> Line:
        operations: dict[str, Callable[[Line], Line]] = {
            "read": self._read,
            "list": self._list,
            "readlink": self._readlink,
            "write": self._write,
            "play": self._play,
            "shell": self._tools.play,
            "state": self._read_state,
            "guest_open": self._guests.open,
            "guest_do": self._guests.do,
            "guest_close": self._guests.close,
        }
        perform = operations.get(line["op"])
        if perform is None:
            return {}
        try:
            return {"errno": 0} | perform(line)
        except OSError as error:
            code = error.errno or 0
            at = failed_call(error)
            return {"errno": code, "err": errno.errorcode.get(code, str(code))} | ({"at": at} if at else {})

    def _read(self, line: Line) -> Line:
        path = _relative(line["path"])
        return {"text": comparable_text(path, self._face.read(path))}

    def _list(self, line: Line) -> Line:
        return {"entries": self._face.entries(_relative(line["path"]))}

    def _readlink(self, line: Line) -> Line:
        return {"target": self._face.readlink(_relative(line["path"]))}

    def _read_state(self, line: Line) -> Line:
        # The whole state, said as what differs from the recorded one.
        return {"more": {"differs": difference(line["state"], dict(snapshot(self._face))) or None}}

    def _play(self, line: Line) -> Line:
        with self._kernel.lock:
            change_machine(self._kernel.machine, line["config"])
        return {}

    def _write(self, line: Line) -> Line:
        path, data = _relative(line["path"]), line["data"].encode()
        try:
            if "blocked_s" in line and isinstance(self._face, Mounted):
                self._face.write_expecting_block(path, data)
            return {"ret": self._face.write_bytes(path, data)}
        except Blocked as blocked:
            self._let_time_pass(line.get("blocked_s", 0.0))
            # On the kernel the writer survives SIGKILL; here it ends, which the recording cannot show.
            blocked.kill()
            return {"more": {"blocked_s": line.get("blocked_s")}}

    def _let_time_pass(self, seconds: float) -> None:
        for _ in range(int(seconds // REQUEST_INTERVAL)):
            self._kernel.remind_guests()

    # --- uevents

    def _let_timer_scan(self, line: Line) -> None:
        """Scan where the recorded kernel's 30 s timer did: it shows only by a BINDINGS=complete."""
        expected = sum(_has(event, "BINDINGS") for event in _line_events(line))
        seen = sum(_has(event, "BINDINGS") for event in self._events)
        ahead = sum(_has(e, "BINDINGS") for _, e in self._seen_async) - sum(
            _has(e, "BINDINGS") for _, e in self._expected_async
        )
        waited = line["op"] == "wait" and _has_effect(line)
        if expected > seen + ahead or waited:
            self._kernel.scan()

    def _compare_events(self, seq: int, name: str, line: Line, events: list[Event]) -> None:
        recorded = _line_events(line)
        self._expected_async += [(seq, event) for event in recorded if is_asynchronous(event)]
        self._seen_async += [(seq, event) for event in events if is_asynchronous(event)]
        theirs = [event for event in recorded if not is_asynchronous(event)]
        ours = [event for event in events if not is_asynchronous(event)]
        for index in range(max(len(theirs), len(ours))):
            expected = theirs[index] if index < len(theirs) else None
            got = ours[index] if index < len(ours) else None
            if expected != got:
                self._compare(seq, name, f"uevent {index + 1}", expected, got)
                return

    def _compare_async(self) -> None:
        """The asynchronous ones: as often, in order, and at most one operation away."""
        for index in range(max(len(self._expected_async), len(self._seen_async))):
            expected = self._expected_async[index] if index < len(self._expected_async) else None
            got = self._seen_async[index] if index < len(self._seen_async) else None
            near = expected and got and abs(expected[0] - got[0]) <= 1
            if expected is None or got is None or expected[1] != got[1] or not near:
                seq = expected[0] if expected else got[0] if got else 0
                self._compare(
                    seq, "asynchronous uevents of the session", f"number {index + 1}", expected, got
                )
                return


def _recorded(line: Line, key: str) -> object:
    if key == "errno":
        return line.get("errno", 0)  # not every kind of line says that it went well
    if key == "text" and "text" in line:
        return comparable_text(line["path"], line["text"])
    return line.get(key)


def _has_effect(line: Line) -> bool:
    return bool(line.get("changed") or _line_events(line))


def _line_events(line: Line) -> list[Event]:
    found = (
        comparable_event(event["action"], event["devpath"], event["env"])
        for event in line.get("uevents") or ()
    )
    return [event for event in found if event]


def _has(event: Event, key: str) -> bool:
    return any(name == key for name, _ in event[2])


def _relative(path: str) -> str:
    return path.removeprefix("/sys/").removeprefix("/")


def _describe(line: Line) -> str:
    words = [line["op"], line.get("path", ""), repr(line["data"]) if "data" in line else ""]
    words += [line.get("command", ""), line.get("name", ""), line.get("do", "")]
    return " ".join(word for word in words if word)


# --- running


def replay(path: Path, *, kernel: str | None = None, fuse: bool = False) -> Outcome:
    """Replay one trace file in process or, as root in a private mount namespace, through a mounted tree."""
    session = load_session(path, kernel)
    emulated = Kernel(session.host)
    if not fuse:
        return Replayer(session, emulated, InProcess(emulated)).run()
    with mounted(emulated) as face:
        return Replayer(session, emulated, face).run()


@contextmanager
def mounted(kernel: Kernel) -> Iterator[Mounted]:
    """Mount a kernel's tree on a folder of its own while the body runs."""
    from .fuse import Mount  # here, so that replay in process needs no mfusepy

    with tempfile.TemporaryDirectory(prefix="emulated-sys.") as folder:
        mount = Mount(kernel, Path(folder))
        mount.start()
        try:
            yield Mounted(Path(folder))
        finally:
            mount.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """`vfioap-lab replay`: 0 when everything agreed, 1 when not, 2 for traces that cannot be replayed."""
    arguments = _parser().parse_args(argv)
    if arguments.fuse:
        if os.geteuid() != 0:
            print("vfioap-lab replay: --fuse mounts a file system and needs root", file=sys.stderr)
            return 2
        from .fuse import enter_private_mounts

        enter_private_mounts()
    agreed = total = 0
    for path in arguments.traces:
        try:
            outcome = replay(path, kernel=arguments.kernel, fuse=arguments.fuse)
        except (OSError, KeyError, ValueError) as error:
            print(f"vfioap-lab replay: {path} cannot be replayed: {error!r}", file=sys.stderr)
            return 2
        agreed += outcome.agreed
        total += outcome.operations
        print(f"{outcome.kernel} {outcome.session}: agree {outcome.agreed} of {outcome.operations}")
        for shown in outcome.differences[:SHOWN_DIFFERENCES]:
            print(shown)
    print(f"in all: agree {agreed} of {total}")
    return 0 if agreed == total else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vfioap-lab replay", description=__doc__)
    parser.add_argument("--kernel", choices=tuple(GENERATIONS), help="replay on this generation instead")
    parser.add_argument("--fuse", action="store_true", help="through a mounted tree, by real system calls")
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
