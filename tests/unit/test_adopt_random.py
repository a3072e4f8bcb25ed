# SPDX-License-Identifier: Apache-2.0
"""Whatever host is found: all of it is adopted or told about, without a step, and nobody loses a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfioapd.domain.apqn import Apqn
from vfioapd.domain.boot_masks import BootMasks, MaskSetter
from vfioapd.domain.definition import Binding, Definition, Desired, Start, check_desired
from vfioapd.domain.mask import ALL_HOST, EMPTY_MASK, FULL_MASK, HostMasks, Mask
from vfioapd.domain.matrix import Matrix
from vfioapd.domain.problems import VfioApError
from vfioapd.domain.snapshot import (
    VFIO_DRIVER,
    Card,
    ForeignDefinition,
    Guest,
    Kernel,
    Mdev,
    Mode,
    QueueState,
    Snapshot,
)
from vfioapd.plan import wishes
from vfioapd.plan.adopt import propose
from vfioapd.plan.adopt_facts import DefinitionFile, Facts, Trouble, devices
from vfioapd.plan.planner import Plan, plan
from vfioapd.plan.steps import describe
from vfioapd.plan.wish import State
from vfioapd.store import host_file

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import Iterable

ADAPTERS, DOMAINS = (0, 1, 2, 3), (13, 17)
UUIDS = [UUID(int=number) for number in range(1, 5)]
NAMES = ("aw1", "bastion", "web server")
SOME_MASKS = (EMPTY_MASK, FULL_MASK, FULL_MASK - Mask.of([0, 1]), FULL_MASK - Mask.of([17]))

# Now and then an adapter (9) or a domain (11) that the host does not have.
odd_matrices = st.builds(
    lambda adapters, domains, same: Matrix(adapters, domains, domains if same else frozenset()),
    st.frozensets(st.sampled_from((*ADAPTERS, *ADAPTERS, 9)), max_size=2),
    st.frozensets(st.sampled_from((*DOMAINS, *DOMAINS, 11)), max_size=2),
    st.booleans(),
)
some_uuids = st.frozensets(st.sampled_from(UUIDS), max_size=2)


@st.composite
def rarely(draw: st.DrawFn, usual: st.SearchStrategy[T], odd: st.SearchStrategy[T]) -> T:
    """A host is mostly in order, or nothing of it would ever be adopted."""
    return draw(usual if draw(st.integers(0, 7)) else odd)


def matrices(number: int) -> st.SearchStrategy[Matrix]:
    """Mostly an adapter of its own."""
    usual = st.frozensets(st.sampled_from(DOMAINS), min_size=1).map(
        lambda domains: Matrix(frozenset({ADAPTERS[number]}), domains, domains)
    )
    return rarely(usual, odd_matrices)


@st.composite
def files_of(draw: st.DrawFn, uuid: UUID, active: Matrix | None) -> list[DefinitionFile]:
    """None, or one that mostly says what is active, or several."""
    found = []
    for place in ("matrix", "ap_matrix")[: draw(rarely(st.integers(0, 1), st.just(2)))]:
        matrix = draw(matrices(UUIDS.index(uuid)))
        if active is not None:
            matrix = draw(rarely(st.just(active), st.just(matrix)))
        definition = ForeignDefinition(uuid, matrix, draw(st.booleans()))
        torn = draw(rarely(st.none(), st.just("is empty")))
        path = f"/etc/mdevctl.d/{place}/{uuid}"
        in_place = place == "matrix"
        found.append(DefinitionFile(path, uuid, in_place, None if torn else definition, torn))
    return found


@st.composite
def guests(draw: st.DrawFn, name: str) -> Guest:
    running = draw(st.booleans())
    persistent = not running or draw(st.booleans())
    own = st.sampled_from((frozenset(), frozenset({UUIDS[NAMES.index(name)]})))
    live = draw(rarely(own, some_uuids)) if running else frozenset()
    config = draw(rarely(st.just(live) if running else own, some_uuids)) if persistent else frozenset()
    return Guest(name, UUID(int=99), running=running, persistent=persistent, live=live, config=config)


@st.composite
def states(draw: st.DrawFn) -> tuple[Snapshot, Desired, list[DefinitionFile]]:
    all_free, some = st.just(HostMasks(EMPTY_MASK, EMPTY_MASK)), st.sampled_from(SOME_MASKS)
    masks = draw(rarely(all_free, st.builds(HostMasks, some, some)))
    kernel = Kernel(ap_config=draw(st.booleans()), driver_override=draw(st.booleans()))
    reserved = (
        draw(st.frozensets(st.sampled_from(ADAPTERS))) if kernel.driver_override and masks == ALL_HOST else ()
    )
    mdevs, files = [], []
    for number, uuid in enumerate(UUIDS):
        matrix = draw(st.one_of(st.none(), matrices(number)))
        if matrix is not None and not _overlaps(matrix, (one.matrix for one in mdevs)):
            mdevs.append(Mdev(uuid, matrix, frozenset(), in_use=draw(st.integers(0, 7)) == 0))
        else:
            matrix = None
        files += draw(files_of(uuid, matrix))
    queues = [_queue(a, d, masks, a in reserved) for a in ADAPTERS for d in DOMAINS]
    folder = [one.definition for one in files if one.in_place and one.definition]
    desired = _desired(draw, mdevs)
    snapshot = Snapshot(
        masks=masks,
        cards=tuple(Card(a, "CEX8P", Mode.EP11) for a in ADAPTERS),
        queues=tuple(queues),
        mdevs=tuple(mdevs),
        usage_domains=frozenset(DOMAINS),
        control_domains=frozenset(DOMAINS),
        foreign_definitions=tuple(one for one in folder if desired.by_uuid(one.uuid) is None),
        guests=tuple(draw(guests(name)) for name in NAMES),
        kernel=kernel,
    )
    return snapshot, desired, files


def _queue(adapter: int, domain: int, masks: HostMasks, reserved: bool) -> QueueState:
    queue = Apqn(adapter, domain)
    away = reserved or not masks.owns(queue)
    return QueueState(queue, VFIO_DRIVER if away else "cex4queue", VFIO_DRIVER if reserved else "")


def _desired(draw: st.DrawFn, mdevs: list[Mdev]) -> Desired:
    """Nothing of ours yet, or one of the devices, or one that is not active."""
    keep = draw(rarely(st.just(frozenset()), st.just(frozenset({Apqn(3, 17)}))))
    binding = draw(rarely(st.none(), st.sampled_from(Binding)))
    desired = Desired(keep, binding=binding)
    choices = [None, None, *(Definition("ours", one.uuid, one.matrix) for one in mdevs[:1])]
    choices.append(
        Definition("aw1", UUIDS[0], Matrix(frozenset({0}), frozenset({13})), Start.MANUAL, "bastion")
    )
    chosen = draw(st.sampled_from(choices))
    whole = desired if chosen is None else desired.added(chosen)
    try:
        check_desired(whole)
    except VfioApError:
        return desired
    return whole


def _overlaps(matrix: Matrix, others: Iterable[Matrix]) -> bool:
    return any(set(matrix.queues()) & set(other.queues()) for other in others)


def text_of(desired: Desired) -> str:
    """As an admin wrote it: no command of ours sets the binding."""
    binding = f'[host]\nbinding = "{desired.binding}"\n' if desired.binding else ""
    return host_file.rewrite(f"version = 1\n{binding}", desired)


def pending(state: State) -> Plan | str:
    """What apply would do, or why it refuses."""
    try:
        return plan(state.snapshot, wishes.apply(state, state.desired).target)
    except VfioApError as error:
        return str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(states(), st.sampled_from(SOME_MASKS))
def test_any_host_is_adopted_without_a_step_or_told_what_does_not_fit(
    found: tuple[Snapshot, Desired, list[DefinitionFile]], boot: Mask
) -> None:
    snapshot, desired, files = found
    state = State(snapshot, desired)
    facts = Facts(state, tuple(files), (BootMasks(MaskSetter.CHZDEV, "/rule", apmask=boot),))
    proposal = propose(facts)

    adopted = {one.uuid for one in proposal.definitions}
    left = {one.uuid for one in proposal.findings if one.bars}
    assert adopted | left == {device.uuid for device in devices(facts)}
    assert not adopted & left
    assert propose(facts) == proposal, "the same host, the same names"

    wish = wishes.adopt(state, proposal.definitions)
    text = host_file.rewrite(text_of(desired), wish.desired)
    assert host_file.parse(text, "host.toml") == wish.desired
    made = plan(snapshot, wish.target)
    assert made.steps == ()
    assert not any(effect.loses or effect.gains for effect in made.guests)

    if adopted:
        before, after = pending(state), pending(State(snapshot, wish.desired))
        assert isinstance(after, str) == isinstance(before, str)
        if isinstance(after, Plan) and isinstance(before, Plan):
            assert set(map(describe, after.steps)) <= set(map(describe, before.steps))
            assert {g.guest for g in after.guests if g.loses} <= {g.guest for g in before.guests if g.loses}
    if desired == Desired() and snapshot.masks == HostMasks(EMPTY_MASK, EMPTY_MASK):
        assert Trouble.WOULD_CHANGE not in {one.code for one in proposal.findings}
    if desired == Desired() and not left:
        assert pending(State(snapshot, wish.desired)) == Plan()
