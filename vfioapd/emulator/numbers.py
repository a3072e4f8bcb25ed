# SPDX-License-Identifier: Apache-2.0
"""The kernel's number and mask grammars: text of one write to a value, or the kernel's errno.

Masks are kept as integers whose bit n stands for number n; only `format_mask` and the parsers know
that the kernel prints number 0 leftmost.
"""

import errno
import os
import re
from collections.abc import Iterable, Iterator

MASK_BITS = 256
FULL_MASK = (1 << MASK_BITS) - 1
U64 = 1 << 64
# What one mask of ap_config takes: "0x", 64 digits and a separator; three of them are looked at.
AP_CONFIG_BYTES = 3 * 67

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")
_SIGNED = re.compile(r"[ \t\n\v\f\r]*(-?[0-9]+)")
_SIGNED_ANY_BASE = re.compile(r"[ \t\n\v\f\r]*(-?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_UNSIGNED = re.compile(r"[ \t\n\v\f\r]*([0-9]+)")
_HEX = re.compile(r"[0-9a-fA-F]*")
_SEPARATORS = re.compile(r"[,\n]*")


def refuse(code: int) -> OSError:
    """The error a refused access ends with."""
    return OSError(code, os.strerror(code))


def c_string(text: str) -> str:
    """Cut at the first NUL, as every parser of the kernel does."""
    return text.partition("\0")[0]


def bits(mask: int) -> Iterator[int]:
    """The numbers in a mask, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def mask_of(numbers: Iterable[int]) -> int:
    """The mask that holds these numbers."""
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


def format_mask(mask: int) -> str:
    """0x and 64 lowercase digits, number 0 leftmost; no newline."""
    return f"0x{int(f'{mask:0256b}'[::-1], 2):064x}"


def _value(digits: str) -> int:
    if digits[:2] in ("0x", "0X"):
        return int(digits, 16)
    return int(digits, 8) if digits[0] == "0" else int(digits)


def parse_unsigned(text: str) -> int:
    """kstrtoul with base 0: EINVAL for anything odd, ERANGE from 2^64."""
    text = c_string(text)
    body = text[1:] if text[:1] == "+" else text
    found = _NUMBER.match(body)
    if not found:
        raise refuse(errno.EINVAL)
    value = _value(found.group())
    # The kernel looks at the size before it looks at what follows the digits.
    if value >= U64:
        raise refuse(errno.ERANGE)
    if body[found.end() :] not in ("", "\n"):
        raise refuse(errno.EINVAL)
    return value


def scan_int(text: str) -> int:
    """sscanf("%d"): leading white space and anything after the digits do not matter."""
    found = _SIGNED.match(c_string(text))
    if not found:
        raise refuse(errno.EINVAL)
    return _to_int(int(found.group(1)))


def scan_int_any_base(text: str) -> int:
    """sscanf("%i"): as scan_int, with 0x and leading-0 octal."""
    found = _SIGNED_ANY_BASE.match(c_string(text))
    if not found:
        raise refuse(errno.EINVAL)
    value = _value(found.group(2))
    return _to_int(-value if found.group(1) else value)


def scan_unsigned(text: str) -> int:
    """sscanf("%llu"), wrapping at 2^64."""
    found = _UNSIGNED.match(c_string(text))
    if not found:
        raise refuse(errno.EINVAL)
    return int(found.group(1)) % U64


def _to_int(value: int) -> int:
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def parse_bool(text: str, *, knows_enable: bool) -> bool:
    """kstrtobool: one letter or on/off decides, the rest is ignored.

    `knows_enable`: the kernel takes the first letter of enable and disable too (7.3).
    """
    head = c_string(text)[:2]
    if knows_enable and head[:1] in ("e", "E", "d", "D"):
        return head[:1] in ("e", "E")
    if head[:1] in ("y", "Y", "t", "T", "1") or head in ("on", "oN", "On", "ON"):
        return True
    if head[:1] in ("n", "N", "f", "F", "0") or (head[:1] in ("o", "O") and head[1:] in ("f", "F")):
        return False
    raise refuse(errno.EINVAL)


def parse_absolute_mask(text: str) -> int:
    """Hex digits from the left, up to 64; an optional 0x or x before, one newline after."""
    text = c_string(text)
    if text.startswith("0x"):
        text = text[1:]
    if text.startswith("x"):
        text = text[1:]
    digits = _HEX.match(text[: MASK_BITS // 4])
    assert digits is not None  # the pattern matches the empty string
    if text[digits.end() :] not in ("", "\n"):
        raise refuse(errno.EINVAL)
    padded = digits.group().ljust(MASK_BITS // 4, "0")
    return int(f"{int(padded, 16):0256b}"[::-1], 2)


def parse_mask(text: str, current: int, *, wraps: bool) -> int:
    """A write to apmask or aqmask: absolute, or relative to `current` when it starts with a sign.

    `wraps`: the kernel takes a number modulo 2^64 (before 7.3) instead of refusing 2^64 and above.
    """
    text = c_string(text)
    if text[:1] not in ("+", "-"):
        return parse_absolute_mask(text)
    at = 0
    while at < len(text):
        sign = text[at]
        if sign not in "+-":
            raise refuse(errno.EINVAL)
        first, at = _mask_number(text, at + 1, wraps=wraps)
        last = first
        if text[at : at + 1] == "-":
            last, at = _mask_number(text, at + 1, wraps=wraps)
        if first > last:
            raise refuse(errno.EINVAL)
        term = ((1 << (last - first + 1)) - 1) << first
        current = current | term if sign == "+" else current & ~term
        at = _skip_separators(text, at)
    return current


def _mask_number(text: str, at: int, *, wraps: bool) -> tuple[int, int]:
    found = _NUMBER.match(text, at)
    if not found:
        raise refuse(errno.EINVAL)
    value = _value(found.group())
    if wraps:
        value %= U64
    if value >= MASK_BITS:
        raise refuse(errno.EINVAL)
    return value, found.end()


def _skip_separators(text: str, at: int) -> int:
    found = _SEPARATORS.match(text, at)
    return found.end() if found else at


def parse_ap_config(text: str) -> tuple[int, int, int]:
    """A write to ap_config: adapters, domains, control domains, each ended by a comma or a newline."""
    rest = c_string(text)[:AP_CONFIG_BYTES]
    fields = re.split(r"[,\n]", rest)
    if len(fields) < 3:
        raise refuse(errno.EINVAL)
    return parse_absolute_mask(fields[0]), parse_absolute_mask(fields[1]), parse_absolute_mask(fields[2])
