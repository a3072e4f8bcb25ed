# SPDX-License-Identifier: Apache-2.0
"""Plans: in which order, touching what, and leading where, on the emulated kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

import pytest
from doubles import NAMESPACE, host_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfioapd.backend.bus import read_snapshot
from vfioapd.backend.kernel_steps import KernelSteps
from vfioapd.domain.apqn import parse_apqn
from vfioapd.domain.definition import Binding, Definition
from vfioapd.domain.mask import HostMasks, Mask
from vfioapd.domain.matrix import EMPTY_MATRIX, Matrix
from vfioapd.domain.queue_set import EMPTY, QueueSet
from vfioapd.domain.snapshot import VFIO_DRIVER, Mdev, QueueState, Snapshot
from vfioapd.domain.snapshot import Kernel as KernelAbilities
from vfioapd.emulator.kernel import Kernel
from vfioapd.plan.planner import Plan, Target, plan
from vfioapd.plan.steps import (
    Assign,
    Bind,
    CreateMdev,
    Plug,
    RemoveMdev,
    SetMatrix,
    Unassign,
    Unplug,
    Where,
    WriteMask,
    describe,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vfioapd.domain.apqn import Apqn

ADAPTERS, DOMAINS = range(4), (13, 17, 18)
FOREIGN = UUID("00000000-0000-0000-0000-00000000f0f0")


def matrix(adapters: Iterable[int], domains: Iterable[int]) -> Matrix:
    return Matrix(frozenset(adapters), frozenset(domains), frozenset(domains))


def definition(name: str, *where: Iterable[int]) -> Definition:
    return Definition(name, uuid5(NAMESPACE, name), matrix(*where))


def machine(kernel: str) -> Kernel:
    host = host_of(kernel, usage_domains=DOMAINS, control_domains=DOMAINS)
    return Kernel(replace(host, cards=host.cards[: len(ADAPTERS)]))


def carry_out(made: Plan, kernel: Kernel, watched: Iterable[UUID] = ()) -> list[dict[UUID, frozenset[Apqn]]]:
    """Make the steps; returns what each watched device gave a guest after each of them."""
    steps, seen = KernelSteps(kernel.sysfs), []
    for step in made.steps:
        steps.execute(step)
        assert steps.holds(step), describe(step)
        seen.append({uuid: guest_set(kernel, uuid) for uuid in watched})
    return seen


def guest_set(kernel: Kernel, uuid: UUID) -> frozenset[Apqn]:
    text = kernel.sysfs.read(f"devices/vfio_ap/matrix/{uuid}/guest_matrix")
    return frozenset(parse_apqn(line) for line in text.split() if len(line) == len("05.0011"))


sides = st.tuples(
    st.sets(st.sampled_from(ADAPTERS), min_size=1, max_size=3),
    st.sets(st.sampled_from(DOMAINS), min_size=1, max_size=2),
)


@st.composite
def states(draw: st.DrawFn) -> tuple[Definition, ...]:
    """Up to three definitions that share no queue, and none that the foreign device has."""
    taken = set(matrix([3], [18]).queues())
    found = []
    for name in ("a", "b", "c"):
        one = definition(name, *draw(sides))
        if draw(st.booleans()) and taken.isdisjoint(one.matrix.queues()):
            taken |= set(one.matrix.queues())
            found.append(one)
    return tuple(found)


def with_foreign_device(kernel: Kernel, binding: Binding | None) -> None:
    foreign = Definition("foreign", FOREIGN, matrix([3], [18]))
    target = Target((foreign,), (foreign,), (foreign,), binding=binding)
    carry_out(plan(read_snapshot(kernel.sysfs), target), kernel)


@pytest.mark.parametrize(
    ("generation", "binding"),
    [("6.1", None), ("6.12", None), ("7.3", Binding.MASKS), ("7.3", Binding.DRIVER_OVERRIDE)],
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(old=states(), new=states())
def test_any_state_leads_to_any_other_and_running_guests_keep_what_both_have(
    generation: str, binding: Binding | None, old: tuple[Definition, ...], new: tuple[Definition, ...]
) -> None:
    kernel = machine(generation)
    with_foreign_device(kernel, binding)
    carry_out(plan(read_snapshot(kernel.sysfs), Target(old, old, old, binding=binding)), kernel)
    before = read_snapshot(kernel.sysfs)
    staying = {one.uuid: one for one in old if one.uuid in {two.uuid for two in new}}
    for uuid in staying:
        kernel.guest_open(str(uuid), f"guest of {uuid}")
    gone = [one for one in old if one.uuid not in staying]
    released = QueueSet.of_matrices(one.matrix for one in gone)
    target = Target((*gone, *new), new, new, released=released, binding=binding)
    seen = carry_out(plan(before, target), kernel, staying)
    after = read_snapshot(kernel.sysfs)
    assert not plan(after, replace(target, released=EMPTY))
    assert {one.uuid: one.matrix for one in after.mdevs} == {
        FOREIGN: matrix([3], [18]),
        **{one.uuid: one.matrix for one in new},
    }
    drivers = {state.queue: state.driver for state in after.queues}
    assert {drivers[queue] for one in after.mdevs for queue in one.matrix.queues()} == {VFIO_DRIVER}
    for given_now in seen:
        for one in new:
            if one.uuid in staying:
                common = set(one.matrix.queues()) & set(staying[one.uuid].matrix.queues())
                assert common <= given_now[one.uuid]
    for one in after.mdevs:
        assert one.guest_matrix == frozenset(one.matrix.queues())


def snapshot_of(*active: Definition, whole: bool = True, masks: HostMasks | None = None) -> Snapshot:
    away = HostMasks() if masks is None else masks
    return Snapshot(
        masks=away,
        queues=tuple(
            QueueState(queue, "cex4queue" if away.owns(queue) else "vfio_ap")
            for queue in matrix(range(8), (13, 17)).queues()
        ),
        mdevs=tuple(Mdev(one.uuid, one.matrix, frozenset(), in_use=False) for one in active),
        kernel=KernelAbilities(ap_config=whole),
    )


OLD, NEW = definition("old", [5], [13]), definition("new", [1], [17])
KEPT = definition("kept", [7], [13])
AWAY = HostMasks(HostMasks().apmask - Mask.of([5, 7]), HostMasks().aqmask)


def test_guests_let_go_first_and_take_last_and_no_queue_moves_under_a_device() -> None:
    grown = replace(KEPT, matrix=matrix([7], [13, 17]))
    target = Target(
        touched=(OLD, NEW, grown),
        active=(NEW, grown),
        held=(NEW, grown),
        released=QueueSet.of_matrix(OLD.matrix),
        unplugs=(Unplug("g", OLD.uuid, Where.LIVE),),
        plugs=(Plug("g", NEW.uuid, Where.LIVE),),
    )
    made = plan(snapshot_of(OLD, KEPT, masks=AWAY), target)
    told = [describe(step) for step in made.steps]
    assert isinstance(made.steps[0], Unplug)
    assert isinstance(made.steps[-1], Plug)
    (removed,) = (n for n, step in enumerate(made.steps) if isinstance(step, RemoveMdev))
    (created,) = (n for n, step in enumerate(made.steps) if isinstance(step, CreateMdev))
    masks = {text: n for n, text in enumerate(told) if "mask" in text}
    left = next(n for text, n in masks.items() if "-1" in text)
    back = next(n for text, n in masks.items() if "+5" in text)
    assert removed < back
    assert created < left < told.index(f"set matrix of {NEW.uuid} to 01.0011")
    assert set(made.returned) == frozenset(matrix([5], [13, 17]).queues())
    assert set(made.handed_over) == frozenset(NEW.matrix.queues())


@pytest.mark.parametrize("whole", [True, False])
def test_devices_that_swap_queues_never_both_want_one_at_the_same_moment(whole: bool) -> None:
    one, two = definition("one", [5], [13]), definition("two", [7], [13])
    swapped = (replace(one, matrix=two.matrix), replace(two, matrix=one.matrix))
    made = plan(snapshot_of(one, two, masks=AWAY, whole=whole), Target(swapped, swapped, swapped))
    holds = {one.uuid: set(one.matrix.adapters), two.uuid: set(two.matrix.adapters)}
    for step in made.steps:
        assert isinstance(step, SetMatrix | Assign | Unassign)
        if isinstance(step, SetMatrix):
            holds[step.uuid] = set(step.after.adapters)
        elif isinstance(step, Assign):
            holds[step.uuid].add(step.number)
        else:
            holds[step.uuid].remove(step.number)
        assert holds[one.uuid].isdisjoint(holds[two.uuid])
    assert holds == {one.uuid: {7}, two.uuid: {5}}


def test_a_kernel_without_ap_config_gets_single_members_and_only_those_that_change() -> None:
    before, after = definition("m", [5, 7], [13]), definition("m", [7, 1], [13, 17])
    made = plan(snapshot_of(before, whole=False, masks=AWAY), Target((after,), (after,), (after,)))
    kinds = [type(step) for step in made.steps]
    assert SetMatrix not in kinds
    assert [describe(step).partition(" to ")[0].partition(" from ")[0] for step in made.steps] == [
        "unassign adapter 5",
        "apmask -1",
        "assign adapter 1",
        "assign domain 17",
        "assign control_domain 17",
    ]
    assert {Unassign, Assign} <= set(kinds)


def test_a_new_device_is_there_before_a_queue_moves_so_that_one_which_cannot_be_made_moves_none() -> None:
    new = (NEW, definition("newer", [6], [13]))
    made = plan(snapshot_of(), Target(new, new, new))
    assert [type(step) for step in made.steps] == [CreateMdev, CreateMdev, WriteMask, SetMatrix, SetMatrix]


def test_a_kernel_with_ap_config_gets_one_write_for_a_matrix_of_any_size() -> None:
    large = definition("large", range(8), (13, 17))
    made = plan(snapshot_of(), Target((large,), (large,), (large,)))
    assert [type(step) for step in made.steps] == [CreateMdev, WriteMask, SetMatrix]


def test_a_matrix_that_only_grows_is_one_write_and_one_that_only_shrinks_is_one_write() -> None:
    small, large = definition("m", [5], [13]), definition("m", [5, 7], [13])
    grow = plan(snapshot_of(small, masks=AWAY), Target((large,), (large,), (large,)))
    shrink = plan(snapshot_of(large, masks=AWAY), Target((small,), (small,), (small,)))
    assert grow.steps == (SetMatrix(small.uuid, small.matrix, large.matrix),)
    assert shrink.steps == (SetMatrix(small.uuid, large.matrix, small.matrix),)


def test_devices_that_are_not_touched_do_not_change_and_their_queues_stay_away() -> None:
    released = QueueSet.of_matrices([OLD.matrix, KEPT.matrix])
    made = plan(snapshot_of(OLD, KEPT, masks=AWAY), Target((OLD,), released=released))
    assert [describe(step) for step in made.steps] == [f"remove mdev {OLD.uuid}", "apmask +5"]


def test_as_desired_is_nothing_to_do() -> None:
    target = Target((OLD, KEPT), (OLD, KEPT), (OLD, KEPT))
    made = plan(snapshot_of(OLD, KEPT, masks=AWAY), target)
    assert not made
    assert made.steps == ()


def test_a_device_found_empty_is_filled_without_being_made_again() -> None:
    empty = replace(OLD, matrix=EMPTY_MATRIX)
    made = plan(snapshot_of(empty, masks=AWAY), Target((OLD,), (OLD,), (OLD,)))
    assert made.steps == (SetMatrix(OLD.uuid, EMPTY_MATRIX, OLD.matrix),)


def test_a_wanted_queue_that_no_driver_has_is_given_to_vfio_ap_and_to_it_alone() -> None:
    """Early in a boot; a mask write need not bind it (ap_bus.c:__ap_revise_reserved)."""
    before = snapshot_of(masks=AWAY)
    loose = tuple(replace(state, driver=None) for state in before.queues)
    made = plan(replace(before, queues=loose), Target((OLD,), (OLD,), (OLD,)))
    assert made.steps == (
        CreateMdev(OLD.uuid),
        Bind(parse_apqn("05.000d"), "vfio_ap"),
        SetMatrix(OLD.uuid, EMPTY_MATRIX, OLD.matrix),
    )


def test_the_same_input_gives_the_same_plan() -> None:
    target = Target((OLD, NEW), (NEW,), (NEW, KEPT), released=QueueSet.of_matrix(OLD.matrix))
    before = snapshot_of(OLD, KEPT, masks=AWAY)
    assert plan(before, target) == plan(before, target)


def test_on_linux_7_3_bits_are_set_before_a_new_device_would_bar_them() -> None:
    """One device moves from domain 13 to 17 in one write, a new one takes adapter 3 of domain 13."""
    kernel = machine("7.3")
    old, other = definition("old", [0, 1], [13]), definition("other", [2, 3], [18])
    first = (old, other)
    carry_out(plan(read_snapshot(kernel.sysfs), Target(first, first, first, binding=Binding.MASKS)), kernel)
    moved, new = replace(old, matrix=matrix([0, 1], [17])), definition("new", [3], [13])
    after = (moved, other, new)
    target = Target(
        after, after, after, released=QueueSet.of_matrix(old.matrix), binding=Binding.MASKS, disrupt=True
    )
    carry_out(plan(read_snapshot(kernel.sysfs), target), kernel)
    assert {one.uuid: one.matrix for one in read_snapshot(kernel.sysfs).mdevs} == {
        one.uuid: one.matrix for one in after
    }


def test_a_plan_that_concerns_nothing_of_ours_has_no_step() -> None:
    """Not even for somebody's device whose queues are the host's: how that came about is his affair."""
    device = Mdev(FOREIGN, matrix([3], [18]), frozenset(), in_use=False)
    assert plan(Snapshot(mdevs=(device,)), Target(keep=frozenset({parse_apqn("00.000d")}))) == Plan()
