# SPDX-License-Identifier: Apache-2.0
"""The kernel's number and mask grammars."""

from __future__ import annotations

import pytest
from emulated import errno_of
from hypothesis import given
from hypothesis import strategies as st

from vfioapd.emulator.numbers import (
    FULL_MASK,
    bits,
    format_mask,
    mask_of,
    parse_absolute_mask,
    parse_ap_config,
    parse_bool,
    parse_mask,
    parse_unsigned,
    scan_int,
    scan_int_any_base,
)


@given(st.integers(0, FULL_MASK))
def test_a_mask_survives_its_text(mask: int) -> None:
    assert parse_absolute_mask(format_mask(mask) + "\n") == mask


@given(st.sets(st.integers(0, 255)))
def test_number_0_is_the_leftmost_bit(numbers: set[int]) -> None:
    text = format_mask(mask_of(numbers))
    assert {n for n in range(256) if int(text, 16) >> (255 - n) & 1} == numbers
    assert set(bits(mask_of(numbers))) == numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("+3\n", 3), ("0x1f\n", 31), ("0X1f", 31), ("010\n", 8), ("0\n", 0), ("1\x002", 1)],
)
def test_kstrtoul_takes(text: str, value: int) -> None:
    assert parse_unsigned(text) == value


@pytest.mark.parametrize(
    ("text", "error"),
    [
        *((text, "EINVAL") for text in ("", "\n", " 3", "3 ", "-1", "08", "0x", "3\n\n", "1e1", "++3")),
        ("18446744073709551616", "ERANGE"),
        ("18446744073709551616 ", "ERANGE"),
    ],
)
def test_kstrtoul_refuses(text: str, error: str) -> None:
    assert errno_of(lambda: parse_unsigned(text)) == error


def test_sscanf_ignores_what_follows_the_digits() -> None:
    assert scan_int(" \t12abc") == 12
    assert scan_int("-1") == -1
    assert scan_int("0x10") == 0
    assert scan_int_any_base("0x10 ") == 16
    assert errno_of(lambda: scan_int("+1")) == "EINVAL"


@pytest.mark.parametrize(
    ("text", "value"), [("y", True), ("1x", True), ("ON", True), ("off", False), ("N", False)]
)
def test_kstrtobool_looks_at_the_beginning(text: str, *, value: bool) -> None:
    for knows_enable in (False, True):
        assert parse_bool(text, knows_enable=knows_enable) is value


def test_kstrtobool_refuses_other_words() -> None:
    for text in ("2", "ox", "enable", "disable"):
        assert errno_of(lambda text=text: parse_bool(text, knows_enable=False)) == "EINVAL"


def test_kstrtobool_of_newer_kernels_takes_enable_and_disable() -> None:
    assert parse_bool("enabled\n", knows_enable=True) is True
    assert parse_bool("Disable", knows_enable=True) is False


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("-5,-7", [5, 7]),
        ("-0-255,+1-16", [n for n in range(256) if not 1 <= n <= 16]),
        ("-1,-2,,\n\n", [1, 2]),
        ("-1+1", []),
        ("-0x0a\n", [10]),
        ("-010", [8]),
    ],
)
def test_relative_masks_clear_and_set_from_left_to_right(text: str, kept: list[int]) -> None:
    assert parse_mask(text, FULL_MASK, wraps=False) == FULL_MASK & ~mask_of(kept)


@pytest.mark.parametrize("text", ["-5-3", "-256", "-1-", "- 1", "-1 ", "-+1", "+", "-08", "-0x", "-1;2"])
def test_relative_masks_refuse(text: str) -> None:
    assert errno_of(lambda: parse_mask(text, FULL_MASK, wraps=True)) == "EINVAL"


@pytest.mark.parametrize("text", ["0X8\n", "0x8\n\n", " 0x8", "0x" + "f" * 65, "0xg", "0xx", "1,2"])
def test_absolute_masks_refuse(text: str) -> None:
    assert errno_of(lambda: parse_absolute_mask(text)) == "EINVAL"


@pytest.mark.parametrize("text", ["", "\n", "x", "0x", "0x\n", "0"])
def test_a_blank_mask_clears_everything(text: str) -> None:
    assert parse_absolute_mask(text) == 0


def test_ap_config_needs_three_ended_fields() -> None:
    assert parse_ap_config("0x04,0x08,0x08\n") == (mask_of([5]), mask_of([4]), mask_of([4]))
    assert parse_ap_config("0x04,0x08\n") == (mask_of([5]), mask_of([4]), 0)
    assert parse_ap_config(",\n") == (0, 0, 0)
    for text in ("0x04,0x08", "0x04\n", "\n", "+5,+4,+4\n", "0x04, 0x08,0x08\n"):
        assert errno_of(lambda text=text: parse_ap_config(text)) == "EINVAL"
