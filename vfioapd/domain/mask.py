# SPDX-License-Identifier: Apache-2.0
"""256-bit masks and the host's pair of them.

Bit 0 is the leftmost in every AP mask: ``0x8000…`` is number 0. In apmask and aqmask a **set** bit
belongs to the host's own drivers; only ``HostMasks`` knows that, so a polarity cannot be mixed up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.domain.numbers import BITS
from vfioapd.domain.problems import Problem, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vfioapd.domain.apqn import Apqn

_DIGITS = BITS // 4
_MASK = re.compile(rf"0x[0-9a-fA-F]{{1,{_DIGITS}}}")


@dataclass(frozen=True, slots=True)
class Mask:
    """A set of numbers 0 to 255 in the order of the kernel's masks."""

    bits: int = 0

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Mask:
        """The mask with exactly these numbers set."""
        return cls(sum(_bit(number) for number in set(numbers)))

    def __contains__(self, number: int) -> bool:
        return bool(self.bits & _bit(number))

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.bits & other.bits)

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.bits | other.bits)

    def __sub__(self, other: Mask) -> Mask:
        return Mask(self.bits & ~other.bits)

    def __str__(self) -> str:
        return f"0x{self.bits:0{_DIGITS}x}"

    def numbers(self) -> tuple[int, ...]:
        """The numbers that are set, ascending."""
        return tuple(number for number, bit in enumerate(f"{self.bits:0{BITS}b}") if bit == "1")


EMPTY_MASK = Mask(0)
FULL_MASK = Mask((1 << BITS) - 1)


def parse_mask(text: str) -> Mask:
    """Read a mask as the kernel prints it: 0x and up to 64 hexadecimal digits, filled from the left.

    The kernel would also take blank text, ``0x`` and ``x`` for an empty mask, which takes every queue
    from the host (ap_bus.c:ap_hex2bitmap). Here they are refused.
    """
    stripped = text.removesuffix("\n")
    if _MASK.fullmatch(stripped) is None:
        what = "blank" if not stripped.strip() else repr(stripped)
        raise Refused(
            Problem.BAD_MASK,
            f"mask text is {what}, not 0x and 1 to {_DIGITS} hexadecimal digits",
            hint="the kernel would read blank text as zero and take every queue from the host",
        )
    digits = stripped[2:]
    return Mask(int(digits, 16) << 4 * (_DIGITS - len(digits)))


def format_change(before: Mask, after: Mask) -> str:
    """The kernel's relative spelling of a change: ``-5,+7`` clears bit 5 and sets bit 7.

    Bits that do not change are not written, so that what another tool did to them meanwhile stays.
    """
    gone = [f"-{number}" for number in (before - after).numbers()]
    return ",".join(gone + [f"+{number}" for number in (after - before).numbers()])


def format_ranges(mask: Mask) -> str:
    """The set bits as lszdev prints them: ``0-4,6-255``."""
    starts = [number for number in mask.numbers() if number == 0 or number - 1 not in mask]
    ends = [number for number in mask.numbers() if number == BITS - 1 or number + 1 not in mask]
    spans = (f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return ",".join(spans) or "none"


@dataclass(frozen=True, slots=True)
class HostMasks:
    """apmask and aqmask: the host's drivers own a queue while **both** of its bits are set."""

    apmask: Mask = FULL_MASK
    aqmask: Mask = FULL_MASK

    def owns(self, queue: Apqn) -> bool:
        """Whether the host's own zcrypt drivers get this queue (ap_bus.c:ap_device_probe)."""
        return queue.adapter in self.apmask and queue.domain in self.aqmask


ALL_HOST = HostMasks()  # how a kernel without boot parameters starts


def _bit(number: int) -> int:
    if not 0 <= number < BITS:
        raise ValueError(f"{number} has no place in a mask of {BITS} bits")
    return 1 << (BITS - 1 - number)
