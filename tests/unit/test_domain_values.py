# SPDX-License-Identifier: Apache-2.0
"""Queues, masks and matrices: what is printed is read back, and nothing is read two ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioapd.domain.apqn import Apqn, format_apqns, parse_apqn, parse_apqns
from vfioapd.domain.mask import (
    ALL_HOST,
    EMPTY_MASK,
    FULL_MASK,
    HostMasks,
    Mask,
    format_ranges,
    parse_mask,
)
from vfioapd.domain.matrix import EMPTY_MATRIX, Matrix, matrix_of_queues
from vfioapd.domain.numbers import AdapterId, DomainId
from vfioapd.domain.problems import Problem, Refused

adapters = st.integers(0, 255).map(AdapterId)
domains = st.integers(0, 255).map(DomainId)
queues = st.builds(Apqn, adapters, domains)
masks = st.builds(Mask.of, st.sets(st.integers(0, 255)))


def queue(text: str) -> Apqn:
    return parse_apqn(text)


# --- queues ---------------------------------------------------------------------------------------


@given(queues)
def test_a_queue_is_read_as_it_is_printed(one: Apqn) -> None:
    assert parse_apqn(str(one)) == one
    assert parse_apqn(str(one).upper()) == one


@given(st.frozensets(queues, min_size=1, max_size=5))
def test_a_list_of_queues_is_read_as_it_is_printed(some: frozenset[Apqn]) -> None:
    assert parse_apqns(format_apqns(some)) == some


def test_a_queue_is_hexadecimal_and_sorts_by_adapter_first() -> None:
    assert queue("0a.0011") == Apqn(AdapterId(10), DomainId(17))
    assert format_apqns([queue("0a.0001"), queue("05.00ff"), queue("05.0011")]) == "05.0011, 05.00ff, 0a.0001"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        # chzdev and ap-check print 5.17 for what the kernel calls 05.0011: both readings are offered.
        ("5.17", "write 05.0017 (adapter 5, domain 23) or 05.0011 (adapter 5, domain 17)"),
        ("05.11", "write 05.0011 (adapter 5, domain 17) or 05.000b (adapter 5, domain 11)"),
        ("5.0x0011", "write 05.0011 (adapter 5, domain 17)"),  # 0x has one reading
        ("10.0x11", "write 10.0011 (adapter 16, domain 17) or 0a.0011 (adapter 10, domain 17)"),
        ("5.5", "write 05.0005 (adapter 5, domain 5)"),
        ("5.d", "write 05.000d (adapter 5, domain 13)"),
        ("05.00011", "write 05.0011 (adapter 5, domain 17) or 05.000b (adapter 5, domain 11)"),
        ("5.255", "write 05.00ff (adapter 5, domain 255)"),  # 0x255 is no domain
    ],
)
def test_a_loose_queue_is_refused_with_what_it_can_mean(text: str, hint: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_apqn(text)

    assert refused.value.problem is Problem.BAD_QUEUE
    assert repr(text) in str(refused.value)
    for reading in hint.removeprefix("write ").split(" or "):
        assert reading in str(refused.value.hint)
    assert str(refused.value.hint).count("(adapter") == hint.count("(adapter")


@pytest.mark.parametrize(
    "text",
    ["", "5", "0011", "05.", ".0011", "05.0011.", "05-0011", "05 0011", " 05.0011", "05.0011 ", "05.0011\n",
     "05.-011", "05.+011", "05.001g", "0٥.0011", "05.００11", "300.400", "9" * 5000 + "." + "9" * 5000],
)  # fmt: skip
def test_what_is_no_queue_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_apqn(text)

    assert refused.value.problem is Problem.BAD_QUEUE
    assert refused.value.hint == "queues are written in hexadecimal as lszcrypt prints them, such as 05.0011"


def test_a_queue_beyond_the_last_domain_is_out_of_range() -> None:
    with pytest.raises(Refused, match=r"domain 256 \(0x0100\), which is out of range") as refused:
        parse_apqn("05.0100")

    assert refused.value.hint == "domains end at 255 (0x00ff)"


@pytest.mark.parametrize("text", ["", "05.0011,", "05.0011,,05.0012", "05.0011 05.0012", "05.0011;05.0012"])
def test_a_list_with_a_gap_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_apqns(text)

    assert refused.value.problem is Problem.BAD_QUEUE


# --- masks ----------------------------------------------------------------------------------------


@given(masks)
def test_a_mask_is_read_as_it_is_printed(mask: Mask) -> None:
    assert parse_mask(str(mask)) == mask
    assert parse_mask(f"{mask}\n") == mask
    assert Mask.of(mask.numbers()) == mask
    assert len(str(mask)) == 66


@given(st.from_regex(r"0x[0-9a-fA-F]{1,64}", fullmatch=True))
def test_a_short_mask_fills_from_the_left(text: str) -> None:
    assert parse_mask(text) == parse_mask(text.ljust(66, "0"))
    assert str(parse_mask(text)) == text.ljust(66, "0").lower()


def test_the_leftmost_bit_is_number_zero() -> None:
    assert str(Mask.of([0])) == "0x8" + "0" * 63
    assert str(Mask.of([255])) == "0x" + "0" * 63 + "1"
    assert parse_mask("0x41").numbers() == (1, 7)
    assert parse_mask("0x" + "f" * 64) == FULL_MASK


@pytest.mark.parametrize(
    "text",
    ["", "\n", " ", "0x", "x", "0x\n", "0X41", "41", "0x4 1", " 0x41", "0x41 ", "0x41\n\n", "0xg", "-1", "+5",
     "0x" + "0" * 65, "0x٥"],
)  # fmt: skip
def test_mask_text_that_the_kernel_could_take_for_zero_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse_mask(text)

    assert refused.value.problem is Problem.BAD_MASK
    assert ("blank" if not text.strip() else repr(text.removesuffix("\n"))) in str(refused.value)
    assert "take every queue from the host" in str(refused.value.hint)


@given(masks, masks)
def test_masks_combine_as_sets_of_numbers(one: Mask, two: Mask) -> None:
    first, second = set(one.numbers()), set(two.numbers())

    assert set((one & two).numbers()) == first & second
    assert set((one | two).numbers()) == first | second
    assert set((one - two).numbers()) == first - second


@pytest.mark.parametrize("number", [-1, 256])
def test_a_mask_has_no_other_numbers(number: int) -> None:
    with pytest.raises(ValueError, match="no place in a mask"):
        Mask.of([number])
    with pytest.raises(ValueError, match="no place in a mask"):
        assert number not in FULL_MASK


@given(queues, masks, masks)
def test_the_host_owns_a_queue_while_both_bits_are_set(one: Apqn, apmask: Mask, aqmask: Mask) -> None:
    own, domain = Mask.of([one.adapter]), Mask.of([one.domain])

    assert HostMasks(apmask | own, aqmask | domain).owns(one)
    assert not HostMasks(apmask - own, aqmask | domain).owns(one)
    assert not HostMasks(apmask | own, aqmask - domain).owns(one)
    assert not HostMasks(apmask - own, aqmask - domain).owns(one)


@given(queues)
def test_a_fresh_kernel_gives_the_host_everything(one: Apqn) -> None:
    assert ALL_HOST.owns(one)
    assert not HostMasks(EMPTY_MASK, EMPTY_MASK).owns(one)


# --- matrices -------------------------------------------------------------------------------------


@given(st.frozensets(adapters, max_size=5), st.frozensets(domains, max_size=5))
def test_a_matrix_is_the_one_of_its_queues(some: frozenset[AdapterId], others: frozenset[DomainId]) -> None:
    matrix = Matrix(some, others, others)

    assert len(matrix.queues()) == len(some) * len(others)
    assert list(matrix.queues()) == sorted(matrix.queues())
    assert all(one in matrix for one in matrix.queues())
    assert matrix_of_queues(matrix.queues()) == (matrix if matrix.queues() else EMPTY_MATRIX)


@given(st.frozensets(queues, max_size=6))
def test_queues_make_a_matrix_or_the_missing_ones_are_named(wanted: frozenset[Apqn]) -> None:
    full = {Apqn(one.adapter, two.domain) for one in wanted for two in wanted}
    if full == wanted:
        matrix = matrix_of_queues(wanted)
        assert set(matrix.queues()) == wanted
        assert matrix.control_domains == matrix.domains
        return

    with pytest.raises(Refused) as refused:
        matrix_of_queues(wanted)
    assert refused.value.problem is Problem.NOT_A_MATRIX
    assert refused.value.queues == tuple(map(str, sorted(full - wanted)))


def test_holes_are_named_with_both_ways_out() -> None:
    with pytest.raises(Refused) as refused:
        matrix_of_queues(parse_apqns("05.0011,07.0012"))

    assert str(refused.value) == (
        "05.0011, 07.0012 are no matrix: one device would also hold 05.0012, 07.0011"
    )
    assert refused.value.hint == "add those queues, or define two matrices"


def test_a_control_domain_holds_no_queue() -> None:
    matrix = Matrix(frozenset({AdapterId(5)}), frozenset({DomainId(17)}), frozenset({DomainId(18)}))

    assert queue("05.0011") in matrix
    assert queue("05.0012") not in matrix
    assert queue("06.0011") not in matrix
    assert matrix.queues() == (queue("05.0011"),)


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (EMPTY_MASK, "none"),
        (FULL_MASK, "0-255"),
        (FULL_MASK - Mask.of([5]), "0-4,6-255"),
        (Mask.of([0, 2, 3, 255]), "0,2-3,255"),
    ],
)
def test_a_mask_is_shown_in_ranges(mask: Mask, text: str) -> None:
    assert format_ranges(mask) == text
