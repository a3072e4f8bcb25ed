# SPDX-License-Identifier: Apache-2.0
"""Many small files read at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")
R = TypeVar("R")

# Each read waits for its turn in the kernel, behind all that udevd reads after a change: many wait at once.
READERS = 8


def read_each(read: Callable[[T], R], of: Iterable[T]) -> list[R]:
    """What ``read`` gives of each, in their order. It is called by several threads where that are many, each
    with a share in a row. Raises what the first of them raised."""
    whole = list(of)
    if len(whole) <= READERS:
        return list(map(read, whole))
    share = -(-len(whole) // READERS)
    shares = [whole[at : at + share] for at in range(0, len(whole), share)]
    with ThreadPoolExecutor(READERS, "readers") as readers:
        return list(chain.from_iterable(readers.map(lambda one: list(map(read, one)), shares)))
