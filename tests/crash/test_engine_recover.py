# SPDX-License-Identifier: Apache-2.0
"""Whenever the daemon or the host ends, what comes up again is the old state or the new, never a third."""

from __future__ import annotations

import errno
import json
import logging
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from doubles import ADMIN, PowerCut, Rig, host_of, uuid_of
from scenes import SCENES

from vfioapd.engine.journal import Journal
from vfioapd.engine.run import ApplyError
from vfioapd.plan.steps import CreateMdev, WriteFile, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scenes import Scene

    from vfioapd.plan.steps import Step

# Scenes that together hold every kind of step, on the kernel that most have; on others what moves queues.
CUT = [one for one in SCENES if one.name in ("define", "undefine", "attach stopped", "detach", "adopt")]
CASES = [(scene, "6.12") for scene in CUT] + [(CUT[1], "6.1"), (CUT[1], "7.3")]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Tracebacks of hundreds of cut changes take longer than the changes."""
    logger = logging.getLogger("vfioapd.engine.run")
    logger.addFilter(_is_no_traceback)
    yield
    logger.removeFilter(_is_no_traceback)


def _is_no_traceback(record: logging.LogRecord) -> bool:
    return record.exc_info is None and record.levelno > logging.INFO


class Cutter:
    """Cuts the power at the n-th moment: in the middle of and after each journal write, after each step.

    What is before one of these is after another.
    """

    def __init__(self, rig: Rig, at: int) -> None:
        self.moments: list[str] = []
        self._at = at
        self._write = rig.journal._write
        rig.journal._write = self._cut_write  # type: ignore[method-assign]
        rig.host.after = lambda number, step: self._moment(f"after {describe(step)}")
        self._journal = rig.places.journal

    def _moment(self, what: str) -> None:
        self.moments.append(what)
        if len(self.moments) - 1 == self._at:
            raise PowerCut

    def _cut_write(self, record: dict[str, object], mode: str) -> None:
        old = self._journal.read_bytes() if mode == "a" else b""
        self._write(record, mode)
        whole = self._journal.read_bytes()
        try:
            self._moment(f"in the middle of the record {next(iter(record))}")
        except PowerCut:
            self._journal.write_bytes(whole[: (len(old) + len(whole)) // 2 + 1])
            raise
        self._moment(f"after the record {next(iter(record))}")


def comparable(rig: Rig) -> object:
    """Hosts in different folders compared; the newest revision belongs to the state."""
    text = json.dumps([rig.state(), rig.standing.desired.applied_text()], default=str)
    return json.loads(text.replace(str(rig.root), ""))


@cache
def ends(scene: Scene, kernel: str, *, rebooted: bool = False) -> tuple[object, object]:
    """The old state and the new, as a daemon that starts finds and leaves them."""
    found = []
    for acts in (False, True):
        with TemporaryDirectory() as folder:
            rig = scene.ready(Rig(host_of(kernel), Path(folder)))
            if acts:
                scene.act(rig)
            if rebooted:
                rig.reboot()
            rig.restart()
            found.append(comparable(rig))
    return found[0], found[1]


def cut_everywhere(
    new_rig: Callable[..., Rig],
    scene: Scene,
    kernel: str,
    then: Callable[[Rig, str], object],
    among: str = "",
) -> int:
    """Cut the scene at each of its moments and go on from there; returns how many there are.

    ``then`` brings it up and returns its state. A host that came back to where it began is cut again;
    that saves making most of them.
    """
    rig, begin = None, None
    for at in count():
        if rig is None:
            rig = scene.ready(new_rig(kernel))
            begin = comparable(rig)
        rig.up()
        cutter = Cutter(rig, at)
        try:
            scene.act(rig)
        except PowerCut:
            wanted = cutter.moments[-1].startswith(among)
            found = then(rig, cutter.moments[-1]) if wanted else come_up(rig)
            rig = rig if found == begin else None
        else:
            return at
    raise AssertionError


def come_up(rig: Rig) -> object:
    rig.restart()
    return comparable(rig)


def told(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


@pytest.mark.parametrize(("scene", "kernel"), CASES, ids=str)
def test_a_daemon_that_ends_anywhere_in_a_change_comes_up_with_the_old_state_or_the_new_and_says_which(
    new_rig: Callable[..., Rig], scene: Scene, kernel: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = ends(scene, kernel)
    assert old != new
    reached = set()

    def go_on(rig: Rig, moment: str) -> object:
        caplog.clear()
        rig.restart()
        found = comparable(rig)
        assert found in (old, new), moment
        reached.add("new" if found == new else "old")
        if "the old state was restored" in told(caplog):
            assert found == old, moment
        if "the new state stands" in told(caplog):
            assert found == new, moment
        if moment.startswith("after the record intent"):
            assert "change of" in told(caplog), "what was begun is told"
        if found == new:
            caplog.clear()
            rig.restart()
            assert "change of" not in told(caplog), "settled once and for all"
            assert comparable(rig) == new
        return found

    moments = cut_everywhere(new_rig, scene, kernel, go_on)
    assert moments > 10
    assert reached == {"old", "new"}


@pytest.mark.parametrize(("scene", "kernel"), CASES[1:3], ids=str)
def test_a_host_that_reboots_anywhere_in_a_change_comes_up_with_the_old_state_or_the_new(
    new_rig: Callable[..., Rig], scene: Scene, kernel: str
) -> None:
    old, new = ends(scene, kernel, rebooted=True)

    def go_on(rig: Rig, moment: str) -> object:
        rig.reboot()
        rig.restart()
        assert comparable(rig) in (old, new), moment
        rig.guests.start("bastion")
        return comparable(rig)

    cut_everywhere(new_rig, scene, kernel, go_on, among="after")


def test_a_daemon_that_ends_again_while_it_settles_still_comes_up_with_the_old_state_or_the_new(
    new_rig: Callable[..., Rig],
) -> None:
    scene = CUT[1]
    states = ends(scene, "6.12")

    def cut_again(rig: Rig, moment: str) -> object:
        for at in count(step=3):
            rig.up()
            cutter = Cutter(rig, at)
            try:
                rig.restore()
            except PowerCut:
                continue  # each try comes a little further
            found = comparable(rig)
            assert found in states, (moment, cutter.moments)
            return found
        raise AssertionError

    cut_everywhere(new_rig, scene, "6.12", cut_again, among="after")


@pytest.mark.parametrize(("scene", "kernel"), CASES, ids=str)
def test_a_daemon_that_ends_while_it_undoes_a_failed_step_comes_up_with_the_old_state(
    new_rig: Callable[..., Rig], scene: Scene, kernel: str
) -> None:
    rig = scene.ready(new_rig(kernel))
    old = comparable(rig)
    for undone in count():
        cutter = CutWhileUndoing(rig, undone)
        with pytest.raises((PowerCut, ApplyError)) as error:
            scene.act(rig)
        rig.restart()
        assert comparable(rig) == old, cutter.steps
        if error.type is ApplyError:
            return


class CutWhileUndoing:
    """The first file cannot be written; of the steps that are undone then, the n-th is the last."""

    def __init__(self, rig: Rig, undone: int) -> None:
        self.steps: list[str] = []
        self._failed_at: int | None = None
        self._left = undone
        rig.host.before, rig.host.after = self._before, self._after

    def _before(self, _number: int, step: Step) -> None:
        self.steps.append(describe(step))
        if isinstance(step, WriteFile) and self._failed_at is None:
            self._failed_at = len(self.steps)
            raise OSError(errno.ENOSPC, "No space left on device")

    def _after(self, _number: int, _step: Step) -> None:
        if self._failed_at is not None and len(self.steps) - self._failed_at > self._left:
            raise PowerCut


def test_a_torn_last_line_is_read_as_not_written(rig: Rig) -> None:
    journal = Journal(rig.places.journal, "boot-1")
    step = CreateMdev(uuid_of("vault"))
    journal.begin([step, step])
    journal.intent(0)
    whole = rig.places.journal.read_bytes()
    journal.intent(1)
    longer = rig.places.journal.read_bytes()
    for length in range(len(whole), len(longer) - 1):
        rig.places.journal.write_bytes(longer[:length])
        unfinished = journal.unfinished()
        assert unfinished is not None
        assert (unfinished.begun, len(unfinished.steps)) == (1, 2)
        journal.end(clean=True)
        assert journal.unfinished() is None, "the end is seen behind the torn line"
    begin = whole.partition(b'{"intent"')[0]
    for length in range(len(begin) - 2):
        rig.places.journal.write_bytes(begin[:length])
        assert journal.unfinished() is None, "nothing was begun"


@pytest.mark.parametrize(
    "damage",
    [
        b'{"begin":[{"step":"FromTheFuture"}],"boot":"boot-1"}\n{"intent":0}\n',
        b'{"begin":7,"boot":"boot-1"}\n{"intent":0}\n',
        b'{"begin":[]}\n{"intent":0}\n',
        b"[1,2]\n",
        b"\xff\xfe\n",
    ],
)
def test_a_journal_that_cannot_be_understood_does_not_keep_guests_from_their_queues(
    rig: Rig, damage: bytes
) -> None:
    rig.restore()
    rig.define("vault", queues="05.000d")
    wanted = rig.kernel_state()
    rig.reboot()
    rig.places.journal.write_bytes(damage)
    rig.restart()
    assert rig.kernel_state() == wanted
    rig.define("more", queues="06.000d")


def test_a_change_of_definitions_cut_short_is_settled_once_libvirt_is_there(rig: Rig) -> None:
    """At boot the daemon comes before libvirt; the guest's own document outlives the boot."""
    old, new = _cut_before_the_guest_is_settled(rig)
    assert rig.standing.failures == {}
    assert rig.kernel_state() == old[0]["kernel"], "the devices are made all the same"  # type: ignore[index]
    rig.guests.is_up = True
    rig.restart()
    assert comparable(rig) in (old, new)


def test_what_is_left_to_be_undone_outlives_boots_and_other_changes_and_comes_before_the_next(
    rig: Rig,
) -> None:
    _cut_before_the_guest_is_settled(rig)
    rig.define("more", queues="07.0011")
    rig.undefine("more")
    rig.reboot()
    rig.restart()
    assert rig.guests.rooms["bastion"].config, "nobody could undo it without libvirt"
    rig.guests.is_up = True
    rig.define("more", queues="07.0011", guest="bastion")
    assert rig.guests.rooms["bastion"].config == {uuid_of("more")}
    assert rig.journal.left() is None


def test_a_dry_run_settles_nothing(rig: Rig) -> None:
    _cut_before_the_guest_is_settled(rig)
    rig.guests.is_up = True
    rig.define("more", replace(ADMIN, dry_run=True), queues="07.0011")
    assert rig.guests.rooms["bastion"].config
    assert rig.journal.left() is not None


def test_a_torn_record_of_what_is_left_stops_no_change(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    _cut_before_the_guest_is_settled(rig)
    rig.places.journal.with_name("journal.left").write_text('{"steps": [{"ki')
    rig.guests.is_up = True
    rig.restart()
    rig.define("more", queues="07.0011")
    assert "has left to be undone cannot be read" in caplog.text


def _cut_before_the_guest_is_settled(rig: Rig) -> tuple[object, object]:
    """A power cut right after a guest's definition was changed, and a boot without libvirt; returns the
    old state and the new of an undisturbed host."""
    scene = next(one for one in SCENES if one.name == "attach")
    old, new = ends(scene, "6.12", rebooted=True)
    scene.ready(rig)

    def cut(_number: int, step: Step) -> None:
        if describe(step).endswith("(config)"):
            raise PowerCut

    rig.host.after = cut
    with pytest.raises(PowerCut):
        scene.act(rig)
    rig.reboot()
    rig.guests.is_up = False
    rig.restart()
    return old, new


def test_a_change_that_is_over_is_not_settled_again_whatever_happened_since(rig: Rig) -> None:
    scene = next(one for one in SCENES if one.name == "attach")
    scene.ready(rig)
    moments = Cutter(rig, -1).moments
    scene.act(rig)
    assert moments[-1] == "after the record end"
    end = rig.places.journal.read_bytes()
    rig.places.journal.write_bytes(end[:-9])  # the end itself was torn
    rig.restart()
    rig.places.host_file.write_text(rig.places.host_file.read_text() + "# edited\n")
    before = rig.state()
    rig.restart()
    assert rig.state() == before
