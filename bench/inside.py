# SPDX-License-Identifier: Apache-2.0
"""The part that runs in a lab: measures one subject, prints it as one line of JSON."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from importlib import import_module

SUBJECTS = ("status_time", "queues_time", "start_time", "apply_time", "guest_time", "idle")


@dataclass(frozen=True, slots=True)
class Options:
    """How long to measure, and on which host."""

    rounds: int
    idle_seconds: float
    host_words: str  # the host in a few words, for headings


def main() -> int:
    """Measure and print; the lab and its daemon end with this process."""
    parser = argparse.ArgumentParser(prog="bench.inside", description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--idle-seconds", type=float, required=True)
    parser.add_argument("--host-words", required=True)
    given = parser.parse_args()
    options = Options(given.rounds, given.idle_seconds, given.host_words)
    print(import_module(f"bench.{given.subject}").measure(options).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
