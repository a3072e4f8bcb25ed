# SPDX-License-Identifier: Apache-2.0
"""vfioapctl: one argparse tree, one call, one screen. Imports rpc.client and its own room alone."""

import argparse
import json
import os
import sys

from vfioapd import VERSION
from vfioapd.cli import (
    adopt_screen,
    doctor_screen,
    events_screen,
    exits,
    queue_screen,
    screens,
    why_screen,
)
from vfioapd.cli.text import terminal_width
from vfioapd.rpc.client import READ_ONLY_SOCKET, SOCKET, CallError, call

TEXT = "Crypto Express queues for KVM guests: who has which, and changing that."
EPILOG = "Numbers are decimal (17) or hexadecimal (0x0011); queues as lszcrypt prints them (05.0011)."


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    options = _parser(words[0] if words else None).parse_args(words)
    try:
        if options.verb == "events" and options.follow:
            return _follow(options)
        reply = _call(options)
    except CallError as error:
        return _complain(error, as_json=options.json)
    except KeyboardInterrupt:
        print("vfioapctl: stopped waiting; the daemon finishes what it has begun", file=sys.stderr)
        return exits.INTERRUPTED
    return _print(options, reply)


def _follow(options: argparse.Namespace) -> int:
    """Until the daemon ends, the admin has seen enough, or nobody reads any more."""
    try:
        events_screen.follow(options, _read_only_socket())
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except OSError as error:
        return _stop_printing(error)
    return exits.OK


class _Help(argparse.HelpFormatter):
    """Knows the width by itself: argparse asks shutil, whose import takes longer than all of its parsing."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=terminal_width() - 2)


def _parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """The whole tree or, where the command is known, its branch alone: each takes 0.3 ms."""
    parser = argparse.ArgumentParser(prog="vfioapctl", description=TEXT, epilog=EPILOG, formatter_class=_Help)
    parser.add_argument("--version", action="version", version=f"vfioapctl {VERSION}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for verb, (text, add_arguments) in VERBS.items():
        if wanted not in VERBS or verb == wanted:
            command = verbs.add_parser(
                verb, help=text, description=text, epilog=EPILOG, formatter_class=_Help
            )
            command.add_argument("--json", action="store_true", help="print the reply as JSON")
            add_arguments(command)
    return parser


def _nothing(_command: argparse.ArgumentParser) -> None:
    pass


def _status(command: argparse.ArgumentParser) -> None:
    command.add_argument("--check", action="store_true", help="end with status 6 when a problem is shown")


def _name(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME")


def _subject(command: argparse.ArgumentParser) -> None:
    command.add_argument("subject", metavar="QUEUE|GUEST|NAME", help="05.0011, a guest or a matrix")


def _xml(command: argparse.ArgumentParser) -> None:
    command.add_argument("kind", choices=("nodedev", "hostdev"))
    _name(command)


def _file(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", metavar="FILE", nargs="?", help="a host.toml (default: the present one)")


def _revision(command: argparse.ArgumentParser) -> None:
    command.add_argument("revision", metavar="REVISION", type=int)


def _change(command: argparse.ArgumentParser) -> None:
    _noted(command)
    command.add_argument(
        "--disrupt", action="store_true", help="take queues even if they are in use or kept by the host"
    )


def _noted(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    command.add_argument("--reason", metavar="TEXT", help="why, for the history")


def _names(command: argparse.ArgumentParser) -> None:
    command.add_argument("names", metavar="NAME", nargs="+")
    _change(command)


def _guest(command: argparse.ArgumentParser) -> None:
    _name(command)
    command.add_argument("guest", metavar="GUEST")
    command.add_argument("--live", action="store_true", help="the running guest only")
    command.add_argument("--config", action="store_true", help="the guest's definition only")
    _change(command)


def _definition(command: argparse.ArgumentParser) -> None:
    _edit(command)
    command.add_argument("--uuid", metavar="UUID", help="of the device (default: made up)")
    command.add_argument(
        "--guest", metavar="GUEST", help="attach it to this guest, live and in its definition"
    )


def _edit(command: argparse.ArgumentParser) -> None:
    _name(command)
    for flag, metavar, text in (
        ("--queues", "05.0011,07.0011", "the queues; they must be a full adapters × domains"),
        ("--adapters", "5,7", "the adapters"),
        ("--domains", "17", "the usage domains"),
        ("--control-domains", "17|none", "domains to administer (a new one: the usage domains)"),
    ):
        command.add_argument(flag, metavar=metavar, help=text)
    command.add_argument("--start", choices=("auto", "manual"), help="who starts it (a new one: auto)")
    command.add_argument(
        "--require", choices=("all", "any", "none"), help="queues its guest needs to start (a new one: all)"
    )
    _change(command)


def _whole_host(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--confirm-within", metavar="SECONDS", type=int, help="take it back unless confirmed in time"
    )
    _change(command)


def _apply(command: argparse.ArgumentParser) -> None:
    _file(command)
    _whole_host(command)


def _adopt(command: argparse.ArgumentParser) -> None:
    command.add_argument("--write", action="store_true", help="make it ours; nothing but files is changed")
    _noted(command)


def _restore(command: argparse.ArgumentParser) -> None:
    _revision(command)
    _whole_host(command)


VERBS = {
    "status": ("the host, its matrices and what is wrong", _status),
    "queues": ("every queue: card, state, driver, owner, guest", queue_screen.add_arguments),
    "show": ("one matrix", _name),
    "why": ("why a queue, a matrix or a guest is not as wanted, and what mends it", _subject),
    "doctor": ("the whole host looked over: what is wrong, what follows, what mends it", _nothing),
    "events": ("what has happened on the host, and with --follow what happens", events_screen.add_arguments),
    "xml": ("libvirt's XML of a matrix", _xml),
    "define": ("define a matrix and, unless --start manual, make it true", _definition),
    "edit": ("change a matrix: what is given; its device follows, in a running guest too", _edit),
    "undefine": ("forget matrices; their queues go back to the host", _names),
    "start": ("make the devices of matrices, all or none", _names),
    "stop": ("remove the devices of matrices, all or none", _names),
    "attach": ("give a matrix to a guest", _guest),
    "detach": ("take a matrix from a guest", _guest),
    "plan": ("what apply would do; changes nothing", _file),
    "apply": ("make host.toml true, as it was edited, or another file in its place", _apply),
    "adopt": ("what others made: list it and what does not fit, or make it ours as it is", _adopt),
    "confirm": ("keep the change that waits to be confirmed", _nothing),
    "history": ("every host.toml that was in force", _nothing),
    "diff": ("what has changed in host.toml since a revision", _revision),
    "restore": ("make an earlier host.toml true again", _restore),
}

# What only reads, and the field of the reply that holds the answer.
READS = {
    "status": "status",
    "queues": "queues",
    "show": "matrix",
    "why": "why",
    "doctor": "doctor",
    "events": "events",
    "xml": "xml",
    "history": "revisions",
    "diff": "diff",
    "plan": "change",
    "adopt": "adoption",  # only reads unless --write is given
}
OPTIONS = ("dry_run", "disrupt", "reason", "confirm_within")
NOT_SENT = ("verb", "json", "check", "live", "config", "file", *OPTIONS)


def _call(options: argparse.Namespace) -> object:
    """The one call that the command is. Numbers go as text: they are read in one place, the daemon."""
    given = vars(options)
    if options.verb == "queues":
        return queue_screen.choose(options, _rows("Queues", "queues"))
    if options.verb == "doctor":
        return doctor_screen.examine(_read_only_socket())
    if options.verb == "events":
        return list(events_screen.choose(options, _rows("Events", "events")))
    parameters = {name: value for name, value in given.items() if name not in NOT_SENT}
    if given.get("file"):
        parameters["text"] = _text_of(given["file"])
        parameters["file"] = "standard input" if given["file"] == "-" else given["file"]
    if given.get("live") != given.get("config"):
        parameters["where"] = "live" if given["live"] else "config"
    wanted = {name: given[name] for name in OPTIONS if given.get(name)}
    if wanted:
        parameters["options"] = wanted
    method = options.verb.capitalize()
    if options.verb in READS and not given.get("write"):
        return call(_read_only_socket(), method, **parameters)[READS[options.verb]]
    return call(_socket(), method, **parameters)[READS.get(options.verb, "change")]


def _rows(method: str, field: str) -> list[dict[str, object]]:
    rows = call(_read_only_socket(), method)[field]
    return rows if isinstance(rows, list) else []


def _text_of(path: str) -> str:
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise CallError("bad-request", f"{path} cannot be read: {why}") from error


def _socket() -> str:
    return os.environ.get("VFIOAPD_SOCKET", SOCKET)


def _read_only_socket() -> str:
    return os.environ.get("VFIOAPD_SOCKET", READ_ONLY_SOCKET)


def _print(options: argparse.Namespace, reply: object) -> int:
    encoding = sys.stdout.encoding or "utf-8"
    is_plain = encoding.lower() != "utf-8"  # an old terminal: JSON has escapes, screens question marks
    text = json.dumps(reply, indent=2, ensure_ascii=is_plain) if options.json else _render(options, reply)
    try:
        text = text.encode(encoding, "replace").decode(encoding) if is_plain else text
        print(text, end="\n" if text else "", flush=True)
    except OSError as error:
        if _stop_printing(error) != exits.OK:
            return exits.FAILED
    return exits.UNHEALTHY if _is_unhealthy(options, reply) else exits.OK


def _stop_printing(error: OSError) -> int:
    """head(1) may have seen enough; whatever else it was is told."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain at its end
    if isinstance(error, BrokenPipeError):
        return exits.OK
    why = f"the daemon has answered, but its answer cannot be printed: {error.strerror}"
    print(f"vfioapctl: {why}; vfioapctl history shows whether something was changed", file=sys.stderr)
    return exits.FAILED


def _is_unhealthy(options: argparse.Namespace, reply: object) -> bool:
    if not isinstance(reply, dict):
        return False
    if options.verb == "status" and options.check:
        return bool(screens.problems(reply))
    return options.verb == "doctor" and not reply["healthy"]


def _render(options: argparse.Namespace, reply: object) -> str:
    if isinstance(reply, list):
        lists = {"history": screens.history, "events": events_screen.show}
        return lists[options.verb](reply) if options.verb in lists else queue_screen.show(options, reply)
    if not isinstance(reply, dict):
        return str(reply).rstrip("\n")
    pages = {
        "status": screens.status,
        "show": screens.matrix,
        "why": why_screen.why,
        "adopt": adopt_screen.adopt,
        "doctor": doctor_screen.doctor,
    }
    return pages.get(options.verb, screens.change)(reply)


def _complain(error: CallError, *, as_json: bool) -> int:
    if as_json:
        problem = {"problem": error.problem, "sentence": str(error), "hint": error.hint, **error.details}
        print(json.dumps(problem, indent=2, ensure_ascii=False))
    print(f"vfioapctl: {error} [{error.problem}]", file=sys.stderr)
    if error.hint:
        print(f"({error.hint})", file=sys.stderr)
    return exits.exit_for(error.problem)


if __name__ == "__main__":
    sys.exit(main())
