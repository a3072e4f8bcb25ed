# SPDX-License-Identifier: Apache-2.0
"""Steps: what takes them back, what lasts, how they are told and how they are written down."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfioapd.domain.mask import FULL_MASK, Mask
from vfioapd.domain.matrix import EMPTY_MATRIX, Matrix
from vfioapd.plan.order import refill
from vfioapd.plan.steps import (
    Assign,
    Axis,
    CreateMdev,
    Member,
    Plug,
    RemoveMdev,
    SetMatrix,
    Step,
    Unassign,
    Unplug,
    Where,
    WriteFile,
    WriteMask,
    describe,
    inverse,
    survives_reboot,
)
from vfioapd.plan.wire import decode_step, encode_step

U = UUID("825b3872-0001-0003-0011-28a403f8b357")

numbers = st.frozensets(st.integers(0, 255), max_size=8)
matrices = st.builds(Matrix, numbers, numbers, numbers)
masks = st.builds(Mask.of, numbers)
uuids = st.uuids()
texts = st.one_of(
    st.none(),
    st.text(max_size=40),
    st.sampled_from(["", "0x", f"{FULL_MASK}", "0xbeef\n", "0x1 is a name\n", "ün–ï\r\n\0"]),
)
members = st.sampled_from(Member)
sets = st.builds(SetMatrix, uuids, matrices, matrices)
assigns = st.builds(Assign, uuids, members, st.integers(0, 255))
steps: st.SearchStrategy[Step] = st.one_of(
    st.builds(WriteMask, st.sampled_from(Axis), masks, masks),
    st.builds(CreateMdev, uuids),
    st.builds(RemoveMdev, uuids, st.lists(st.one_of(sets, assigns), max_size=3).map(tuple)),
    sets,
    assigns,
    st.builds(Unassign, uuids, members, st.integers(0, 255)),
    st.builds(Plug, st.text(min_size=1, max_size=9), uuids, st.sampled_from(Where)),
    st.builds(Unplug, st.text(min_size=1, max_size=9), uuids, st.sampled_from(Where)),
    st.builds(WriteFile, st.text(min_size=1, max_size=9), texts, texts, st.booleans()),
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_a_step_read_from_the_journal_is_the_step_that_was_written(step: Step) -> None:
    assert decode_step(json.loads(json.dumps(encode_step(step)))) == step


@pytest.mark.parametrize("text", ["0xvault\n", f"{FULL_MASK}", "0xbeef\n"])
def test_a_file_that_begins_like_a_mask_stays_a_text(text: str) -> None:
    """A matrix may be called 0xbeef, and the list of stopped matrices begins with its name."""
    step = WriteFile("/run/vfioapd/stopped", None, text)
    assert decode_step(encode_step(step)) == step


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"step": "Explode"},
        {"step": "CreateMdev"},
        {"step": "CreateMdev", "uuid": "no uuid"},
        {"step": "CreateMdev", "uuid": str(U), "more": 1},
        {"step": "WriteMask", "axis": "apmask", "before": "", "after": "0x0"},
        {"step": "WriteMask", "axis": "appmask", "before": "0x0", "after": "0x0"},
        {"step": "SetMatrix", "uuid": str(U), "before": {}, "after": {}},
    ],
)
def test_a_record_that_is_no_step_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"not a step|badly formed|is not a valid"):
        decode_step(record)


@settings(max_examples=100, deadline=None)
@given(steps.filter(lambda step: not isinstance(step, (RemoveMdev, WriteMask))))
def test_the_inverse_of_the_inverse_is_the_step(step: Step) -> None:
    (back,) = inverse(step)
    assert inverse(back) == (step,) or isinstance(step, CreateMdev)


@settings(max_examples=100, deadline=None)
@given(masks, masks)
def test_a_mask_goes_back_in_writes_that_clear_or_set_and_clears_first(now: Mask, then: Mask) -> None:
    at, any_set = now, False
    for back in inverse(WriteMask(Axis.APMASK, then, now)):
        assert isinstance(back, WriteMask)
        assert back.before == at
        cleared, to_set = (back.before - back.after).numbers(), (back.after - back.before).numbers()
        assert not (cleared and (to_set or any_set))
        at, any_set = back.after, bool(to_set)
    assert at == then


@pytest.mark.parametrize("whole", [True, False])
def test_a_removed_device_comes_back_with_its_whole_matrix(whole: bool) -> None:
    matrix = Matrix(frozenset({5, 7}), frozenset({17}), frozenset({17, 18}))
    steps = refill(U, matrix, whole=whole)
    assert inverse(RemoveMdev(U, steps)) == (CreateMdev(U), *steps)
    if whole:
        assert steps == (SetMatrix(U, EMPTY_MATRIX, matrix),)
    else:
        assert [(one.member, one.number) for one in steps] == [
            (Member.ADAPTER, 5),
            (Member.ADAPTER, 7),
            (Member.DOMAIN, 17),
            (Member.CONTROL_DOMAIN, 17),
            (Member.CONTROL_DOMAIN, 18),
        ]


def test_an_empty_device_needs_no_refill() -> None:
    assert refill(U, EMPTY_MATRIX, whole=True) == refill(U, EMPTY_MATRIX, whole=False) == ()


MATRIX = Matrix(frozenset({5}), frozenset({17}), frozenset({17}))
TOLD = [
    (WriteMask(Axis.APMASK, Mask.of({5, 9}), Mask.of({3, 9})), "apmask -5,+3", False),
    (WriteMask(Axis.AQMASK, Mask.of({}), Mask.of({17})), "aqmask +17", False),
    (CreateMdev(U), f"create mdev {U}", False),
    (RemoveMdev(U), f"remove mdev {U}", False),
    (SetMatrix(U, EMPTY_MATRIX, MATRIX), f"set matrix of {U} to 05.0011", False),
    (SetMatrix(U, MATRIX, EMPTY_MATRIX), f"set matrix of {U} to nothing", False),
    (Assign(U, Member.CONTROL_DOMAIN, 17), f"assign control_domain 17 to {U}", False),
    (Unassign(U, Member.ADAPTER, 5), f"unassign adapter 5 from {U}", False),
    (Plug("bastion", U, Where.LIVE), f"attach {U} to guest bastion (live)", False),
    (Plug("bastion", U, Where.CONFIG), f"attach {U} to guest bastion (config)", True),
    (Unplug("bastion", U, Where.LIVE), f"detach {U} from guest bastion (live)", False),
    (Unplug("bastion", U, Where.CONFIG), f"detach {U} from guest bastion (config)", True),
    (WriteFile("/etc/x", None, "text"), "write /etc/x", True),
    (WriteFile("/etc/x", "text", None), "remove /etc/x", True),
    (WriteFile("/run/x", "text", None, volatile=True), "remove /run/x", False),
]


@pytest.mark.parametrize(("step", "text", "lasts"), TOLD, ids=[f"{text}" for _, text, _ in TOLD])
def test_every_step_names_its_object_and_knows_whether_it_lasts(step: Step, text: str, lasts: bool) -> None:
    assert describe(step) == text
    assert survives_reboot(step) is lasts
