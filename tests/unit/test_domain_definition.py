# SPDX-License-Identifier: Apache-2.0
"""A desired state that contradicts itself is refused, with what, who and how to mend it."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioapd.domain.apqn import parse_apqns
from vfioapd.domain.definition import Definition, Desired, check_desired, check_name, parse_uuid
from vfioapd.domain.matrix import Matrix
from vfioapd.domain.numbers import AdapterId, DomainId
from vfioapd.domain.problems import Problem, Refused


def definition(
    name: str, adapters: set[int], domains: set[int], *, uuid: int | None = None, guest: str | None = None
) -> Definition:
    used = frozenset(map(DomainId, domains))
    matrix = Matrix(frozenset(map(AdapterId, adapters)), used, used)
    return Definition(name, UUID(int=sum(map(ord, name)) if uuid is None else uuid), matrix, guest=guest)


BASTION = definition("bastion", {5, 7}, {17}, guest="bastion")


def refusal(*definitions: Definition, keep: str = "00.000d") -> Refused:
    with pytest.raises(Refused) as refused:
        check_desired(Desired(parse_apqns(keep), definitions))
    return refused.value


def test_definitions_that_share_no_queue_are_accepted() -> None:
    same_domain = definition("vault", {6}, {17}, guest="vault")
    same_adapter = definition("spare", {5}, {18})
    second_without_guest = definition("other", {5}, {19})

    check_desired(Desired(parse_apqns("00.000d"), (BASTION, same_domain, same_adapter, second_without_guest)))
    check_desired(Desired())


def test_a_taken_name_is_refused() -> None:
    refused = refusal(BASTION, definition("bastion", {8}, {17}, uuid=9))

    assert refused.problem is Problem.NAME_TAKEN
    assert str(refused) == f"the name bastion is taken: matrix bastion is defined already, as {BASTION.uuid}"
    assert refused.hint == "choose another name, or undefine bastion first"
    assert refused.owners == ("bastion",)


def test_a_taken_uuid_is_refused() -> None:
    refused = refusal(BASTION, definition("vault", {8}, {17}, uuid=BASTION.uuid.int))

    assert refused.problem is Problem.UUID_TAKEN
    assert str(refused) == f"matrix vault cannot have UUID {BASTION.uuid}: it belongs to matrix bastion"
    assert refused.hint == "choose another UUID, or leave it out to have one made"
    assert refused.owners == ("bastion",)


def test_each_shared_queue_is_named_with_its_owner() -> None:
    refused = refusal(BASTION, definition("vault", {5, 6, 7}, {16, 17}))

    assert refused.problem is Problem.QUEUE_TAKEN
    assert str(refused) == "matrix vault cannot have 05.0011, 07.0011 (held by matrix bastion)"
    assert refused.hint == "free them first: vfioapctl detach bastion bastion; vfioapctl undefine bastion"
    assert refused.queues == ("05.0011", "07.0011")
    assert refused.owners == ("matrix bastion", "matrix bastion")


def test_queues_of_several_owners_are_named_by_owner_with_every_mend() -> None:
    spare = definition("spare", {6}, {17})

    refused = refusal(BASTION, spare, definition("vault", {5, 6, 7}, {17}))

    assert str(refused) == (
        "matrix vault cannot have 05.0011, 07.0011 (held by matrix bastion), 06.0011 (held by matrix spare)"
    )
    assert refused.hint == (
        "free them first: vfioapctl detach bastion bastion; vfioapctl undefine bastion; "
        "vfioapctl undefine spare"
    )
    assert refused.queues == ("05.0011", "06.0011", "07.0011")
    assert refused.owners == ("matrix bastion", "matrix spare", "matrix bastion")


def test_a_queue_that_the_host_keeps_is_refused() -> None:
    refused = refusal(BASTION, keep="07.0011,05.0011,05.0012")

    assert refused.problem is Problem.QUEUE_KEPT_BY_HOST
    assert str(refused) == "matrix bastion cannot have 05.0011, 07.0011: kept by the host ([host] keep)"
    assert refused.hint == "leave it out of bastion, or take it out of keep"
    assert refused.queues == ("05.0011", "07.0011")
    assert refused.owners == ("host",)


def test_a_second_device_for_one_guest_is_refused() -> None:
    refused = refusal(BASTION, definition("vault", {8}, {17}, guest="bastion"))

    assert refused.problem is Problem.GUEST_HAS_MATRIX
    assert str(refused) == (
        "guest bastion cannot have matrix vault: it has matrix bastion, and a guest takes one vfio-ap device"
    )
    assert refused.hint == "detach that first: vfioapctl detach bastion bastion"
    assert refused.owners == ("matrix bastion",)


@pytest.mark.parametrize(
    ("adapters", "domains", "missing"),
    [({5}, set(), "domain"), (set(), {17}, "adapter"), (set(), set(), "adapter")],
)
def test_a_matrix_without_a_queue_is_refused(adapters: set[int], domains: set[int], missing: str) -> None:
    refused = refusal(definition("vault", adapters, domains))

    assert refused.problem is Problem.INCOMPLETE_MATRIX
    assert str(refused) == f"matrix vault has no {missing}, so it holds no queue"
    assert "--adapters 5,7 --domains 17" in str(refused.hint)


def test_the_first_contradiction_in_the_order_of_the_file_is_named() -> None:
    refused = refusal(BASTION, definition("first", {5}, {17}), definition("second", {7}, {17}))

    assert "matrix first" in str(refused)


def test_control_domains_may_be_shared() -> None:
    other = definition("vault", {8}, {18})
    both = Matrix(other.matrix.adapters, other.matrix.domains, frozenset({DomainId(17), DomainId(18)}))

    check_desired(Desired(frozenset(), (BASTION, Definition("vault", other.uuid, both))))


# --- the parts ------------------------------------------------------------------------------------


@given(st.uuids())
def test_a_uuid_is_read_in_the_kernels_form_in_any_case(uuid: UUID) -> None:
    assert parse_uuid(str(uuid)) == parse_uuid(str(uuid).upper()) == uuid


@pytest.mark.parametrize(
    "text",
    ["", "825b3872", "825b3872000100030011 28a403f8b357", "825b387200010003001128a403f8b357",
     "{825b3872-0001-0003-0011-28a403f8b357}", "urn:uuid:825b3872-0001-0003-0011-28a403f8b357",
     " 825b3872-0001-0003-0011-28a403f8b357", "825b3872-0001-0003-0011-28a403f8b357\n",
     "825b3872-0001-0003-0011-28a403f8b35g", "825b3872-0001-0003-0011-28a403f8b35٥"],
)  # fmt: skip
def test_what_the_kernel_would_not_take_is_no_uuid(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_uuid(text)

    assert refused.value.problem is Problem.BAD_UUID
    assert "8-4-4-4-12" in str(refused.value.hint)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True))
def test_a_plain_name_is_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-x", ".x", "_x", "a b", "a/b", "a\n", "größe", "x" * 65, "٥", "a'b"])
def test_a_name_that_could_be_taken_for_something_else_is_refused(name: str) -> None:
    with pytest.raises(Refused) as refused:
        check_name(name)

    assert refused.value.problem is Problem.BAD_NAME
    assert repr(name) in str(refused.value)


def test_a_definition_takes_the_place_of_its_namesake() -> None:
    vault, spare = definition("vault", {6}, {17}), definition("spare", {8}, {17})
    bigger = definition("bastion", {5, 7, 9}, {17})
    desired = Desired(frozenset(), (BASTION, vault))

    assert desired.with_definition(bigger).definitions == (bigger, vault)
    assert desired.with_definition(spare).definitions == (BASTION, vault, spare)
    assert desired.without("bastion").definitions == (vault,)
    assert desired.without("nobody") == desired
    assert desired.by_uuid(vault.uuid) == vault
    assert desired.by_uuid(UUID(int=1)) is None


def test_an_unknown_matrix_is_refused_with_those_there_are() -> None:
    with pytest.raises(Refused) as some:
        Desired(frozenset(), (BASTION,)).get("vault")
    with pytest.raises(Refused) as none:
        Desired().get("vault")

    assert some.value.problem is Problem.UNKNOWN_MATRIX
    assert (some.value.hint, none.value.hint) == ("defined matrices: bastion", "defined matrices: none")
    assert Desired(frozenset(), (BASTION,)).get("bastion") is BASTION
