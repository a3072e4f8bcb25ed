# SPDX-License-Identifier: Apache-2.0
"""A queue: one adapter crossed with one usage domain, written 05.0011 and never otherwise."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.domain.numbers import BITS, AdapterId, DomainId
from vfioapd.domain.problems import Problem, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

_QUEUE = re.compile(r"([0-9a-fA-F]{2})\.([0-9a-fA-F]{4})")
_LOOSE = re.compile(r"((?:0x)?[0-9a-fA-F]+)\.((?:0x)?[0-9a-fA-F]+)")


@dataclass(frozen=True, slots=True, order=True)
class Apqn:
    """One AP queue, written the way the kernel names it: 05.0011 is adapter 5, domain 17."""

    adapter: AdapterId
    domain: DomainId

    def __str__(self) -> str:
        return f"{self.adapter:02x}.{self.domain:04x}"


def parse_apqn(text: str) -> Apqn:
    """Read a queue as lszcrypt prints it: two hexadecimal digits, a dot, four hexadecimal digits."""
    match = _QUEUE.fullmatch(text)
    if match is None:
        raise Refused(Problem.BAD_QUEUE, f"queue {text!r} is not of the form 05.0011", hint=_hint(text))
    domain = int(match[2], 16)
    if domain >= BITS:
        raise Refused(
            Problem.BAD_QUEUE,
            f"queue {text} names domain {domain} (0x{domain:04x}), which is out of range",
            hint=f"domains end at {BITS - 1} (0x{BITS - 1:04x})",
        )
    return Apqn(AdapterId(int(match[1], 16)), DomainId(domain))


def parse_apqns(text: str) -> frozenset[Apqn]:
    """Read a list such as ``05.0011,07.0011``."""
    return frozenset(parse_apqn(term.strip()) for term in text.split(","))


def format_apqns(queues: Iterable[Apqn]) -> str:
    """Join queues for a sentence, sorted; long lists are not shortened, since each one matters."""
    return ", ".join(map(str, sorted(queues)))


def _hint(text: str) -> str:
    """chzdev and ap-check print 5.17 in decimal, the kernel 05.0011: offer what the text can mean."""
    match = _LOOSE.fullmatch(text)
    readings = dict.fromkeys(_readings(*match.groups())) if match else {}
    if not readings:
        return "queues are written in hexadecimal as lszcrypt prints them, such as 05.0011"
    return "write " + " or ".join(
        f"{queue} (adapter {queue.adapter}, domain {queue.domain})" for queue in readings
    )


def _readings(adapter: str, domain: str) -> list[Apqn]:
    found = []
    for base in (16, 10):
        try:
            pair = tuple(int(part, 16 if part.startswith("0x") else base) for part in (adapter, domain))
        except ValueError:  # hexadecimal letters have no decimal reading
            continue
        if max(pair) < BITS:
            found.append(Apqn(AdapterId(pair[0]), DomainId(pair[1])))
    return found
