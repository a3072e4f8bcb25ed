# SPDX-License-Identifier: Apache-2.0
"""Sets of queues as one integer each: a host may have 65,536, and a plan compares many such sets.

Bit ``adapter * 256 + domain`` stands for a queue, so that a row of 256 bits is an adapter. A matrix is
then one multiplication, and union, intersection and difference are single operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from vfioapd.domain.apqn import Apqn
from vfioapd.domain.numbers import BITS, AdapterId, DomainId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vfioapd.domain.mask import HostMasks, Mask
    from vfioapd.domain.matrix import Matrix

_ROW = (1 << BITS) - 1


@dataclass(frozen=True, slots=True)
class QueueSet:
    """Some queues. Iterates in the kernel's order: adapters ascending, then domains."""

    bits: int = 0

    @classmethod
    def of(cls, queues: Iterable[Apqn]) -> QueueSet:
        """The set of exactly these queues."""
        if isinstance(queues, QueueSet):
            return queues
        rows: dict[int, int] = {}
        for queue in queues:
            rows[queue.adapter] = rows.get(queue.adapter, 0) | 1 << queue.domain
        return cls(sum(row << adapter * BITS for adapter, row in rows.items()))

    @classmethod
    def of_matrix(cls, matrix: Matrix) -> QueueSet:
        """Adapters crossed with domains."""
        return _of_matrix(matrix)

    @classmethod
    def of_matrices(cls, matrices: Iterable[Matrix]) -> QueueSet:
        """The queues of all of them."""
        bits = 0
        for matrix in matrices:
            bits |= cls.of_matrix(matrix).bits
        return cls(bits)

    @classmethod
    def owned_by_host(cls, masks: HostMasks) -> QueueSet:
        """All that the masks leave to the host, present or not."""
        return cls(_column(_numbers(masks.apmask)) * _bits(_numbers(masks.aqmask)))

    def __and__(self, other: QueueSet) -> QueueSet:
        return QueueSet(self.bits & other.bits)

    def __or__(self, other: QueueSet) -> QueueSet:
        return QueueSet(self.bits | other.bits)

    def __sub__(self, other: QueueSet) -> QueueSet:
        return QueueSet(self.bits & ~other.bits)

    def __bool__(self) -> bool:
        return self.bits != 0

    def __len__(self) -> int:
        return self.bits.bit_count()

    def __contains__(self, queue: object) -> bool:
        return isinstance(queue, Apqn) and bool(self.bits >> (queue.adapter * BITS + queue.domain) & 1)

    def __iter__(self) -> Iterator[Apqn]:
        for adapter, row in self.rows():
            for domain in _set_bits(row):
                yield Apqn(AdapterId(adapter), DomainId(domain))

    def rows(self) -> Iterator[tuple[int, int]]:
        """Each adapter that occurs, ascending, with its domains: bit n is domain n."""
        bits = self.bits.to_bytes(BITS * BITS // 8, "little")
        width = BITS // 8
        for adapter in range(BITS):
            row = int.from_bytes(bits[adapter * width : (adapter + 1) * width], "little")
            if row:
                yield adapter, row

    def of_adapters(self, adapters: Iterable[int]) -> QueueSet:
        """Those of these adapters."""
        return QueueSet(self.bits & _column(frozenset(adapters)) * _ROW)


EMPTY = QueueSet()


@lru_cache(maxsize=1024)
def _of_matrix(matrix: Matrix) -> QueueSet:
    return QueueSet(_column(matrix.adapters) * _bits(matrix.domains))


@lru_cache(maxsize=1024)
def _column(adapters: frozenset[int]) -> int:
    return sum(1 << adapter * BITS for adapter in adapters)


@lru_cache(maxsize=1024)
def _bits(numbers: frozenset[int]) -> int:
    return sum(1 << number for number in numbers)


@lru_cache(maxsize=64)
def _numbers(mask: Mask) -> frozenset[int]:
    return frozenset(mask.numbers())


def _set_bits(row: int) -> Iterator[int]:
    while row:
        low = row & -row
        yield low.bit_length() - 1
        row ^= low
