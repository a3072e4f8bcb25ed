# SPDX-License-Identifier: Apache-2.0
"""A number is read in one way only; what two readings could take differently is refused with both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioapd.domain import numbers
from vfioapd.domain.problems import Problem, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH = pytest.mark.parametrize("parse", [numbers.parse_adapter, numbers.parse_domain])
valid = st.integers(0, 255)


def refusal(parse: Callable[[str], object], text: str) -> Refused:
    with pytest.raises(Refused) as refused:
        parse(text)
    assert refused.value.problem is Problem.BAD_NUMBER
    return refused.value


@given(valid)
def test_decimal_and_hexadecimal_are_read_back(number: int) -> None:
    for spelling in (str(number), f"0x{number:x}", f"0x{number:02x}", f"0x{number:04x}", f"0x{number:04X}"):
        assert numbers.parse_adapter(spelling) == number
        assert numbers.parse_domain(spelling) == number


@given(valid)
def test_both_bases_in_output_say_the_same_number(number: int) -> None:
    for text in (numbers.format_adapter(number), numbers.format_domain(number)):
        decimal, _, hexadecimal = text.rstrip(")").partition(" (")
        assert numbers.parse_domain(decimal) == numbers.parse_domain(hexadecimal) == number
    assert numbers.format_adapter(5) == "5 (0x05)"
    assert numbers.format_domain(17) == "17 (0x0011)"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("0011", "write 11 (0x000b) or 17 (0x0011)"),
        ("000d", "write 13 (0x000d)"),
        ("071", "write 71 (0x0047) or 113 (0x0071)"),
        ("0b1", "write 177 (0x00b1)"),
        ("00", "write 0 (0x0000)"),  # both readings are one
        ("08", "write 8 (0x0008)"),
        ("0200", "write 200 (0x00c8)"),  # 0x0200 is no domain
        ("ff", "write 255 (0x00ff)"),
        ("5f", "write 95 (0x005f)"),
    ],
)
def test_a_bare_number_of_two_readings_is_refused_with_both(text: str, hint: str) -> None:
    refused = refusal(numbers.parse_domain, text)

    assert repr(text) in str(refused)
    assert refused.hint == hint


def test_an_adapter_is_offered_with_two_digits() -> None:
    assert refusal(numbers.parse_adapter, "010").hint == "write 10 (0x0a) or 16 (0x10)"


@given(st.from_regex(r"0[0-9]{1,2}", fullmatch=True))
def test_each_offered_reading_is_accepted_and_is_a_reading(text: str) -> None:
    offered = str(refusal(numbers.parse_domain, text).hint).removeprefix("write ").split(" or ")

    values = {numbers.parse_domain(one.split(" ")[0]) for one in offered}
    assert values == {int(text), int(text, 16)}


@BOTH
@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0x",
        "0X11",
        "-1",
        "+5",
        " 5",
        "5 ",
        "5\n",
        "5.0",
        "5_0",
        "0300",  # both readings are out of range
        "0o7",
        "1e1",
        "٥",
        "５",
        "²",
        "0x٥",
        "five",
    ],
)
def test_what_is_no_number_is_refused_with_the_two_ways_to_write_one(
    parse: Callable[[str], int], text: str
) -> None:
    refused = refusal(parse, text)

    assert repr(text) in str(refused)
    assert refused.hint == "write it in decimal (17) or in hexadecimal with 0x (0x0011)"


@BOTH
@pytest.mark.parametrize("text", ["256", "0x100", "99999", "1" * 5000, "0x" + "1" * 5000])
def test_what_no_host_has_is_out_of_range(parse: Callable[[str], int], text: str) -> None:
    refused = refusal(parse, text)

    assert "out of range" in str(refused)
    assert "0 to 255 (0xff)" in str(refused.hint)


@BOTH
@pytest.mark.parametrize("text", ["0" + "1" * 5000, "f" * 5000])
def test_a_reading_that_no_host_has_is_not_offered(parse: Callable[[str], int], text: str) -> None:
    assert str(refusal(parse, text).hint).startswith("write it in decimal")


@pytest.mark.parametrize("check", [numbers.check_adapter, numbers.check_domain])
@pytest.mark.parametrize("number", [-1, 256, 10**20])
def test_a_number_from_a_file_is_held_to_the_same_range(check: Callable[[int], int], number: int) -> None:
    with pytest.raises(Refused, match="out of range"):
        check(number)
    assert [check(0), check(255)] == [0, 255]


# --- lists ----------------------------------------------------------------------------------------

spellings = st.builds(lambda n, form: form.format(n), valid, st.sampled_from(["{}", "0x{:x}", "0x{:04x}"]))


@given(st.lists(st.tuples(valid, valid, st.booleans()), min_size=1, max_size=6))
def test_lists_and_ranges_name_what_they_span(terms: list[tuple[int, int, bool]]) -> None:
    texts, wanted = [], set()
    for one, two, in_hex in terms:
        low, high = sorted((one, two))
        form = "0x{:02x}-0x{:02x}" if in_hex else "{}-{}"
        texts.append(str(low) if low == high else form.format(low, high))
        wanted |= set(range(low, high + 1))
    if sum(abs(one - two) + 1 for one, two, _ in terms) > numbers.MAX_LIST:
        return

    assert numbers.parse_domains(",".join(texts)) == wanted
    assert numbers.parse_adapters(" , ".join(texts)) == wanted


@given(st.sets(valid, min_size=1))
def test_what_is_formatted_is_read_back(wanted: set[int]) -> None:
    assert numbers.parse_domains(",".join(f"0x{number:04x}" for number in sorted(wanted))) == wanted


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("9-5", "the range of domains 9-5 runs backwards", "write 5-9"),
        ("0x11-5", "runs backwards", "write 5-0x11"),
        ("1,0011", "'0011'", "write 11 (0x000b) or 17 (0x0011)"),
        ("1-0011", "'0011'", "write 11 (0x000b) or 17 (0x0011)"),
        ("1,256", "domain 256 is out of range", "0 to 255"),
        ("0-256", "domain 256 is out of range", "0 to 255"),
        ("", "domain ''", "write it in decimal"),
        ("1,,2", "domain ''", "write it in decimal"),
        ("1,", "domain ''", "write it in decimal"),
        ("1;2", "domain '1;2'", "write it in decimal"),
        ("1 2", "domain '1 2'", "write it in decimal"),
        ("-1", "domain '-1'", "write it in decimal"),
        ("5-", "domain '5-'", "write it in decimal"),
        ("-", "domain '-'", "write it in decimal"),
        ("1-2-3", "domain '2-3'", "write it in decimal"),
        ("5 -7", "domain '5 '", "write it in decimal"),
    ],
)
def test_a_bad_term_is_refused_under_its_own_name(text: str, words: str, hint: str) -> None:
    refused = refusal(numbers.parse_domains, text)

    assert words in str(refused)
    assert str(refused.hint).startswith(hint) or hint in str(refused.hint)


def test_a_list_cannot_be_made_to_grow_without_end() -> None:
    assert "longer than 1024" in str(refusal(numbers.parse_domains, ",".join(["0-255"] * 5)))
    assert len(numbers.parse_domains(",".join(["0-255"] * 4))) == 256
