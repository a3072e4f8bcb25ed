# SPDX-License-Identifier: Apache-2.0
"""``vfioapctl events``: what has happened of late, or what happens as it happens."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator

from vfioapd.cli.text import BLUE, DIM, GREEN, RED, YELLOW, paint
from vfioapd.rpc.client import stream

Record = dict[str, object]

KINDS = {
    "uevent": DIM,
    "guest": GREEN,
    "change": BLUE,
    "hook": GREEN,
    "drift": YELLOW,
    "daemon": "",
    "lost": RED,
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Which events, and until when."""
    command.add_argument("--follow", action="store_true", help="go on with each event as it comes")
    command.add_argument(
        "--kind", metavar="KIND", action="append", choices=KINDS, help=f"only these: {', '.join(KINDS)}"
    )


def choose(options: argparse.Namespace, rows: Iterable[Record]) -> Iterator[Record]:
    """Those of the kinds that were asked for."""
    return (row for row in rows if not options.kind or row["kind"] in options.kind)


def show(rows: Iterable[Record]) -> str:
    """One line an event."""
    return "\n".join(map(_line, rows)) or "nothing has happened yet"


def follow(options: argparse.Namespace, path: str) -> None:
    """Print each event until the daemon ends, one JSON object a line or a line for people."""
    events = (reply["event"] for reply in stream(path, "Follow"))
    for row in choose(options, (event for event in events if isinstance(event, dict))):
        line = json.dumps(row, ensure_ascii=False) if options.json else _line(row)
        print(line.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding), flush=True)


def _line(row: Record) -> str:
    kind = str(row["kind"])
    return f"{row['time']}  {paint(f'{kind:<6}', KINDS.get(kind, ''))}  {row['text']}"
