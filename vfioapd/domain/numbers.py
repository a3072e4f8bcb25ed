# SPDX-License-Identifier: Apache-2.0
"""Adapter and domain numbers, and the one rule by which a human may write them.

Decimal (``17``) or ``0x`` hexadecimal (``0x0011``). Everything that two readers could take for two
different numbers is refused with both readings, because lszcrypt prints ``0011`` for what libvirt and
the kernel call 17, and the kernel reads ``071`` as octal (lib/kstrtox.c, base 0).
"""

from __future__ import annotations

import re
from typing import NewType

from vfioapd.domain.problems import Problem, Refused

AdapterId = NewType("AdapterId", int)
DomainId = NewType("DomainId", int)

BITS = 256  # the architecture's limit for adapters and for domains
MAX_LIST = BITS * 4  # a list longer than this names numbers twice over

_DECIMAL = re.compile(r"0|[1-9][0-9]*")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_BARE_HEX = re.compile(r"[0-9a-fA-F]{1,8}")


def parse_adapter(text: str) -> AdapterId:
    """Read an adapter number, 0 to 255, decimal or 0x hexadecimal."""
    return AdapterId(_parse(text, "adapter", 2))


def parse_domain(text: str) -> DomainId:
    """Read a domain number, 0 to 255, decimal or 0x hexadecimal."""
    return DomainId(_parse(text, "domain", 4))


def parse_adapters(text: str) -> frozenset[AdapterId]:
    """Read a list such as ``5,7`` or ``0x00-0x03,5``."""
    return frozenset(map(AdapterId, _parse_list(text, "adapter", 2)))


def parse_domains(text: str) -> frozenset[DomainId]:
    """Read a list such as ``13,17`` or ``0x000d-0x0011``."""
    return frozenset(map(DomainId, _parse_list(text, "domain", 4)))


def check_adapter(number: int) -> AdapterId:
    """Take a number that came as one (TOML, RPC); refuse what no adapter can have."""
    return AdapterId(_in_range(number, "adapter", str(number)))


def check_domain(number: int) -> DomainId:
    """Take a number that came as one (TOML, RPC); refuse what no domain can have."""
    return DomainId(_in_range(number, "domain", str(number)))


def format_adapter(adapter: int) -> str:
    """Both bases, as every output shows them: ``5 (0x05)``."""
    return f"{adapter} (0x{adapter:02x})"


def format_domain(domain: int) -> str:
    """Both bases, as every output shows them: ``17 (0x0011)``."""
    return f"{domain} (0x{domain:04x})"


def _parse(text: str, kind: str, digits: int) -> int:
    if _DECIMAL.fullmatch(text):
        # Four digits are out of range already, and Python refuses to read more than 4300 of them.
        return _in_range(int(text[:4]), kind, text)
    if _HEX.fullmatch(text):
        return _in_range(int(text, 16), kind, text)
    raise Refused(
        Problem.BAD_NUMBER,
        f"{kind} {text!r} is not a number that can be read one way only",
        hint=_readings(text, digits),
    )


def _readings(text: str, digits: int) -> str:
    """Say what the text might have meant: every possible reading once, in the spelling that is accepted."""
    values: list[int] = []
    if _BARE_HEX.fullmatch(text):
        bases = (10, 16) if text.isdecimal() else (16,)
        values = [value for value in dict.fromkeys(int(text, base) for base in bases) if value < BITS]
    if not values:
        return "write it in decimal (17) or in hexadecimal with 0x (0x0011)"
    return "write " + " or ".join(f"{value} (0x{value:0{digits}x})" for value in values)


def _in_range(number: int, kind: str, text: str) -> int:
    if not 0 <= number < BITS:
        raise Refused(
            Problem.BAD_NUMBER,
            f"{kind} {text} is out of range",
            hint=f"an IBM Z host numbers {kind}s from 0 to {BITS - 1} (0x{BITS - 1:x})",
        )
    return number


def _parse_list(text: str, kind: str, digits: int) -> list[int]:
    numbers: list[int] = []
    for term in text.split(","):
        numbers.extend(_parse_term(term.strip(), kind, digits))
        if len(numbers) > MAX_LIST:
            raise Refused(Problem.BAD_NUMBER, f"the list of {kind}s is longer than {MAX_LIST} numbers")
    return numbers


def _parse_term(term: str, kind: str, digits: int) -> range:
    low_text, _, high_text = term.partition("-")
    if not (low_text and high_text):  # no range, or half of one, which is refused as it stands
        number = _parse(term, kind, digits)
        return range(number, number + 1)
    low, high = _parse(low_text, kind, digits), _parse(high_text, kind, digits)
    if high < low:
        # chzdev takes a reversed range by a slip of its comparison; nobody can have meant it.
        raise Refused(
            Problem.BAD_NUMBER,
            f"the range of {kind}s {term} runs backwards",
            hint=f"write {high_text}-{low_text}",
        )
    return range(low, high + 1)
