# SPDX-License-Identifier: Apache-2.0
"""A change is made whole or not at all, whatever fails in it."""

from __future__ import annotations

import errno
import json
import os
import resource
from itertools import count
from typing import TYPE_CHECKING

import pytest
from doubles import KERNELS, host_of, uuid_of
from scenes import SCENES

from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.engine.run import ApplyError
from vfioapd.plan.steps import Plug, WriteFile, describe
from vfioapd.store import atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from doubles import Rig
    from scenes import Scene

    from vfioapd.domain.snapshot import Snapshot
    from vfioapd.plan.steps import KernelStep, Step

NewRig = "Callable[..., Rig]"
ERRNOS = [errno.EBUSY, errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EINVAL, errno.EIO, errno.ENODEV]


# Every scene on the kernel that most have; on the others those that move queues and fill devices.
CASES = [(scene, "6.12") for scene in SCENES]
CASES += [
    (scene, kernel) for kernel in ("6.1", "7.3") for scene in SCENES if scene.name in ("define", "undefine")
]


def fails_once(at: int, error: Exception) -> Callable[[int, Step], None]:
    """Refuse the step of that number, in the order in which steps are carried out."""

    def refuse(number: int, _step: Step) -> None:
        if number == at:
            raise error

    return refuse


def fails_from(at: int, error: Exception) -> Callable[[int, Step], None]:
    def refuse(number: int, _step: Step) -> None:
        if number >= at:
            raise error

    return refuse


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def number_of_steps(new_rig: Callable[..., Rig], scene: Scene, kernel: str) -> int:
    rig = scene.ready(new_rig(kernel))
    scene.act(rig)
    return len(rig.host.made)


def test_a_new_device_and_its_matrix_are_given_to_the_kernel_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two of its writes nobody else's work comes in, and the disk is not awaited."""
    given: list[list[str]] = []
    execute_each = rig.host.execute_each

    def note(steps: Sequence[KernelStep]) -> Iterator[KernelStep]:
        given.append([describe(step).split(" ", 1)[0] for step in steps])
        return execute_each(steps)

    rig.define("vault", queues="06.000d")
    rig.stop("vault")
    monkeypatch.setattr(rig.host, "execute_each", note)
    rig.start("vault")
    assert given == [["create", "set"]]


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_the_journal_is_on_disk_before_each_step(rig: Rig, scene: Scene) -> None:
    scene.ready(rig)
    told: list[str] = []

    def look(number: int, step: Step) -> None:
        begin, *intents = lines(rig.places.journal)
        intended = intents[-1]["intent"]
        assert number <= intended < len(begin["begin"])
        together = {one["step"] for one in begin["begin"][number : intended + 1]}
        assert (
            number == intended
            or together == {"WriteFile"}
            or together <= {"CreateMdev", "SetMatrix", "Assign"}
        ), "only files go together, and what makes new devices"
        told.append(describe(step))

    rig.host.before = look
    scene.act(rig)
    assert told
    assert told == rig.host.made
    assert lines(rig.places.journal)[-1] == {"end": "clean"}


@pytest.mark.parametrize(("scene", "kernel"), CASES, ids=str)
def test_a_step_that_fails_in_any_place_leaves_the_host_as_it_was(
    new_rig: Callable[..., Rig], scene: Scene, kernel: str
) -> None:
    steps = number_of_steps(new_rig, scene, kernel)
    rig = scene.ready(new_rig(kernel))
    before = rig.state()
    for at in range(steps):
        rig.up()
        rig.host.before = fails_once(at, OSError(errno.EIO, "the disk is on fire"))
        with pytest.raises(ApplyError, match="on fire; everything done before was undone") as error:
            scene.act(rig)
        assert rig.host.made[at] in str(error.value)
        assert error.value.problem is Problem.STEP_FAILED
        assert rig.state() == before, f"step {at}"
        assert rig.journal.unfinished() is None
    rig.host.before = lambda number, step: None
    scene.act(rig)  # and nothing stands in the way of doing it again


@pytest.mark.parametrize("code", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize("kernel", KERNELS)
def test_whatever_the_kernel_answers_to_any_write_the_host_is_left_as_it_was(
    new_rig: Callable[..., Rig], kernel: str, code: int
) -> None:
    at = 0
    while True:
        rig = new_rig(kernel)
        rig.restore()
        before, writes = rig.state(), rig.kernel.write_count
        failing = FailingWrites(rig, writes + at, code)
        try:
            rig.define("new", adapters="0,2", domains="13,17")
        except ApplyError as error:
            assert errno.errorcode[code] in str(error)
            assert "/sys/" in str(error)
            assert rig.state() == before
            at += 1
        else:
            assert not failing.failed
            break
    assert at >= 3


class FailingWrites:
    """Fails one write below the seam, where the kernel would."""

    def __init__(self, rig: Rig, at: int, code: int) -> None:
        self.failed = False
        self._write, self._rig, self._at, self._code = rig.kernel.sysfs.write, rig, at, code
        rig.kernel.sysfs.write = self.write  # type: ignore[method-assign]

    def write(self, path: str, value: str) -> None:
        if self._rig.kernel.write_count == self._at and not self.failed:
            self.failed = True
            raise OSError(self._code, os.strerror(self._code))
        self._write(path, value)


@pytest.mark.parametrize("scene", [one for one in SCENES if one.name != "attach live"], ids=str)
def test_a_rename_that_came_through_but_could_not_be_made_durable_is_undone(
    new_rig: Callable[..., Rig], scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = atomic._sync_folder
    rig = scene.ready(new_rig())
    before = rig.state()
    for at in count():
        left = [at]

        def fail(folder: Path, left: list[int] = left) -> None:
            sync(folder)
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.EIO, "no more sectors")

        with monkeypatch.context() as patch:
            patch.setattr(atomic, "_sync_folder", fail)
            try:
                scene.act(rig)
            except ApplyError as error:
                assert "no more sectors" in str(error)
                assert rig.state() == before, at
            else:
                assert at > 0
                return


@pytest.mark.parametrize("scene", [one for one in SCENES if one.name != "attach live"], ids=str)
def test_the_first_error_and_all_that_could_not_be_undone_are_told_together(rig: Rig, scene: Scene) -> None:
    scene.ready(rig)
    scene_steps: list[str] = []
    rig.host.after = lambda number, step: scene_steps.append(describe(step))
    rig.host.before = fails_from(1, OSError(errno.EIO, "the disk is on fire"))
    with pytest.raises(ApplyError) as error:
        scene.act(rig)
    first, second = rig.host.made[0], rig.host.made[1]
    assert f"could not {second}: [Errno {errno.EIO}] the disk is on fire" in str(error.value)
    assert f"could not be undone: {first}" in str(error.value)
    assert len(error.value.stuck) == 1
    assert isinstance(error.value.__cause__, OSError)


def test_each_step_is_tried_to_be_undone_although_one_cannot(rig: Rig) -> None:
    scene = SCENES[0].ready(rig)
    before = scene.kernel_state()
    failing = {"attach": 0}

    def refuse(_number: int, step: Step) -> None:
        if isinstance(step, WriteFile):
            raise OSError(errno.ENOSPC, "No space left on device")
        if describe(step).startswith(f"detach {uuid_of('new')}") and "config" in describe(step):
            failing["attach"] += 1
            raise VfioApError(Problem.LIBVIRT_UNAVAILABLE, "libvirt is gone")

    rig.host.before = refuse
    with pytest.raises(ApplyError) as error:
        SCENES[0].act(rig)
    assert failing["attach"] == 1
    assert len(error.value.stuck) == 1
    assert "libvirt is gone" in str(error.value)
    assert "No space left on device" in str(error.value)
    assert rig.kernel_state() == before


def meddlers() -> list[tuple[str, Callable[[Rig], None]]]:
    """What another program may do to our device between our last step and our look at the host."""
    path = f"devices/vfio_ap/matrix/{uuid_of('new')}"
    return [
        ("removes it", lambda rig: rig.kernel.sysfs.write(f"{path}/remove", "1")),
        ("takes a domain from it", lambda rig: rig.kernel.sysfs.write(f"{path}/unassign_domain", "17")),
        ("takes an adapter from it", lambda rig: rig.kernel.sysfs.write(f"{path}/unassign_adapter", "5")),
    ]


@pytest.mark.parametrize("meddle", [act for _, act in meddlers()], ids=[name for name, _ in meddlers()])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_device_changed_by_others_meanwhile_is_found_and_all_of_ours_is_taken_back(
    new_rig: Callable[..., Rig], kernel: str, meddle: Callable[[Rig], None]
) -> None:
    rig = new_rig(kernel)
    rig.restore()
    before = rig.state()

    def after_last(_number: int, step: Step) -> None:
        if "control_domain" in describe(step) or describe(step).startswith("set matrix"):
            meddle(rig)

    rig.host.after = after_last
    with pytest.raises(ApplyError, match="still to do") as error:
        rig.define("new", adapters="5", domains="17")
    assert error.value.problem is Problem.VERIFY_FAILED
    assert not str(error.value).startswith("could not write"), "no file was at fault"
    after = rig.state()
    assert after["files"] == before["files"]
    assert after["guests"] == before["guests"]


def test_a_plugged_device_that_is_not_there_a_moment_later_fails_the_change(rig: Rig) -> None:
    SCENES[6].ready(rig)
    before = rig.state()

    def unplugged(_number: int, step: Step) -> None:
        if isinstance(step, Plug) and step.where == "config":
            rig.guests.rooms["bastion"].config.clear()

    rig.host.after = unplugged
    with pytest.raises(ApplyError, match="guest bastion"):
        SCENES[6].act(rig)
    assert rig.state() == before


@pytest.mark.parametrize("error", [OSError(errno.EIO, "EIO"), ValueError("a bug"), KeyError("a bug")])
def test_a_look_at_the_host_that_fails_undoes_the_change_with_and_without_files(
    rig: Rig, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.restore()
    rig.guests.add("bastion", running=True)
    rig.define("vault", queues="05.000d")
    before = rig.state()

    def fail(_earlier: Snapshot) -> None:
        raise error

    monkeypatch.setattr(rig.host, "glance", fail)
    with pytest.raises(ApplyError):
        rig.attach("vault", "bastion", "live")
    monkeypatch.undo()
    assert rig.state() == before
    assert rig.journal.unfinished() is None


class SmallDisk:
    """No file of this process may grow beyond so many bytes: a write is cut short there, the next fails."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __enter__(self) -> None:
        self._old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._old[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._old)


@pytest.mark.parametrize("size", [0, 1, 100, 1000])
def test_a_disk_too_full_for_the_journal_refuses_the_change_before_anything_is_done(
    rig: Rig, size: int
) -> None:
    SCENES[1].ready(rig)
    before = rig.state()
    with FullJournal(rig, size), pytest.raises(VfioApError, match="the journal cannot be written") as error:
        rig.undefine("vault")
    assert "nothing was changed" in str(error.value)
    assert rig.state() == before
    assert rig.host.made == []
    rig.restart()
    assert rig.state() == before


def test_a_disk_that_fills_up_at_any_byte_of_the_journal_leaves_the_old_state_or_the_new(
    new_rig: Callable[..., Rig],
) -> None:
    scene = SCENES[6]
    reference = scene.ready(new_rig())
    old = reference.state()
    scene.act(reference)
    new, length = reference.state(), reference.places.journal.stat().st_size
    for size in range(length - 130, length + 1, 7):
        rig = scene.ready(new_rig())
        try:
            with FullJournal(rig, size):
                scene.act(rig)
        except VfioApError:
            assert comparable(rig.state(), rig) == comparable(old, reference)
        else:
            assert comparable(rig.state(), rig) == comparable(new, reference)
        kept = rig.state()
        rig.restart()
        assert rig.state() == kept


class FullJournal:
    """Room for so many bytes in the journal, and for any number elsewhere."""

    def __init__(self, rig: Rig, size: int) -> None:
        self._rig, self._size, self._write = rig, size, rig.journal._write

    def __enter__(self) -> None:
        def write(*arguments: object) -> None:
            with SmallDisk(self._size):
                self._write(*arguments)

        self._rig.journal._write = write  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self._rig.journal._write = self._write  # type: ignore[method-assign]


def comparable(state: dict[str, object], rig: Rig) -> object:
    """Two hosts in different folders compared."""
    return json.loads(json.dumps(state, default=str).replace(str(rig.root), ""))


def test_applying_what_is_already_so_makes_no_write_and_no_record(any_rig: Rig) -> None:
    any_rig.restore()
    any_rig.define("vault", queues="00.000d,02.000d")
    before, writes = any_rig.state(), any_rig.kernel.write_count
    journal = any_rig.places.journal.read_bytes()
    assert any_rig.start("vault").steps == []
    any_rig.restart()
    assert any_rig.kernel.write_count == writes
    assert any_rig.places.journal.read_bytes() == journal
    assert any_rig.state() == before


def test_hosts_of_the_tests_differ_as_the_kernels_do() -> None:
    assert len({host_of(kernel).kernel.name for kernel in KERNELS}) == len(KERNELS)
