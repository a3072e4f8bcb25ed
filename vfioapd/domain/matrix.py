# SPDX-License-Identifier: Apache-2.0
"""What one vfio_ap device is given: adapters crossed with domains, and control domains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.domain.apqn import Apqn, format_apqns
from vfioapd.domain.problems import Problem, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vfioapd.domain.numbers import AdapterId, DomainId

# More pairs do not fit a page: Linux 7.3 cuts the text short, 6.1 and 6.12 write past the end of
# their buffer (vfio_ap_ops.c:vfio_ap_mdev_matrix_show). Above it matrix and guest_matrix must not be read.
READABLE_PAIRS = 511


@dataclass(frozen=True, slots=True)
class Matrix:
    """Adapters × domains, plus the domains that may be administered without being used."""

    adapters: frozenset[AdapterId] = frozenset()
    domains: frozenset[DomainId] = frozenset()
    control_domains: frozenset[DomainId] = frozenset()

    def queues(self) -> tuple[Apqn, ...]:
        """Every pair, in the order in which the kernel prints a matrix."""
        return tuple(Apqn(a, d) for a in sorted(self.adapters) for d in sorted(self.domains))

    def __contains__(self, queue: Apqn) -> bool:
        return queue.adapter in self.adapters and queue.domain in self.domains


EMPTY_MATRIX = Matrix()


def matrix_of_queues(queues: Iterable[Apqn]) -> Matrix:
    """The matrix that holds exactly these queues; its domains are its control domains.

    One device holds a cross product, so a list that leaves holes is refused with the queues that
    the device would hold besides.
    """
    wanted = frozenset(queues)
    domains = frozenset(queue.domain for queue in wanted)
    matrix = Matrix(frozenset(queue.adapter for queue in wanted), domains, domains)
    extra = frozenset(matrix.queues()) - wanted
    if extra:
        raise Refused(
            Problem.NOT_A_MATRIX,
            f"{format_apqns(wanted)} are no matrix: one device would also hold {format_apqns(extra)}",
            hint="add those queues, or define two matrices",
            queues=sorted(extra),
        )
    return matrix
