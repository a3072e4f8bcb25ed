# SPDX-License-Identifier: Apache-2.0
"""The hosts that are measured: two shipped host files, and one in between that is written here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

ADAPTERS, DOMAINS = 8, 10

HEAD = """\
# Large enough for twenty matrices of two adapters × two domains, and not larger.
name = "bench"
kernel = "6.12"

[machine]
max_adapter = 255
max_domain = 84
usage_domains = {domains}
control_domains = {domains}
"""

CARD = """
[[card]]
adapter = {adapter}
type = "CEX8P"
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A host file and what to call it."""

    file: str
    words: str


REDBOOK = Host("rdbkvm4", "16 queues (host rdbkvm4)")
FULL = Host("full-lpar", "5,100 queues (host full-lpar)")


def medium(folder: Path) -> Host:
    """Eight adapters with ten domains each."""
    path = folder / "bench.toml"
    cards = "".join(CARD.format(adapter=adapter) for adapter in range(ADAPTERS))
    path.write_text(HEAD.format(domains=list(range(DOMAINS))) + cards)
    return Host(str(path), f"{ADAPTERS * DOMAINS} queues ({ADAPTERS} adapters × {DOMAINS} domains)")
