# SPDX-License-Identifier: Apache-2.0
"""A reconfiguration ended at every moment, and thousands of small ones ended or failed at random.

Whatever happens, what comes up is the old state or the new one. By default only a part of the moments
and schedules is tried; ``make test-crash`` tries all moments and 10,000 schedules. Each run prints its
seed, and VFIOAPD_CRASH_SEED repeats it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from doubles import ADMIN, KERNELS, PowerCut, Rig, host_of, uuid_of
from faults import ERRORS, Moments

from vfioapd.domain.problems import VfioApError
from vfioapd.emulator.generation import GENERATIONS
from vfioapd.emulator.hostfile import load_host_file
from vfioapd.engine.run import ApplyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.emulator.hostfile import Host
    from vfioapd.plan.steps import Step
    from vfioapd.rpc.interface import Asked

STRIDE = int(os.environ.get("VFIOAPD_CRASH_STRIDE", "60"))
SCHEDULES = int(os.environ.get("VFIOAPD_CRASH_SCHEDULES", "120"))
SEED = int(os.environ.get("VFIOAPD_CRASH_SEED", random.randrange(1 << 32)))

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # fsync costs nothing there

DISRUPT = replace(ADMIN, disrupt=True)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Thousands of undone changes would be told at length."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def host_file(shape: dict[str, tuple[list[int], list[int]]]) -> str:
    tables = [
        f'[[matrix]]\nname = "{name}"\nuuid = "{uuid_of(name)}"\nadapters = {a}\ndomains = {d}\n'
        for name, (a, d) in shape.items()
    ]
    return "\n".join(["version = 1", *tables])


def comparable(rig: Rig) -> object:
    """Hosts in different folders compared; what is in force belongs to the state."""
    state = {**rig.state(), "in force": rig.standing.desired.applied_text()}
    return json.loads(json.dumps(state, default=str).replace(str(rig.root), ""))


def forty_before() -> dict[str, tuple[list[int], list[int]]]:
    return {f"m{n}": ([*range(0, 60, 2)], [2 * n, 2 * n + 1]) for n in range(40)}


def forty_after() -> dict[str, tuple[list[int], list[int]]]:
    """Ten go, ten come, ten swap their domains with a neighbour, ten move to other adapters, some stay."""
    shape = {f"m{n}": ([*range(0, 60, 2)], [2 * n, 2 * n + 1]) for n in range(10, 15)}
    shape |= {f"m{n}": ([*range(0, 60, 2)], [2 * (n ^ 1), 2 * (n ^ 1) + 1]) for n in range(16, 26)}
    shape |= {f"m{n}": ([*range(1, 60, 2)], [2 * n, 2 * n + 1]) for n in range(26, 36)}
    shape |= {f"new{n}": ([*range(30)], [n]) for n in range(10)}
    return shape


def large(root: Path) -> Rig:
    """5,100 queues and forty matrices."""
    rig = Rig(replace(load_host_file("full-lpar"), kernel=GENERATIONS["6.12"]), root)
    rig.restore()
    rig.service.apply(host_file(forty_before()), DISRUPT)
    return rig


def test_forty_matrices_on_5100_queues_ended_at_any_moment_are_as_before_or_as_after() -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        rig = large(Path(folder))
        old = comparable(rig)
        counted = Moments(rig)
        with counted.watched():
            rig.service.apply(host_file(forty_after()), DISRUPT)
        new = comparable(rig)
    moments = len(counted.names)
    assert moments > 300
    tried = range(0, moments, STRIDE)
    reached = {_ended_at(at, old, new) for at in tried}
    print(f"{len(tried)} of {moments} moments ended")
    assert reached <= {"old", "new"}
    assert "old" in reached


def _ended_at(at: int, old: object, new: object) -> str:
    with TemporaryDirectory(dir=MEMORY) as folder:
        rig = large(Path(folder))
        moments = Moments(rig, at)
        with moments.watched(), suppress(PowerCut):
            rig.service.apply(host_file(forty_after()), DISRUPT)
        _bury(rig)
        rig.restart()
        found = comparable(rig)
    assert found in (old, new), moments.names[-1]
    return "new" if found == new else "old"


def test_random_changes_ended_or_failed_at_random_leave_the_old_state_or_the_new() -> None:
    print(f"VFIOAPD_CRASH_SEED={SEED}")
    for number in range(SCHEDULES):
        dice = random.Random(f"{SEED} {number}")
        with TemporaryDirectory(dir=MEMORY) as folder:
            _play(dice, Rig(host_of(dice.choice(("6.1", "6.12", "7.3"))), Path(folder)), number)


def test_a_random_change_that_fails_at_any_of_its_steps_is_taken_back_whole() -> None:
    """But for bits of a mask on 7.3 that cannot be set again while a device lies on them: those are said."""
    print(f"VFIOAPD_CRASH_SEED={SEED}")
    for number in range(SCHEDULES // 10):
        dice = random.Random(f"{SEED} steps {number}")
        host = host_of(dice.choice(KERNELS))
        *earlier, change = (host_file(_random_shape(dice)) for _ in range(3))
        with TemporaryDirectory(dir=MEMORY) as folder:
            rig = _after(host, Path(folder), earlier)
            rig.service.apply(change, DISRUPT)
            steps = len(rig.host.made)
        for at in range(steps):
            with TemporaryDirectory(dir=MEMORY) as folder:
                rig = _after(host, Path(folder), earlier)
                before, held = comparable(rig), _matrices(rig)
                rig.host.before = partial(_fail_at, at)
                with pytest.raises(ApplyError) as caught:
                    rig.service.apply(change, DISRUPT)
                stuck = caught.value.stuck
                assert all("mask answered EBUSY" in one for one in stuck), (number, at, stuck)
                assert not stuck or host.kernel.name == "7.3"
                assert _matrices(rig) == held, (number, at)
                assert stuck or comparable(rig) == before, (number, at)


def _after(host: Host, root: Path, earlier: list[str]) -> Rig:
    """A host on which some changes were made, with the count of its steps back at none."""
    rig = Rig(host, root)
    rig.restore()
    for text in earlier:
        rig.service.apply(text, DISRUPT)
    rig.host.made.clear()
    return rig


def _fail_at(at: int, number: int, _step: Step) -> None:
    if number == at:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def _play(dice: random.Random, rig: Rig, number: int) -> None:
    """One schedule: a host, a change, an end or an error somewhere in it, perhaps a reboot, a start."""
    rig.restore()
    before, after = host_file(_random_shape(dice)), host_file(_random_shape(dice))
    _apply(rig, before, DISRUPT)
    ends = _ends_of(rig, after)
    error = dice.choice((None, None, *ERRORS))
    moments = Moments(rig, dice.randrange(60), error=error)
    with moments.watched(), suppress(PowerCut):
        _apply(rig, after, DISRUPT)
    _bury(rig)
    rebooted = dice.random() < 0.3
    if rebooted:
        rig.reboot()
    rig.restart()
    in_force = rig.standing.desired.applied_text()
    assert in_force in ends, (number, error, moments.names[-1:])
    assert _matrices(rig) == ends[in_force], (number, error, rebooted, moments.names[-1:])
    rig.restart()
    assert _matrices(rig) == ends[in_force], (number, "a second start")


def _bury(rig: Rig) -> None:
    """The daemon that ended here lives on as this process; a dead one's lock would be cleared."""
    rig.places.lock.unlink(missing_ok=True)


def _ends_of(rig: Rig, after: str) -> dict[str | None, object]:
    """Both ends by what is in force then: the present one, and the one that another host reaches."""
    old = rig.standing.desired.applied_text()
    with TemporaryDirectory(dir=MEMORY) as folder:
        other = Rig(rig.kernel.host, Path(folder))
        other.restore()
        _apply(other, after, DISRUPT)
        new = _matrices(other)
        new_text = other.standing.desired.applied_text()
    return {old: _matrices(rig), new_text or old: new} if new_text else {old: _matrices(rig)}


def _apply(rig: Rig, text: str, asked: Asked) -> None:
    with suppress(VfioApError):  # refused or failed: then the host is as before
        rig.service.apply(text, asked)


def _matrices(rig: Rig) -> object:
    """What guests could get, and what definitions say; masks may rightly differ by the way taken."""
    kernel = rig.kernel_state()
    devices = kernel["mdevs"]
    assert isinstance(devices, dict)
    definitions = sorted(path.name for path in rig.places.definitions.glob("*"))
    held = {uuid: (one["matrix"], one["control_domains"]) for uuid, one in devices.items()}
    return json.loads(json.dumps([held, definitions]))


def _random_shape(dice: random.Random) -> dict[str, tuple[list[int], list[int]]]:
    shape: dict[str, tuple[list[int], list[int]]] = {}
    free = {(a, d) for a in range(8) for d in (13, 17)}
    for name in dice.sample("abcdef", dice.randrange(1, 5)):
        adapters = sorted(dice.sample(range(8), dice.randrange(1, 4)))
        domains = sorted(dice.sample((13, 17), dice.randrange(1, 3)))
        cells = {(a, d) for a in adapters for d in domains}
        if cells <= free:
            free -= cells
            shape[name] = (adapters, domains)
    return shape or {"a": ([0], [13])}
