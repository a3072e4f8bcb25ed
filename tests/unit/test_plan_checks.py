# SPDX-License-Identifier: Apache-2.0
"""Refusals: each names the queues, every owner, and the command that mends it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from doubles import uuid_of

from vfioapd.domain.apqn import parse_apqns
from vfioapd.domain.definition import Definition, Desired, Start
from vfioapd.domain.matrix import Matrix, matrix_of_queues
from vfioapd.domain.problems import Problem, Refused, VfioApError
from vfioapd.domain.snapshot import Card, ForeignDefinition, Guest, Kernel, Mdev, Mode, QueueState, Snapshot
from vfioapd.plan.checks import check_on_host
from vfioapd.plan.wish import State
from vfioapd.plan.wishes import Scope, attach, define, detach, start, stop, undefine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

FOREIGN, TORN = UUID(int=0xF0), UUID(int=0xF1)


def crossed(adapters: Iterable[int], domains: Iterable[int]) -> Matrix:
    return Matrix(frozenset(adapters), frozenset(domains), frozenset(domains))  # type: ignore[arg-type]


def of(queues: str) -> Matrix:
    return matrix_of_queues(parse_apqns(queues))


def wanted(name: str, matrix: Matrix, guest: str | None = None) -> Definition:
    return Definition(name, uuid_of(name), matrix, guest=guest)


S1A = wanted("s1a", of("05.000d,07.000d"))
S1B = wanted("s1b", of("05.0011,07.0011"))
S3 = wanted("s3", of("01.0011,03.0011"))
S4 = wanted("aw1", crossed([0, 1, 2, 3, 5, 7], [13, 17]))


def device(uuid: UUID, matrix: Matrix, *, in_use: bool = False) -> Mdev:
    return Mdev(uuid, matrix, frozenset(matrix.queues()), in_use)


def guest(
    name: str, *, running: bool = True, persistent: bool = True, live: tuple = (), config: tuple = ()
) -> Guest:
    return Guest(name, uuid_of(name), running, persistent, frozenset(live), frozenset(config))


HOST = Snapshot(
    cards=tuple(Card(number, "CEX8C", Mode.CCA) for number in range(8)),  # type: ignore[arg-type]
    queues=tuple(QueueState(queue, "cex4queue") for queue in crossed(range(8), (13, 17)).queues()),
    usage_domains=frozenset({13, 17}),  # type: ignore[arg-type]
)


def state(*definitions: Definition, disrupt: bool = False, **changes: object) -> State:
    mdevs = tuple(device(one.uuid, one.matrix) for one in definitions)
    host = replace(HOST, **{"mdevs": mdevs, **changes})
    return State(host, Desired(definitions=definitions), disrupt=disrupt)


def refusal(act: Callable[[], object]) -> VfioApError:
    with pytest.raises(VfioApError) as error:
        act()
    assert error.value.hint, "every refusal says how to mend it"
    assert "\n" not in str(error.value)
    return error.value


def test_a_workers_twelve_queues_are_refused_with_the_six_that_are_taken_and_their_three_owners() -> None:
    """Scenario S4 of the Redbook; one of the owners is a device that somebody made by hand."""
    by_hand = (device(S3.uuid, S3.matrix),)
    host = state(S1A, S1B, mdevs=(*state(S1A, S1B).snapshot.mdevs, *by_hand))
    error = refusal(lambda: define(host, S4))
    assert error.problem is Problem.QUEUE_TAKEN
    assert sorted(error.queues) == ["01.0011", "03.0011", "05.000d", "05.0011", "07.000d", "07.0011"]
    stranger = f"mdev {S3.uuid}, not defined by vfioapd"
    assert dict(zip(error.queues, error.owners, strict=True)) == {
        "01.0011": stranger,
        "03.0011": stranger,
        "05.000d": "matrix s1a",
        "07.000d": "matrix s1a",
        "05.0011": "matrix s1b",
        "07.0011": "matrix s1b",
    }
    for one in ("05.000d, 07.000d (held by matrix s1a)", f"01.0011, 03.0011 (held by {stranger})"):
        assert one in str(error)
    for command in ("vfioapctl undefine s1a", "vfioapctl undefine s1b", f"mdevctl stop -u {S3.uuid}"):
        assert str(error.hint).count(command) == 1


def test_queues_of_somebody_elses_definition_are_refused_although_it_is_not_active() -> None:
    foreign = (ForeignDefinition(FOREIGN, S3.matrix, starts_itself=True),)
    error = refusal(lambda: define(state(foreign_definitions=foreign), S4))
    assert error.problem is Problem.QUEUE_TAKEN
    assert set(error.queues) == {"01.0011", "03.0011"}
    assert f"mdevctl undefine -u {FOREIGN}" in str(error.hint)


@pytest.mark.parametrize(
    "changes",
    [
        {"mdevs": (device(S4.uuid, of("06.000d")),)},
        {"foreign_definitions": (ForeignDefinition(S4.uuid, of("06.000d"), starts_itself=False),)},
    ],
    ids=["device", "definition"],
)
def test_a_uuid_that_somebody_else_uses_is_refused_even_without_a_common_queue(
    changes: dict[str, object],
) -> None:
    error = refusal(lambda: define(state(**changes), S4))
    assert error.problem is Problem.UUID_TAKEN
    assert error.owners == (f"mdev {S4.uuid}",)
    assert f"-u {S4.uuid}" in str(error.hint)


MISREAD = [
    (crossed([0], [11]), "00.000b", "domain 11 (0x000b); did you mean 17 (0x0011)?"),  # Example 4-6
    (crossed([0], [23]), "00.0017", "domain 23 (0x0017); did you mean 17 (0x0011)?"),  # 0x17 for 17
    (crossed([0], [19]), "00.0013", "domain 19 (0x0013); did you mean 13 (0x000d)?"),
    (crossed([9], [17]), "09.0011", "adapter 9 (0x09)"),
    (crossed([0x15], [17]), "15.0011", "adapter 21 (0x15)"),
]


@pytest.mark.parametrize(("matrix", "queue", "hint"), MISREAD, ids=[case[1] for case in MISREAD])
def test_a_queue_that_is_not_there_is_named_and_a_number_read_in_the_wrong_base_is_recognised(
    matrix: Matrix, queue: str, hint: str
) -> None:
    error = refusal(lambda: define(state(), wanted("x", matrix)))
    assert error.problem is Problem.QUEUE_NOT_ON_HOST
    assert error.queues == (queue,)
    assert hint in str(error.hint)


def test_a_right_number_beside_a_wrong_one_is_not_blamed() -> None:
    error = refusal(lambda: define(state(), wanted("x", crossed([0, 9], [13, 17]))))
    assert error.queues == ("09.000d", "09.0011")
    assert error.hint == "there is no adapter 9 (0x09)"


def test_a_machine_that_lists_no_domains_is_not_said_to_lack_one_that_it_has() -> None:
    without_qci = replace(HOST, usage_domains=frozenset())
    error = refusal(lambda: check_on_host(wanted("x", crossed([9], [17])), without_qci))
    assert error.hint == "there is no adapter 9 (0x09)"


def test_a_matrix_that_this_kernel_cannot_show_without_harm_is_refused() -> None:
    """Linux 6.1 writes past the end of a page when more than 511 pairs are read."""
    adapters, domains = range(8), range(64)
    present = tuple(QueueState(queue, None) for queue in crossed(adapters, domains).queues())
    host = replace(HOST, queues=present, kernel=Kernel(ap_config=False))
    error = refusal(lambda: check_on_host(wanted("x", crossed(adapters, domains)), host))
    assert error.problem is Problem.NOT_A_MATRIX
    assert "512" in str(error)
    check_on_host(wanted("x", crossed(range(7), domains)), host)
    check_on_host(wanted("x", crossed(adapters, domains)), replace(host, kernel=Kernel()))


def test_a_second_device_for_a_guest_is_refused_with_the_command_that_takes_the_first() -> None:
    """Scenario S3: the book does not say that S2's device must leave bastion first."""
    host = state(S1A, S3, guests=(guest("bastion", live=(S1A.uuid,), config=(S1A.uuid,)),))
    for act in (
        lambda: attach(host, "s3", "bastion", Scope.BOTH),
        lambda: define(host, wanted("new", of("06.0011"), guest="bastion")),
    ):
        error = refusal(act)
        assert error.problem is Problem.GUEST_HAS_MATRIX
        assert error.owners == ("matrix s1a",)
        assert "vfioapctl detach s1a bastion" in str(error.hint)


@pytest.mark.parametrize("place", ["live", "config"])
def test_a_strangers_device_in_either_document_counts_too(place: str) -> None:
    host = state(S3, guests=(guest("bastion", **{place: (FOREIGN,)}),))
    error = refusal(lambda: attach(host, "s3", "bastion", Scope.CONFIG))
    assert error.problem is Problem.GUEST_HAS_MATRIX
    assert str(FOREIGN) in str(error)
    assert "virsh edit bastion" in str(error.hint)


@pytest.mark.parametrize("place", ["live", "config"])
def test_a_matrix_that_another_guest_has_is_refused_with_its_queues(place: str) -> None:
    host = state(S3, guests=(guest("bastion"), guest("other", **{place: (S3.uuid,)})))
    error = refusal(lambda: attach(host, "s3", "bastion", Scope.BOTH))
    assert error.problem is Problem.MATRIX_IN_USE
    assert error.owners == ("guest other",)
    assert error.queues == ("01.0011", "03.0011")
    assert "vfioapctl detach s3 other" in str(error.hint)


def test_a_device_in_use_is_neither_stopped_nor_forgotten() -> None:
    host = state(S3, guests=(guest("bastion", live=(S3.uuid,)),))
    unknown = state(S3, mdevs=(device(S3.uuid, S3.matrix, in_use=True),))
    for act in (stop, undefine):
        error = refusal(lambda act=act: act(host, ["s3"]))
        assert (error.problem, error.owners) == (Problem.MATRIX_IN_USE, ("guest bastion",))
        assert "vfioapctl detach s3 bastion" in str(error.hint)
        error = refusal(lambda act=act: act(unknown, ["s3"]))
        assert error.owners == ("a guest that libvirt does not know",)


def test_a_matrix_that_a_guest_starts_with_is_not_forgotten_but_may_be_stopped() -> None:
    host = state(S3, guests=(guest("bastion", running=False, config=(S3.uuid,)),))
    error = refusal(lambda: undefine(host, ["s3"]))
    assert error.owners == ("the definition of guest bastion",)
    stop(host, ["s3"])


def test_a_matrix_whose_guest_cannot_be_asked_is_not_forgotten() -> None:
    host = state(replace(S3, guest="bastion"), guests=None)
    assert refusal(lambda: undefine(host, ["s3"])).problem is Problem.LIBVIRT_UNAVAILABLE


UNREACHABLE = [
    ("no libvirt", {"guests": None}, "bastion", Scope.BOTH, Problem.LIBVIRT_UNAVAILABLE),
    ("no such guest", {}, "ghost", Scope.BOTH, Problem.UNKNOWN_GUEST),
    ("shut off", {"guests": (guest("g", running=False),)}, "g", Scope.LIVE, Problem.GUEST_NOT_RUNNING),
    ("transient", {"guests": (guest("g", persistent=False),)}, "g", Scope.CONFIG, Problem.GUEST_NOT_DEFINED),
]


@pytest.mark.parametrize(
    ("changes", "name", "scope", "problem"),
    [case[1:] for case in UNREACHABLE],
    ids=[case[0] for case in UNREACHABLE],
)
def test_a_guest_that_cannot_be_given_anything_is_refused_by_name(
    changes: dict[str, object], name: str, scope: Scope, problem: Problem
) -> None:
    error = refusal(lambda: attach(state(S3, **changes), "s3", name, scope))
    assert error.problem is problem
    assert name in str(error)


def test_an_unknown_guest_or_matrix_is_refused_with_the_names_there_are() -> None:
    host = state(S1A, S3, guests=(guest("bastion"), guest("aw1")))
    assert "aw1, bastion" in str(refusal(lambda: attach(host, "s3", "ghost", Scope.BOTH)).hint)
    for act in (start, stop, undefine):
        assert "s1a, s3" in str(refusal(lambda act=act: act(host, ["ghost"])).hint)


def test_without_vfio_ap_nothing_is_started_but_definitions_may_be_made() -> None:
    host = state(kernel=Kernel(vfio_ap=False, ap_config=False))
    assert refusal(lambda: define(host, S3)).problem is Problem.VFIO_AP_MISSING
    define(host, replace(S3, start=Start.MANUAL))


def test_detaching_is_possible_from_a_guest_that_is_no_more_but_not_from_one_that_never_was() -> None:
    host = state(replace(S3, guest="gone"))
    assert detach(host, "s3", "gone", Scope.BOTH).desired.get("s3").guest is None
    assert refusal(lambda: detach(host, "s3", "never", Scope.BOTH)).problem is Problem.UNKNOWN_GUEST


def test_a_name_that_is_taken_is_the_first_thing_said() -> None:
    error = refusal(lambda: define(state(S1A), replace(S1A, uuid=uuid_of("other"))))
    assert isinstance(error, Refused)
    assert error.problem is Problem.NAME_TAKEN
    assert error.owners == ("s1a",)
