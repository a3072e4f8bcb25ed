# SPDX-License-Identifier: Apache-2.0
"""How long a plan takes, on hosts up to all that the architecture allows. Pure: needs no lab."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from bench.figures import Figure, Goal, Section
from bench.processes import milliseconds
from vfioapd.domain.apqn import Apqn
from vfioapd.domain.definition import Definition, Desired
from vfioapd.domain.mask import HostMasks, Mask
from vfioapd.domain.matrix import Matrix
from vfioapd.domain.numbers import AdapterId, DomainId
from vfioapd.domain.snapshot import VFIO_DRIVER, Card, Mdev, Mode, QueueState, Snapshot
from vfioapd.plan import wishes
from vfioapd.plan.planner import plan
from vfioapd.plan.wish import State

SIZES = (64, 128, 256)
ROUNDS = 7
MOST_MS = 100.0
# Adapters grow, and matrices with them, so the queues grow by four for a size twice as large.
MOST_GROWTH = 4.0

METHOD = """\
In process, from a snapshot and a host.toml that were read to the ordered steps. The host has as many
adapters as domains; each matrix is one domain on all adapters. "All": from a host without devices. "One":
all of them exist, one loses an adapter. Between the last two sizes queues grow by four, matrices by two."""


def measure() -> Section:
    """Plan for each size."""
    everything, one = [], []
    for size in SIZES:
        queues = f"{size * size:,} queues, {size} matrices"
        first, second = _states(size)
        all_of_them = _desired(size)
        everything.append(_planned(f"all, {queues}", first, all_of_them))
        one.append(_planned(f"one, {queues}", second, _one_smaller(all_of_them)))
    return Section(
        "A plan",
        METHOD,
        [*everything, *one],
        [
            Goal("65,536 queues, 256 matrices", "ms", everything[-1].median, MOST_MS, inclusive=False),
            Goal("four times the queues", "×", everything[-1].median / everything[-2].median, MOST_GROWTH),
        ],
    )


def _planned(what: str, state: State, new: Desired) -> Figure:
    return Figure(what, "ms", [milliseconds(lambda: _plan(state, new)) for _ in range(ROUNDS)])


def _plan(state: State, new: Desired) -> None:
    # A copy: what a snapshot works out once it keeps, and each real plan has a fresh one.
    snapshot = replace(state.snapshot)
    wish = wishes.apply(replace(state, snapshot=snapshot), new)
    if not plan(snapshot, wish.target).steps:
        raise SystemExit("bench: the plan has no step")


def _states(size: int) -> tuple[State, State]:
    adapters, domains = map(AdapterId, range(size)), frozenset(map(DomainId, range(size)))
    cards = tuple(Card(adapter, "CEX8C", Mode.CCA) for adapter in adapters)
    queues = tuple(
        QueueState(Apqn(card.adapter, domain), "cex4queue") for card in cards for domain in sorted(domains)
    )
    empty = Snapshot(cards=cards, queues=queues, usage_domains=domains, control_domains=domains)
    desired = _desired(size)
    full = replace(
        empty,
        queues=tuple(replace(one, driver=VFIO_DRIVER) for one in queues),
        masks=HostMasks(Mask.of(range(size, 256)), Mask.of(range(256))),
        mdevs=tuple(
            Mdev(one.uuid, one.matrix, frozenset(one.matrix.queues()), in_use=False)
            for one in desired.definitions
        ),
    )
    return State(empty, Desired(), disrupt=True), State(full, desired, disrupt=True)


def _desired(size: int) -> Desired:
    adapters = frozenset(map(AdapterId, range(size)))
    return Desired(
        definitions=tuple(
            Definition(f"m{number}", UUID(int=number + 1), Matrix(adapters, domain, domain))
            for number in range(size)
            for domain in [frozenset({DomainId(number)})]
        )
    )


def _one_smaller(desired: Desired) -> Desired:
    last = desired.definitions[-1]
    smaller = replace(last.matrix, adapters=last.matrix.adapters - {AdapterId(0)})
    return desired.with_definition(replace(last, matrix=smaller))
