# SPDX-License-Identifier: Apache-2.0
"""``vfioapctl doctor``: a line for each subject, below it what was found, with the command that mends it."""

from vfioapd.cli.text import BOLD, DIM, GREEN, RED, YELLOW, paint, plural
from vfioapd.rpc.client import CallError, call, check_alive

Record = dict[str, object]

ALIVE_SECONDS = 5.0  # systemd may be starting the daemon for us

_COLOURS = {"ok": GREEN, "warning": YELLOW, "error": RED, "unchecked": DIM}


def examine(socket: str) -> object:
    """The daemon's answer; without a daemon root looks the host over with the daemon's own program."""
    try:
        check_alive(socket, ALIVE_SECONDS)
        return call(socket, "Doctor")["doctor"]
    except CallError as error:
        found = None if error.problem != "not-running" else _without_daemon()
        if found is None:
            raise
        return found


def doctor(reply: Record) -> str:
    """Subjects in the daemon's order, then the sum."""
    subjects = _records(reply["subjects"])
    lines = [line for subject in subjects for line in _subject(subject)]
    return "\n".join([*lines, "", _verdict(subjects)])


def _subject(subject: Record) -> list[str]:
    state = str(subject["state"])
    found = _records(subject["findings"])
    unchecked = subject["unchecked"] if isinstance(subject["unchecked"], list) else []
    text = "" if found or state == "unchecked" else str(subject["looked_at"])
    lines = [f"{subject['subject']!s:<12} {paint(f'{state:<9}', _COLOURS.get(state, ''))} {text}".rstrip()]
    lines += [line for one in found for line in _finding(one)]
    return lines + [paint(f"  not checked: {why}", DIM) for why in unchecked]


def _finding(one: Record) -> list[str]:
    severity = str(one["severity"])
    head = paint(f"{severity} {one['code']}", _COLOURS[severity])
    lines = [f"  {head}: {one['sentence']}", f"    so: {one['consequence']}"]
    if one["command"]:
        lines.append(f"    mend it with: {paint(str(one['command']), BOLD)}")
    if one["advice"]:
        lines.append(f"    {'also' if one['command'] else 'mend it'}: {one['advice']}")
    return lines


def _verdict(subjects: list[Record]) -> str:
    severities = [str(one["severity"]) for subject in subjects for one in _records(subject["findings"])]
    errors, warnings = severities.count("error"), severities.count("warning")
    if not severities:
        return paint("nothing is known to be wrong", GREEN)
    counts = f"{plural(errors, 'error', 'errors')}, {plural(warnings, 'warning', 'warnings')}"
    return paint(counts, RED if errors else YELLOW)


def _without_daemon() -> object | None:
    """Imports what no other command needs; None where the program is missing or may not."""
    import json
    import os
    import subprocess

    if os.geteuid() != 0:
        return None
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    try:
        done = subprocess.run(
            ["vfioapd", "--doctor"], env={**os.environ, "PATH": path}, capture_output=True, check=True
        )
        return dict(json.loads(done.stdout))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def _records(value: object) -> list[Record]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
