# SPDX-License-Identifier: Apache-2.0
"""The hardware under the kernel: what the AP instructions answer. Changed by the HMC and by faults.

Nothing here knows of drivers or files; the kernel sees a change at its next scan.
"""

import errno
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from .numbers import bits, refuse

# Function bits of ap_functions, as lszcrypt -V prints them: S M C D A X N H F.
FUNCTION_APSC = 0x80000000
FUNCTION_MEX4K = 0x40000000
FUNCTION_CRT4K = 0x20000000
FUNCTION_CCA = 0x10000000
FUNCTION_ACCEL = 0x08000000
FUNCTION_EP11 = 0x04000000
FUNCTION_APXA = 0x02000000
FUNCTION_FILTER = 0x01000000
FUNCTION_FULL = 0x00800000


class Mode(StrEnum):
    """What a card does; the word of the MODE= key."""

    CCA = "cca"
    ACCEL = "accel"
    EP11 = "ep11"

    @property
    def letter(self) -> str:
        return {Mode.CCA: "C", Mode.ACCEL: "A", Mode.EP11: "P"}[self]


class Status(StrEnum):
    OK = "ok"
    DECONFIGURED = "deconfigured"
    CHECKSTOPPED = "checkstopped"


class Answer(IntEnum):
    """Response codes of TAPQ that matter here."""

    NORMAL = 0
    NOT_AVAILABLE = 1
    RESET_IN_PROGRESS = 2
    DECONFIGURED = 3
    CHECKSTOPPED = 4
    BUSY = 5

    @classmethod
    def _missing_(cls, _value: object) -> "Answer":
        return cls.NOT_AVAILABLE  # with any other code the queue tells nothing about itself


# What lszcrypt -V prints of CEX8S on an LPAR: S--D--NF-, -MC-A-NF-, -----XNF-. The tool that printed it
# had no place for the H of FUNCTION_FILTER yet, so nothing is known of that bit.
DEFAULT_FUNCTIONS = {
    Mode.CCA: FUNCTION_APSC | FUNCTION_CCA | FUNCTION_APXA | FUNCTION_FULL,
    Mode.ACCEL: FUNCTION_MEX4K | FUNCTION_CRT4K | FUNCTION_ACCEL | FUNCTION_APXA | FUNCTION_FULL,
    Mode.EP11: FUNCTION_EP11 | FUNCTION_APXA | FUNCTION_FULL,
}

_STATUS_ANSWER = {
    Status.OK: Answer.NORMAL,
    Status.DECONFIGURED: Answer.DECONFIGURED,
    Status.CHECKSTOPPED: Answer.CHECKSTOPPED,
}


def mode_of(functions: int) -> Mode | None:
    """The mode a card's functions mean to the zcrypt driver; None if it cannot use the card."""
    if functions & FUNCTION_ACCEL:
        return Mode.ACCEL
    if functions & FUNCTION_CCA:
        return Mode.CCA
    return Mode.EP11 if functions & FUNCTION_EP11 else None


@dataclass(slots=True)
class Adapter:
    """One crypto adapter as plugged and configured."""

    hwtype: int
    functions: int
    depth: int = 7  # the hardware's field: one less than the number of messages
    message_units: int = 0  # of 4096 bytes; 0 means the architecture's 12288 bytes
    status: Status = Status.OK
    serial: str = ""
    api_ordinal: str = ""
    firmware: str = ""
    op_modes: tuple[str, ...] = ()
    mkvps: dict[int, dict[str, str]] = field(default_factory=dict)


@dataclass(slots=True)
class Machine:
    """The LPAR's AP configuration (QCI) and its adapters."""

    max_adapter: int = 255
    max_domain: int = 84
    flags: frozenset[str] = frozenset({"apsc", "apxa", "qact", "rc8a"})
    has_ap: bool = True  # AP instructions at all
    has_qci: bool = True
    usage: int = 0
    control: int = 0
    adapters: dict[int, Adapter] = field(default_factory=dict)
    queue_answers: dict[tuple[int, int], Answer] = field(default_factory=dict)
    has_sclp: bool = True  # the AP configuration facility of SCLP: card config can be written
    has_interrupts: bool = True
    answers: bool = True  # cards answer queries for serial numbers and keys
    reset_seconds: float = 0.0  # how long one queue reset takes
    late_bindings: float = 0.0  # seconds from boot until the host's drivers come
    resets: int = 0  # queue resets so far

    @property
    def adapter_mask(self) -> int:
        return sum(1 << number for number in self.adapters)

    @property
    def adapter_limit(self) -> int:
        """ap_max_adapter_id: 63 unless APXA says otherwise."""
        return self.max_adapter if self.has_apxa and self.max_adapter else 63

    @property
    def domain_limit(self) -> int:
        """ap_max_domain_id: 15 unless APXA says otherwise."""
        return self.max_domain if self.has_apxa and self.max_domain else 15

    @property
    def has_apxa(self) -> bool:
        return self.has_qci and "apxa" in self.flags

    def test_queue(self, adapter: int, domain: int) -> Answer:
        """TAPQ: the state of one APQN."""
        card = self.adapters.get(adapter)
        if card is None or not self.usage >> domain & 1:
            return Answer.NOT_AVAILABLE
        own = self.queue_answers.get((adapter, domain), Answer.NORMAL)
        return own if own is not Answer.NORMAL else _STATUS_ANSWER[card.status]

    def first_answering(self, adapter: int) -> Answer | None:
        """The answer of the lowest domain of the adapter that is available at all."""
        for domain in bits(self.usage & ((2 << self.domain_limit) - 1)):
            answer = self.test_queue(adapter, domain)
            if answer is not Answer.NOT_AVAILABLE:
                return answer
        return None

    def reset_queue(self, adapter: int, domain: int) -> Answer:
        """Reset and zeroise one queue. Its duration is paid by the writer (`reset_seconds`)."""
        self.resets += 1
        return self.test_queue(adapter, domain)

    def configure(self, adapter: int, *, on: bool) -> None:
        """SCLP configure or deconfigure. Blocks for no time; EOPNOTSUPP without the facility, else EIO."""
        if not self.has_sclp:
            raise refuse(errno.EOPNOTSUPP)
        card = self.adapters.get(adapter)
        if card is None or card.status is Status.CHECKSTOPPED:
            raise refuse(errno.EIO)
        card.status = Status.OK if on else Status.DECONFIGURED
