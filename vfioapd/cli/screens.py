# SPDX-License-Identifier: Apache-2.0
"""What each reply looks like to a person. ``--json`` prints the reply itself instead."""

from vfioapd.cli.text import BLUE, BOLD, DIM, GREEN, RED, YELLOW, Cell, columns, paint, plural

Record = dict[str, object]

_STATE_COLOURS = {
    "in-use": GREEN,
    "in use": GREEN,
    "started": BLUE,
    "assigned": BLUE,
    "stopped": DIM,
    "unassigned": DIM,
    "failed": RED,
    "checkstopped": RED,
    "deconfigured": YELLOW,
    "offline": YELLOW,
}


def status(reply: Record) -> str:
    """The host at a glance."""
    parts = [_head(reply)]
    rows = [_matrix_row(row) for row in (*_records(reply["matrices"]), *_records(reply["foreign"]))]
    if rows:
        parts.append(columns(["MATRIX", "QUEUES", "STATE", "GUEST", "START", "UUID"], rows))
    parts += [paint(f"problem: {problem}", RED) for problem in problems(reply)]
    return "\n\n".join(parts)


def problems(reply: Record) -> list[str]:
    """What is not as host.toml wants it, one sentence each."""
    return [*_texts(reply["problems"]), *_matrix_problems(reply)]


def queues(rows: list[Record]) -> str:
    """Every queue, one a line, as lszcrypt -V and z/VM's QUERY CRYPTO would show it together."""
    header = ["QUEUE", "ADAPTER", "DOMAIN", "TYPE", "MODE", "STATE", "DRIVER", "OWNER", "GUEST"]
    return columns(header, [_queue_row(row) for row in rows]) if rows else "this host has no queues"


def matrix(row: Record) -> str:
    """One matrix, a line for each fact."""
    facts = [
        ("matrix", paint(str(row["name"]), BOLD)),
        ("uuid", str(row["uuid"])),
        ("adapters", _numbers(row["adapters"], 2)),
        ("domains", _numbers(row["domains"], 4)),
        ("control domains", _numbers(row["control_domains"], 4)),
        ("queues", _joined(row["queues"])),
        ("state", paint(str(row["state"]), _STATE_COLOURS.get(str(row["state"]), ""))),
        ("a guest gets", _guest_matrix(row["guest_matrix"])),
        ("start", str(row["start"])),
        ("guest", str(row["guest"] or "-")),
        ("attached live", str(row["live"] or "-")),
        ("attached config", _joined(row["config"])),
        ("require", str(row["require"])),
    ]
    if row["problem"]:
        facts.append(("problem", paint(str(row["problem"]), RED)))
    return "\n".join(f"{name:<16} {value}" for name, value in facts)


def change(reply: Record) -> str:
    """What a change did or would do: each step in order, then what it means and for whom."""
    steps = _texts(reply["steps"])
    if not steps:
        return f"{reply['name']}: nothing to do"
    count = plural(len(steps), "step", "steps")
    lines = [f"{reply['name']}: " + (f"done in {count}" if reply["made"] else f"{count}, none made yet")]
    lines += [f"  {step}" for step in steps]
    lines += [paint(f"  {line}", colour) for line, colour in _meaning(reply)]
    if reply["confirm_within"]:
        warning = f"it is taken back in {reply['confirm_within']} seconds unless you run: vfioapctl confirm"
        lines.append(paint(warning, YELLOW))
    return "\n".join(lines)


def history(rows: list[Record]) -> str:
    """Every revision, the newest first."""
    if not rows:
        return "nothing was changed yet"
    keys = ("number", "time", "user", "program", "reason")
    found = [[("-" if row[key] is None else str(row[key]), "") for key in keys] for row in reversed(rows)]
    return columns(["REVISION", "TIME", "USER", "PROGRAM", "CHANGE"], found)


def _meaning(reply: Record) -> list[Cell]:
    found: list[Cell] = []
    for guest in _records(reply["guests"]):
        parts = [f"{word} {_joined(guest[word])}" for word in ("gains", "keeps", "loses") if guest[word]]
        found.append((f"guest {guest['guest']} {'; '.join(parts)}", ""))
    for key, colour, text in (
        ("handed_over", "", "leave the host as asked"),
        ("collateral", YELLOW, "leave the host with them (apmask and aqmask free whole rows and columns)"),
        ("returned", "", "go back to the host"),
    ):
        if reply[key]:
            found.append((f"{text}: {_joined(reply[key])}", colour))
    needs = "" if reply["made"] else " (needs --disrupt)"
    found += [(f"{victim}{needs}", RED) for victim in _texts(reply["victims"])]
    if not reply["least"]:
        found.append(("too many shapes to prove that no other masks take fewer along", ""))
    return found


def _head(reply: Record) -> str:
    counts = (
        f"{plural(_int(reply['queues_total']), 'queue', 'queues')}: {reply['queues_host']} with the host, "
        f"{reply['queues_guests']} for guests, {reply['queues_free']} free"
    )
    lines = [paint(counts, BOLD), f"apmask {reply['apmask']}", f"aqmask {reply['aqmask']}"]
    if keep := _texts(reply["keep"]):
        lines.append(f"the host keeps {', '.join(keep)}")
    for key, text in (
        ("vfio_ap", "vfio_ap is not loaded: no matrix can be started (modprobe vfio_ap)"),
        ("complete", "not every queue has found its driver yet (/sys/bus/ap/bindings)"),
        ("libvirt", "libvirt does not answer: guests are not shown"),
    ):
        if not reply[key]:
            lines.append(paint(text, YELLOW))
    return "\n".join(lines)


def _matrix_row(row: Record) -> list[Cell]:
    state = str(row["state"])
    return [
        (str(row["name"] or "(not ours)"), "" if row["name"] else YELLOW),
        (_short(_texts(row["queues"])), ""),
        (state, _STATE_COLOURS.get(state, "")),
        (_guest(row), ""),
        (str(row["start"] or "-"), ""),
        (str(row["uuid"]), DIM),
    ]


def _guest(row: Record) -> str:
    """Who has it now; a guest that merely will have it stands in brackets."""
    if row["live"]:
        return str(row["live"])
    later = _texts(row["config"]) or [str(row["guest"] or "")]
    return f"({later[0]})" if later[0] else "-"


def _queue_row(row: Record) -> list[Cell]:
    state, owner = str(row["state"]), str(row["owner"])
    return [
        (str(row["queue"]), BOLD),
        (_both(_int(row["adapter"]), 2), ""),
        (_both(_int(row["domain"]), 4), ""),
        (str(row["type"] or "-"), ""),
        (str(row["mode"] or "-"), ""),
        (state, _STATE_COLOURS.get(state, "")),
        (str(row["driver"] or "-"), ""),
        (f"{owner} (kept)" if row["keep"] else owner, DIM if owner in ("host", "free") else ""),
        (str(row["guest"] or "-"), GREEN if row["guest"] else ""),
    ]


def _matrix_problems(reply: Record) -> list[str]:
    return [
        f"matrix {row['name']}: {row['problem']}" for row in _records(reply["matrices"]) if row["problem"]
    ]


def _guest_matrix(value: object) -> str:
    return "-" if value is None else _joined(value)


def _numbers(value: object, digits: int) -> str:
    return (
        ", ".join(_both(number, digits) for number in value) if isinstance(value, list) and value else "none"
    )


def _both(number: int, digits: int) -> str:
    return f"{number} (0x{number:0{digits}x})"


def _joined(value: object) -> str:
    return ", ".join(_texts(value)) or "none"


def _short(found: list[str], most: int = 4) -> str:
    return " ".join(found) if len(found) <= most else f"{' '.join(found[:most])} … {len(found)} in all"


def _texts(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _records(value: object) -> list[Record]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
