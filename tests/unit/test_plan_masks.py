# SPDX-License-Identifier: Apache-2.0
"""From wanted queues to both masks: the least collateral, and nothing exposed on the way."""

from __future__ import annotations

import random
import time
from itertools import pairwise, permutations, product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfioapd.domain.apqn import Apqn
from vfioapd.domain.mask import ALL_HOST, HostMasks, Mask
from vfioapd.domain.numbers import AdapterId, DomainId
from vfioapd.domain.problems import Problem, Refused
from vfioapd.plan.masks import EXACT_CLASSES, MaskPlan, mask_writes, plan_masks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

SIDE = 4  # grids for hypothesis; the exhaustive ones are smaller

Queues = frozenset[Apqn]


def q(adapter: int, domain: int) -> Apqn:
    return Apqn(AdapterId(adapter), DomainId(domain))


def grid(rows: int, columns: int) -> list[Apqn]:
    return [q(a, d) for a in range(rows) for d in range(columns)]


def cleared(adapters: Collection[int] = (), domains: Collection[int] = ()) -> HostMasks:
    return HostMasks(ALL_HOST.apmask - Mask.of(adapters), ALL_HOST.aqmask - Mask.of(domains))


def below(masks: HostMasks, side: int = SIDE) -> Iterator[HostMasks]:
    """Every pair of masks that clears bits of the grid and sets none."""
    for choice in product((False, True), repeat=2 * side):
        gone = [number for number, bit in enumerate(choice) if bit]
        apmask = masks.apmask - Mask.of(n for n in gone if n < side)
        aqmask = masks.aqmask - Mask.of(n - side for n in gone if n >= side)
        yield HostMasks(apmask, aqmask)


def least_by_force(current: HostMasks, present: Queues, wanted: Queues, keep: Queues) -> int | None:
    """The least collateral over all choices of bits; None when no choice spares ``keep``."""
    found = [
        sum(current.owns(one) and not target.owns(one) for one in present - wanted)
        for target in below(current)
        if not any(map(target.owns, wanted)) and all(map(target.owns, keep))
    ]
    return min(found, default=None)


queues = st.frozensets(st.builds(q, st.integers(0, SIDE - 1), st.integers(0, SIDE - 1)))
numbers = st.frozensets(st.integers(0, SIDE - 1))
masks = st.builds(cleared, numbers, numbers)


def exhaustive(rows: int, columns: int) -> Iterator[tuple[Queues, Queues]]:
    """Each queue of a grid wanted, kept or neither, in every combination; of those that differ only in the
    order of adapters or domains one, in an order by chance."""
    chance = random.Random(rows * 10 + columns)
    seen = set()
    for roles in product("wk-", repeat=rows * columns):
        lines = [roles[at : at + columns] for at in range(0, len(roles), columns)]
        alike = min(tuple(sorted(zip(*turned, strict=True))) for turned in permutations(lines))
        if alike in seen:
            continue
        seen.add(alike)
        chance.shuffle(lines)
        places = chance.sample(range(columns), columns)
        pairs = [(q(a, places[d]), role) for a, line in enumerate(lines) for d, role in enumerate(line)]
        yield (
            frozenset(cell for cell, role in pairs if role == "w"),
            frozenset(cell for cell, role in pairs if role == "k"),
        )


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (4, 1), (2, 2), (2, 3), (3, 2), (3, 3)])
def test_no_choice_of_bits_on_a_small_grid_has_less_collateral(rows: int, columns: int) -> None:
    cells = grid(rows, columns)
    bit = {cell: 1 << place for place, cell in enumerate(cells)}
    clears = [  # each choice of bits as the set of queues that it takes from the host
        sum(bit[cell] for cell in cells if ups[cell.adapter] or ups[rows + cell.domain])
        for ups in product((False, True), repeat=rows + columns)
    ]
    for wanted, keep in exhaustive(rows, columns):
        need, spare = sum(bit[one] for one in wanted), sum(bit[one] for one in keep)
        costs = [(gone & ~need).bit_count() for gone in clears if not need & ~gone and not spare & gone]
        try:
            made = plan_masks(ALL_HOST, present=cells, wanted=wanted, keep=keep)
        except Refused:
            assert not costs, (wanted, keep)
            continue
        assert costs, (wanted, keep)
        assert made.exact
        assert len(made.collateral) == min(costs), (wanted, keep)
        assert set(made.handed_over) == wanted
        assert all(map(made.target.owns, keep))


@settings(max_examples=80, deadline=None)
@given(masks, queues, queues, queues)
def test_the_least_collateral_holds_from_any_masks_with_any_queues_present(
    current: HostMasks, present: Queues, wanted: Queues, keep: Queues
) -> None:
    keep = frozenset(filter(current.owns, keep))
    least = least_by_force(current, present, wanted, keep)
    try:
        made = plan_masks(current, present=present, wanted=wanted, keep=keep)
    except Refused as refused:
        assert refused.problem is Problem.QUEUE_KEPT_BY_HOST
        assert least is None
        return
    assert least == len(made.collateral)
    assert not any(map(made.target.owns, wanted)), "queues that are not present yet are handed over too"
    assert all(map(made.target.owns, keep))
    assert set(made.handed_over) == {one for one in present & wanted if current.owns(one)}
    assert not made.returned


@settings(max_examples=80, deadline=None)
@given(masks, queues, queues, queues, queues)
def test_pinned_and_wanted_queues_never_come_back_and_bits_of_pinned_ones_never_are_set(
    current: HostMasks, wanted: Queues, released: Queues, pinned: Queues, keep: Queues
) -> None:
    pinned = frozenset(one for one in pinned if not current.owns(one))
    present = frozenset(grid(SIDE, SIDE))
    try:
        made = plan_masks(
            current, present=present, wanted=wanted, keep=keep, released=released, pinned=pinned
        )
    except Refused:
        return
    assert not any(map(made.target.owns, wanted | pinned))
    assert not {one.adapter for one in pinned} & set((made.target.apmask - current.apmask).numbers())
    assert not {one.domain for one in pinned} & set((made.target.aqmask - current.aqmask).numbers())
    set_adapters = set((made.target.apmask - current.apmask).numbers())
    set_domains = set((made.target.aqmask - current.aqmask).numbers())
    assert set_adapters <= {one.adapter for one in released}
    assert set_domains <= {one.domain for one in released}


def test_released_queues_go_back_with_the_collateral_they_had_taken_along() -> None:
    made = plan_masks(cleared([5]), present=grid(8, 8), wanted=(), keep=(), released=[q(5, 1)], pinned=())
    assert made.target == ALL_HOST
    assert set(made.returned) == {q(5, domain) for domain in range(8)}


def test_a_released_queue_stays_away_while_another_needs_its_bit() -> None:
    made = plan_masks(
        cleared([5]), present=grid(8, 8), wanted=[q(5, 2)], keep=(), released=[q(5, 1)], pinned=()
    )
    assert made.target == cleared([5])
    assert not made.returned


def test_a_released_queue_goes_back_while_another_leaves() -> None:
    made = plan_masks(cleared([5]), present=grid(8, 8), wanted=[q(1, 2)], keep=(), released=[q(5, 1)])
    assert made.target == cleared([1])
    assert set(made.handed_over) == {q(1, 2)}


def test_one_of_two_bits_over_a_pinned_queue_is_not_given_back() -> None:
    """Linux 7.3 refuses it, although the queue would stay where it is."""
    made = plan_masks(
        cleared([5], [2]), present=grid(8, 8), wanted=(), keep=(), released=[q(5, 2)], pinned=[q(5, 2)]
    )
    assert made.target == cleared([5], [2])


def test_a_queue_that_cannot_leave_names_itself_and_every_kept_queue_in_its_way() -> None:
    with pytest.raises(Refused) as refused:
        plan_masks(ALL_HOST, present=grid(4, 4), wanted=[q(1, 1), q(3, 3)], keep=[q(1, 2), q(2, 1), q(0, 0)])
    assert refused.value.problem is Problem.QUEUE_KEPT_BY_HOST
    assert refused.value.queues == ("01.0001",)
    assert refused.value.owners == ("host",)
    assert "01.0002, 02.0001" in str(refused.value)
    assert "00.0000" not in str(refused.value)
    assert refused.value.hint


def test_a_kept_queue_that_is_not_present_is_spared_too() -> None:
    made = plan_masks(ALL_HOST, present=[q(1, 1), q(1, 2)], wanted=[q(1, 1)], keep=[q(1, 9)])
    assert made.target == cleared(domains=[1])


def test_nothing_wanted_is_nothing_done() -> None:
    assert plan_masks(ALL_HOST, present=grid(4, 4), wanted=(), keep=[q(0, 0)]) == MaskPlan(ALL_HOST)


def test_what_has_left_already_costs_nothing() -> None:
    made = plan_masks(cleared([5]), present=grid(8, 8), wanted=[q(5, 1)], keep=())
    assert made == MaskPlan(cleared([5]))


def many_shapes(side: int, part: float, seed: int) -> list[Apqn]:
    chance = random.Random(seed)
    return [one for one in grid(side, side) if chance.random() < part]


@pytest.mark.parametrize("part", [0.01, 0.5])
def test_a_full_host_of_random_wishes_is_planned_at_once_and_every_wish_is_met(part: float) -> None:
    present, wanted = grid(256, 256), many_shapes(256, part, seed=11)
    keep = [one for one in present[:: 256 * 40] if one not in set(wanted)]
    wanted = [
        one for one in wanted if not any(one.adapter == k.adapter or one.domain == k.domain for k in keep)
    ]
    begun = time.process_time()
    made = plan_masks(ALL_HOST, present=present, wanted=wanted, keep=keep)
    assert time.process_time() - begun < 3
    assert set(made.handed_over) == frozenset(wanted)
    assert all(map(made.target.owns, keep))


def test_a_choice_that_is_not_proven_least_says_so() -> None:
    wanted = [q(row, column) for row in range(EXACT_CLASSES + 1) for column in range(row + 1)]
    assert not plan_masks(ALL_HOST, present=grid(20, 20), wanted=wanted, keep=()).exact
    assert plan_masks(ALL_HOST, present=grid(20, 20), wanted=wanted[:-13], keep=()).exact


def test_many_adapters_that_want_the_same_domains_are_still_planned_exactly() -> None:
    wanted = [q(adapter, domain) for adapter in range(200) for domain in (13, 17)]
    made = plan_masks(ALL_HOST, present=grid(256, 85), wanted=wanted, keep=())
    assert made.exact
    assert made.target == cleared(domains=[13, 17])


def test_the_same_input_gives_the_same_plan_whatever_its_order() -> None:
    wanted, present = many_shapes(40, 0.05, seed=3), grid(40, 40)
    first = plan_masks(ALL_HOST, present=present, wanted=wanted, keep=[q(39, 50)])
    again = plan_masks(ALL_HOST, present=present[::-1], wanted=wanted[::-1], keep=[q(39, 50)])
    assert first == again


@settings(max_examples=100, deadline=None)
@given(masks, masks, queues)
def test_no_mask_on_the_way_exposes_a_queue_or_returns_one_that_matters(
    current: HostMasks, target: HostMasks, matters: Queues
) -> None:
    way = [current, *mask_writes(current, target, matters)]
    assert way[-1] == target
    for before, at in pairwise(way):
        assert (before.apmask == at.apmask) is not (before.aqmask == at.aqmask), "one write, one mask"
    for one in grid(SIDE, SIDE):
        owned = [at.owns(one) for at in way]
        if owned[0] and owned[-1]:
            assert all(owned), "the host's before and after, so never away"
        if one in matters and not owned[0] and not owned[-1]:
            assert not any(owned), "away before and after, so never back in between"


@settings(max_examples=100, deadline=None)
@given(masks, masks)
def test_each_mask_is_written_once_where_no_queue_that_matters_would_come_back(
    current: HostMasks, target: HostMasks
) -> None:
    writes = list(mask_writes(current, target, ()))
    assert len(writes) == (current.apmask != target.apmask) + (current.aqmask != target.aqmask)
