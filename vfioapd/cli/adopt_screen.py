# SPDX-License-Identifier: Apache-2.0
"""The screen of ``vfioapctl adopt``: what becomes ours, what does not fit, and what was or would be done."""

from vfioapd.cli.screens import change
from vfioapd.cli.text import BOLD, DIM, RED, YELLOW, Cell, columns, paint, plural

Record = dict[str, object]

MOST = 4  # queues of one matrix on a line


def adopt(reply: Record) -> str:
    """Matrices first, then findings: those for which a device is left as it is are red."""
    ours, matrices = _texts(reply["ours"]), _records(reply["matrices"])
    parts = []
    if ours:
        parts.append(f"{plural(len(ours), 'matrix is', 'matrices are')} vfioapd's already: {', '.join(ours)}")
    if matrices:
        header = ["MATRIX", "QUEUES", "START", "GUEST", "UUID"]
        parts.append(columns(header, [_row(one) for one in matrices]))
    parts += [_finding(one) for one in _records(reply["findings"])]
    parts.append(_done(reply["change"]) if matrices else "adopt: nothing to adopt")
    return "\n\n".join(parts)


def _row(matrix: Record) -> list[Cell]:
    queues = _texts(matrix["queues"])
    more = f" … {len(queues)} in all" if len(queues) > MOST else ""
    return [
        (str(matrix["name"]), BOLD),
        (" ".join(queues[:MOST]) + more, ""),
        (str(matrix["start"]), ""),
        (str(matrix["guest"] or "-"), ""),
        (str(matrix["uuid"]), DIM),
    ]


def _finding(finding: Record) -> str:
    word, colour = ("left as it is", RED) if finding["left"] else ("to know", YELLOW)
    return f"{paint(word, colour)}: {finding['sentence']} [{finding['code']}]\n({finding['hint']})"


def _done(record: object) -> str:
    if not isinstance(record, dict):
        return ""
    text = change(record)
    return text if record["made"] else f"{text}\n(vfioapctl adopt --write does it)"


def _records(value: object) -> list[Record]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _texts(value: object) -> list[str]:
    return list(map(str, value)) if isinstance(value, list) else []
