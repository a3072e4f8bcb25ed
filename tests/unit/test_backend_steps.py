# SPDX-License-Identifier: Apache-2.0
"""Kernel steps: the write that is made, how its effect is recognised, and what a refusal means."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from doubles import KERNELS, host_of, uuid_of

from vfioapd.backend.kernel_steps import KernelSteps
from vfioapd.domain.mask import FULL_MASK, Mask
from vfioapd.domain.matrix import EMPTY_MATRIX, Matrix
from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.emulator.kernel import Kernel
from vfioapd.plan.steps import (
    Assign,
    Axis,
    CreateMdev,
    KernelStep,
    Member,
    RemoveMdev,
    SetMatrix,
    Unassign,
    WriteMask,
    inverse,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

DEVICE, OTHER = uuid_of("device"), uuid_of("other")
MATRIX = Matrix(frozenset({5, 7}), frozenset({17}), frozenset({17}))
AWAY = Mask.of(set(range(256)) - {5, 7})
LEAVE = WriteMask(Axis.APMASK, FULL_MASK, AWAY)


def kernel_after(generation: str, *steps: KernelStep) -> Kernel:
    kernel = Kernel(host_of(generation))
    carry_out(kernel, steps)
    return kernel


def carry_out(kernel: Kernel, steps: Iterable[KernelStep]) -> None:
    for step in steps:
        KernelSteps(kernel.sysfs).execute(step)


def filled(generation: str) -> list[KernelStep]:
    if generation != "6.1":
        return [LEAVE, CreateMdev(DEVICE), SetMatrix(DEVICE, EMPTY_MATRIX, MATRIX)]
    members = [(Member.ADAPTER, 5), (Member.ADAPTER, 7), (Member.DOMAIN, 17), (Member.CONTROL_DOMAIN, 17)]
    return [LEAVE, CreateMdev(DEVICE), *(Assign(DEVICE, member, number) for member, number in members)]


@pytest.mark.parametrize("generation", KERNELS)
def test_every_step_holds_once_made_and_not_before_and_its_inverse_takes_it_back(generation: str) -> None:
    kernel = Kernel(host_of(generation))
    steps, way = KernelSteps(kernel.sysfs), filled(generation)
    for step in way:
        assert not steps.holds(step)
        steps.execute(step)
        assert steps.holds(step)
    for step in reversed(way):
        (back,) = inverse(step)
        steps.execute(back)  # type: ignore[arg-type]
        assert steps.holds(back)  # type: ignore[arg-type]
        assert not steps.holds(step)


@pytest.mark.parametrize("generation", KERNELS)
@pytest.mark.parametrize("member", Member)
def test_a_single_member_comes_and_goes(generation: str, member: Member) -> None:
    kernel = kernel_after(generation, LEAVE, CreateMdev(DEVICE))
    steps, come, go = KernelSteps(kernel.sysfs), Assign(DEVICE, member, 7), Unassign(DEVICE, member, 7)
    assert (steps.holds(come), steps.holds(go)) == (False, True)
    steps.execute(come)
    assert (steps.holds(come), steps.holds(go)) == (True, False)
    steps.execute(go)
    assert (steps.holds(come), steps.holds(go)) == (False, True)


@pytest.mark.parametrize("generation", KERNELS)
def test_of_a_device_that_is_not_there_nothing_holds_but_its_removal(generation: str) -> None:
    steps = KernelSteps(Kernel(host_of(generation)).sysfs)
    assert steps.holds(RemoveMdev(DEVICE))
    for step in (
        CreateMdev(DEVICE),
        SetMatrix(DEVICE, MATRIX, EMPTY_MATRIX),
        Assign(DEVICE, Member.ADAPTER, 5),
        Unassign(DEVICE, Member.ADAPTER, 5),
    ):
        assert not steps.holds(step)


WIDE = Matrix(frozenset({5}), frozenset({17, 200}), frozenset())

REFUSALS: list[tuple[str, list[KernelStep], KernelStep, str, str]] = [
    (
        "queue of the host",
        [CreateMdev(DEVICE)],
        SetMatrix(DEVICE, EMPTY_MATRIX, MATRIX),
        "EADDRNOTAVAIL",
        "the host's own driver still owns",
    ),
    (
        "queue of another device",
        [*filled("6.12"), CreateMdev(OTHER)],
        SetMatrix(OTHER, EMPTY_MATRIX, MATRIX),
        "EADDRINUSE",
        "another mdev holds",
    ),
    (
        "beyond the machine",
        [LEAVE, CreateMdev(DEVICE)],
        SetMatrix(DEVICE, EMPTY_MATRIX, WIDE),
        "ENODEV",
        "beyond what this machine has",
    ),
    (
        "member of the host",
        [CreateMdev(DEVICE), Assign(DEVICE, Member.DOMAIN, 17)],
        Assign(DEVICE, Member.ADAPTER, 5),
        "EADDRNOTAVAIL",
        "the host's own driver still owns",
    ),
    ("existing device", [CreateMdev(DEVICE)], CreateMdev(DEVICE), "EEXIST", "exists already"),
    (
        "mask under a device",
        filled("6.12"),
        WriteMask(Axis.APMASK, AWAY, FULL_MASK),
        "EBUSY",
        "an mdev holds a queue of that adapter",
    ),
    ("device that is not there", [], RemoveMdev(DEVICE), "ENOENT", "No such file"),
]


@pytest.mark.parametrize(
    ("before", "step", "name", "meaning"),
    [case[1:] for case in REFUSALS],
    ids=[case[0] for case in REFUSALS],
)
def test_a_refusal_of_the_kernel_is_explained_and_changes_nothing(
    before: list[KernelStep], step: KernelStep, name: str, meaning: str
) -> None:
    kernel = kernel_after("6.12", *before)
    masks = kernel.sysfs.read("bus/ap/apmask")
    with pytest.raises(VfioApError) as error:
        KernelSteps(kernel.sysfs).execute(step)
    assert error.value.problem is Problem.STEP_FAILED
    assert str(error.value).startswith("/sys/")
    assert f"answered {name}: " in str(error.value)
    assert meaning in str(error.value)
    assert isinstance(error.value.__cause__, OSError)
    assert kernel.sysfs.read("bus/ap/apmask") == masks
    if isinstance(step, SetMatrix | WriteMask | Assign):
        assert not KernelSteps(kernel.sysfs).holds(step)


@pytest.mark.parametrize("code", [errno.EIO, errno.EPERM, errno.EACCES, errno.ENOMEM, errno.EUSERS])
def test_any_other_errno_is_told_by_its_name_and_text(code: int) -> None:
    kernel = Kernel(host_of())
    name = errno.errorcode[code]
    kernel.play({"action": "fail", "path": "bus/ap/apmask", "access": "write", "errno": name})
    with pytest.raises(VfioApError, match=f"/sys/bus/ap/apmask answered {name}: .+"):
        KernelSteps(kernel.sysfs).execute(LEAVE)
