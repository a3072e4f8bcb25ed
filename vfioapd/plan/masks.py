# SPDX-License-Identifier: Apache-2.0
"""From wanted queues to both host masks.

A queue leaves the host when its adapter's bit in apmask **or** its domain's bit in aqmask is cleared,
and either bit takes other queues along: the collateral. Choosing the bits is a covering problem.
Once the adapters to clear are chosen, the domains to clear follow, so all choices over the smaller side
are tried; adapters that want the same domains are decided alike, which keeps real hosts to a handful.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from itertools import product
from operator import or_
from typing import TYPE_CHECKING

from vfioapd.domain.apqn import format_apqns
from vfioapd.domain.mask import HostMasks, Mask
from vfioapd.domain.problems import Problem, Refused
from vfioapd.domain.queue_set import EMPTY, QueueSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vfioapd.domain.apqn import Apqn

# 2**12 choices are compared in well under 100 ms; beyond that the answer is good, not proven least.
EXACT_CLASSES = 12


@dataclass(frozen=True, slots=True)
class MaskPlan:
    """Both target masks and what reaching them does to the queues that this host has."""

    target: HostMasks
    handed_over: QueueSet = EMPTY  # wanted, and leaving the host now
    collateral: QueueSet = EMPTY  # not wanted, and leaving with them
    returned: QueueSet = EMPTY  # coming back to the host
    exact: bool = True  # no choice of bits has less collateral


def plan_masks(
    current: HostMasks,
    *,
    present: Iterable[Apqn],
    wanted: Iterable[Apqn],
    keep: Iterable[Apqn],
    released: Iterable[Apqn] = (),
    pinned: Iterable[Apqn] = (),
    lain_on: Iterable[Apqn] = (),
) -> MaskPlan:
    """Choose the masks that hand over all wanted queues with the least collateral.

    Bits that are clear stay clear, unless only ``released`` queues needed them. ``pinned`` are the
    queues of active devices: a bit on which one of them lies is never given back (Linux 7.3 refuses
    that even where the queue would not change hands). Among choices of equal collateral, bits on which one
    of ``lain_on`` lies are spared. Refused if a queue in ``keep`` would have to go.
    """
    there, asked, pins = map(QueueSet.of, (present, wanted, pinned))
    owned_now = QueueSet.owned_by_host(current)
    base = _give_back(current, released=QueueSet.of(released), needed=(asked | pins) - owned_now, pinned=pins)
    adapters, domains, exact = _cover(
        base, asked, present=there, keep=QueueSet.of(keep), spared=QueueSet.of(lain_on)
    )
    target = HostMasks(base.apmask - Mask.of(adapters), base.aqmask - Mask.of(domains))
    owned_then = QueueSet.owned_by_host(target)
    leaving = there & owned_now - owned_then
    return MaskPlan(
        target,
        handed_over=leaving & asked,
        collateral=leaving - asked,
        returned=there & owned_then - owned_now,
        exact=exact,
    )


def mask_writes(current: HostMasks, target: HostMasks, matters: Iterable[Apqn]) -> Iterator[HostMasks]:
    """The masks to pass through, in as few writes as can be.

    At no moment is a queue outside the host that is not outside before or after: a bit that is clear
    in between is clear before or after. And none of the queues that matter comes back in between.
    """
    ends = QueueSet.owned_by_host(current) | QueueSet.owned_by_host(target)
    stay_out = QueueSet.of(matters) - ends
    aq_first, ap_first = HostMasks(current.apmask, target.aqmask), HostMasks(target.apmask, current.aqmask)
    for between in (ap_first, aq_first):
        if not QueueSet.owned_by_host(between) & stay_out:
            yield from _distinct(current, between, target)
            return
    cleared = HostMasks(current.apmask & target.apmask, current.aqmask & target.aqmask)
    before_aq = HostMasks(cleared.apmask, current.aqmask)
    yield from _distinct(current, before_aq, cleared, HostMasks(target.apmask, cleared.aqmask), target)


def _distinct(at: HostMasks, *through: HostMasks) -> Iterator[HostMasks]:
    for masks in through:
        if masks != at:
            yield masks
            at = masks


def _give_back(masks: HostMasks, *, released: QueueSet, needed: QueueSet, pinned: QueueSet) -> HostMasks:
    """Set the bits that only the released queues needed."""
    gone = {adapter for adapter, _ in released.rows()} - {adapter for adapter, _ in pinned.rows()}
    for adapter in sorted(gone):
        candidate = HostMasks(masks.apmask | Mask.of([adapter]), masks.aqmask)
        masks = masks if QueueSet.owned_by_host(candidate) & needed else candidate
    for domain in sorted(_numbers(_columns(released) & ~_columns(pinned))):
        candidate = HostMasks(masks.apmask, masks.aqmask | Mask.of([domain]))
        masks = masks if QueueSet.owned_by_host(candidate) & needed else candidate
    return masks


def _cover(
    base: HostMasks, wanted: QueueSet, *, present: QueueSet, keep: QueueSet, spared: QueueSet
) -> tuple[frozenset[int], frozenset[int], bool]:
    """The adapters and domains to clear so that every wanted queue leaves the host."""
    owned_by_host = QueueSet.owned_by_host(base)
    owned = wanted & owned_by_host
    _check_keep(owned, keep)
    if not owned:
        return frozenset(), frozenset(), True
    shapes = tuple(map(_alike, (owned, present & owned_by_host - wanted, keep, spared)))
    by_adapter = _Side.of(*shapes)
    by_domain = _Side.of(*map(_turn, shapes))
    turned = len(by_domain.classes) < len(by_adapter.classes)
    rows, columns, exact = (by_domain if turned else by_adapter).best()
    return (columns, rows, exact) if turned else (rows, columns, exact)


def _check_keep(owned: QueueSet, keep: QueueSet) -> None:
    kept_adapters = {adapter for adapter, _ in keep.rows()}
    kept_domains = _columns(keep)
    stuck = [q for q in owned.of_adapters(kept_adapters) if kept_domains >> q.domain & 1]
    if stuck:
        blockers = sorted(
            kept for kept in keep if any(kept.adapter == q.adapter or kept.domain == q.domain for q in stuck)
        )
        raise Refused(
            Problem.QUEUE_KEPT_BY_HOST,
            f"{format_apqns(stuck)} cannot leave the host without taking {format_apqns(blockers)} along,"
            " kept by the host ([host] keep)",
            hint="apmask and aqmask free whole rows and columns: choose queues that share neither adapter"
            " nor domain with a kept one, or take a queue out of keep",
            queues=sorted(stuck),
            owners=["host"],
        )


@dataclass(frozen=True, slots=True)
class _Side:
    """The problem seen from one axis: rows are decided, columns follow. Sets of either are integers."""

    classes: tuple[tuple[int, int], ...]  # rows alike, the columns they need
    spare: tuple[tuple[int, int], ...]  # rows alike, the columns whose queue would be collateral
    kept: tuple[int, int]  # rows and columns that must stay
    spared: tuple[int, int]  # rows and columns that had better stay

    @classmethod
    def of(cls, needs: _Shapes, spare: _Shapes, kept: _Shapes, spared: _Shapes) -> _Side:
        return cls(needs, spare, _extent(kept), _extent(spared))

    def best(self) -> tuple[frozenset[int], frozenset[int], bool]:
        exact = len(self.classes) <= EXACT_CLASSES
        if exact:
            choices: Iterable[tuple[bool, ...]] = product((True, False), repeat=len(self.classes))
            choice = min(filter(self._feasible, choices), key=self._cost)
        else:
            choice = self._descend()
        rows, columns = self._chosen(choice)
        return _numbers(rows), _numbers(columns), exact

    def _descend(self) -> tuple[bool, ...]:
        """Flip classes while that helps, one after the other, from a choice feasible by construction."""
        at = tuple(not rows & self.kept[0] for rows, _ in self.classes)
        least, before = self._cost(at), None
        while at != before:
            before = at
            for n, bit in enumerate(at):
                flipped = (*at[:n], not bit, *at[n + 1 :])
                if self._feasible(flipped) and self._cost(flipped) < least:
                    at, least = flipped, self._cost(flipped)
        return at

    def _chosen(self, choice: tuple[bool, ...]) -> tuple[int, int]:
        rows = columns = 0
        for taken, (alike, needed) in zip(choice, self.classes, strict=True):
            if taken:
                rows |= alike
            else:
                columns |= needed
        return rows, columns

    def _feasible(self, choice: tuple[bool, ...]) -> bool:
        rows, columns = self._chosen(choice)
        return not rows & self.kept[0] and not columns & self.kept[1]

    def _cost(self, choice: tuple[bool, ...]) -> tuple[int, int, int]:
        """Collateral, then bits to be spared, then all bits; the first of equals has the most rows."""
        rows, columns = self._chosen(choice)
        lost = 0
        for alike, spare in self.spare:
            whole = (alike & rows).bit_count()
            lost += whole * spare.bit_count()
            lost += (alike.bit_count() - whole) * (spare & columns).bit_count()
        hard = (rows & self.spared[0]).bit_count() + (columns & self.spared[1]).bit_count()
        return lost, hard, rows.bit_count() + columns.bit_count()


_Shapes = tuple[tuple[int, int], ...]  # rows alike and the columns they share, bit n for number n


def _alike(queues: QueueSet) -> _Shapes:
    """Adapters with the same domains taken together, by the lowest adapter."""
    rows: dict[int, int] = {}
    for adapter, domains in queues.rows():
        rows[domains] = rows.get(domains, 0) | 1 << adapter
    return tuple((alike, shared) for shared, alike in rows.items())


def _turn(shapes: _Shapes) -> _Shapes:
    """The same seen from the other axis."""
    columns: dict[int, int] = {}
    for rows, shared in shapes:
        for number in _numbers(shared):
            columns[number] = columns.get(number, 0) | rows
    alike: dict[int, int] = {}
    for number in sorted(columns):
        alike[columns[number]] = alike.get(columns[number], 0) | 1 << number
    return tuple((numbers, rows) for rows, numbers in alike.items())


def _extent(shapes: _Shapes) -> tuple[int, int]:
    """All rows and all columns of the shapes."""
    return _union(rows for rows, _ in shapes), _union(columns for _, columns in shapes)


def _columns(queues: QueueSet) -> int:
    return _union(domains for _, domains in queues.rows())


def _union(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)


def _numbers(bits: int) -> frozenset[int]:
    return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)
