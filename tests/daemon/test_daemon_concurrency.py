# SPDX-License-Identifier: Apache-2.0
"""Others at work in the middle of a change: never a mixed state, and the message says what was found."""

from __future__ import annotations

import os
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from doubles import uuid_of

from vfioapd.backend.lock import ap_lock
from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.plan.steps import CreateMdev, SetMatrix, WriteMask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from doubles import Rig

    from vfioapd.plan.steps import Step

MATRIX = "devices/vfio_ap/matrix"


def meddle(rig: Rig, after: type[Step], act: Callable[[], None]) -> None:
    """Let somebody else act once, right after the first step of that kind."""
    done: list[bool] = []

    def hook(_number: int, step: Step) -> None:
        if isinstance(step, after) and not done:
            done.append(True)
            act()

    rig.host.after = hook


def test_a_mask_written_back_by_a_shell_in_the_middle_fails_the_change_and_nothing_of_it_stays(
    rig: Rig,
) -> None:
    rig.restore()
    before = rig.state()
    meddle(rig, WriteMask, lambda: rig.kernel.sysfs.write("bus/ap/apmask", "+0\n"))
    with pytest.raises(VfioApError, match="EADDRNOTAVAIL"):
        rig.define("new", queues="00.000d")
    assert rig.state() == before


def test_a_mask_changed_elsewhere_in_the_middle_is_kept_while_ours_is_taken_back(rig: Rig) -> None:
    """What another tool did is its own to undo; only what is still as we left it is ours."""
    rig.restore()
    meddle(rig, CreateMdev, lambda: rig.kernel.sysfs.write("bus/ap/aqmask", "-17\n"))
    rig.define("new", queues="00.000d")
    assert rig.kernel.sysfs.read("bus/ap/aqmask").startswith("0xffffbf")
    assert rig.service.show("new").state == "started"


def test_a_device_removed_by_mdevctl_in_the_middle_fails_the_change_and_nothing_of_it_stays(rig: Rig) -> None:
    rig.restore()
    before = rig.state()
    meddle(rig, CreateMdev, lambda: rig.kernel.sysfs.write(f"{MATRIX}/{uuid_of('new')}/remove", "1\n"))
    with pytest.raises(VfioApError):
        rig.define("new", queues="00.000d")
    assert rig.state() == before


def test_a_device_removed_after_the_last_step_is_found_by_the_fresh_read_and_said(rig: Rig) -> None:
    rig.restore()
    before = rig.state()
    meddle(rig, SetMatrix, lambda: rig.kernel.sysfs.write(f"{MATRIX}/{uuid_of('new')}/remove", "1\n"))
    with pytest.raises(VfioApError, match=r"another program|not as it was set") as error:
        rig.define("new", queues="00.000d")
    assert error.value.problem in (Problem.VERIFY_FAILED, Problem.STEP_FAILED)
    assert rig.state() == before


def test_two_admins_at_once_get_one_after_the_other_what_both_asked_for(rig: Rig) -> None:
    rig.restore()
    failures: list[Exception] = []

    def ask(name: str, queues: str) -> None:
        try:
            rig.define(name, queues=queues)
        except VfioApError as error:
            failures.append(error)

    # The daemon has one worker for changes; the lock keeps two daemons or tools apart as well.
    one = threading.Thread(target=ask, args=("one", "00.000d"))
    with ap_lock(rig.places.lock):
        one.start()
        assert one.is_alive()
    one.join(10)
    ask("two", "02.000d")
    assert not failures
    assert [row.name for row in rig.service.status().matrices] == ["one", "two"]


def test_a_lock_left_by_a_dead_process_keeps_nobody_waiting(rig: Rig) -> None:
    rig.restore()
    gone = subprocess.Popen(["true"])
    gone.wait()
    rig.places.lock.parent.mkdir(parents=True, exist_ok=True)
    rig.places.lock.write_text(f"{gone.pid}\n")
    rig.define("new", queues="00.000d")
    assert not rig.places.lock.exists()


def test_a_lock_held_by_the_living_is_waited_for_and_its_owner_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "s390apconfig.lock"
    lock.write_text(f"{os.getppid()}\n")
    with pytest.raises(VfioApError, match=f"PID {os.getppid()}") as error, ap_lock(lock, patience=0.05):
        pass
    assert error.value.problem is Problem.LOCK_HELD
    assert lock.read_text() == f"{os.getppid()}\n", "it is left to its owner"
