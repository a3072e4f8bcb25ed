# SPDX-License-Identifier: Apache-2.0
"""vfioap-lab: the command line."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from vfioapd.lab import verbs
from vfioapd.lab.errors import LabError
from vfioapd.lab.guest import Behaviour
from vfioapd.lab.peers import TOOLS
from vfioapd.lab.roots import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] in TOOLS:
            return verbs.run_peer(words[0], words[1:])  # all options are the tool's own
        if words and words[0] == "replay":
            return verbs.replay(words[1:])
        own, command = _split(words)
        options = _parser().parse_args(own, argparse.Namespace(command=command or [_shell()]))
        return int(options.verb(options))
    except LabError as error:
        print(f"vfioap-lab: {error}", file=sys.stderr)
        return error.status


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands behind the first -- is the command's; argparse would mix it with our options."""
    if "--" not in words:
        return words, []
    end = words.index("--")
    return words[:end], words[end + 1 :]


def _shell() -> str:
    return os.environ.get("SHELL", "/bin/sh")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vfioap-lab",
        description="A KVM host on IBM Z in private namespaces, without the hardware.",
        epilog=f"{', '.join(TOOLS)} ARGUMENTS...: IBM's own tools, once 'vfioap-lab peers' has fetched them.",
    )
    chosen = parser.add_subparsers(required=True, metavar="VERB")
    _add_outer_verbs(chosen)
    _add_host_verbs(chosen)
    _add_guest_verb(chosen)
    return parser


def _add_outer_verbs(chosen: Verbs) -> None:
    verb = chosen.add_parser(
        "run",
        usage="vfioap-lab run [--no-libvirt] HOSTFILE [-- COMMAND...]",
        help="run a command (default: a shell) in a new lab, then end the lab",
    )
    verb.add_argument("hostfile", metavar="HOSTFILE", help="a host file, or the name of a shipped one")
    verb.add_argument("--no-libvirt", dest="libvirt", action="store_false", help="kernel and udevd only")
    verb.set_defaults(verb=verbs.run)

    verb = chosen.add_parser(
        "boot",
        usage="vfioap-lab boot [--shell] [--root SYSTEM] [--deb|--rpm FILE] HOSTFILE [-- COMMAND...]",
        help="boot this machine's Debian on the host, and run a command (default: a shell) after each boot",
    )
    verb.add_argument("hostfile", metavar="HOSTFILE", help="a host file, or the name of a shipped one")
    verb.add_argument("--shell", action="store_true", help="a shell, as without COMMAND")
    verb.add_argument(
        "--root",
        metavar="SYSTEM",
        choices=sorted(SYSTEMS),
        help=f"boot another system ({', '.join(sorted(SYSTEMS))}), fetched the first time; needs --deb",
    )
    verb.add_argument(
        "--deb",
        "--rpm",
        metavar="FILE",
        dest="packages",
        action="append",
        default=[],
        help="install this package first, instead of the daemon of this checkout",
    )
    verb.set_defaults(verb=verbs.boot_up)

    verb = chosen.add_parser(
        "enter",
        usage="vfioap-lab enter [--lab PID] [-- COMMAND...]",
        help="run a command (default: a shell) in a running lab",
    )
    verb.add_argument("--lab", metavar="PID", type=int, help="of `vfioap-lab run`, if several labs run")
    verb.set_defaults(verb=verbs.enter)

    chosen.add_parser("replay", add_help=False, help="hold the emulated kernel against recorded sessions")

    verb = chosen.add_parser("peers", help=f"fetch {', '.join(TOOLS)} and print where they are")
    verb.set_defaults(verb=verbs.fetch_peers)


def _add_host_verbs(chosen: Verbs) -> None:
    verb = chosen.add_parser("reboot", help="cut the power and boot: all programs die, /etc and /var stay")
    verb.set_defaults(verb=verbs.reboot)

    verb = chosen.add_parser("service", help="stop, kill, start or restart udevd or libvirtd")
    verb.add_argument("action", choices=["start", "stop", "restart", "kill"])
    verb.add_argument("name", metavar="NAME")
    verb.set_defaults(verb=verbs.service)

    verb = chosen.add_parser("play", help="let the hardware change or fail, as an operator or a fault would")
    verb.add_argument("action", metavar="ACTION", help="such as: checkstop adapter=5")
    verb.add_argument("details", metavar="KEY=VALUE", nargs="*")
    verb.set_defaults(verb=verbs.play)

    verb = chosen.add_parser("module", help="load or unload a module of the emulated kernel")
    verb.add_argument("action", choices=["load", "unload"])
    verb.add_argument("name", metavar="NAME")
    verb.set_defaults(verb=verbs.module)

    verb = chosen.add_parser("state", help="what the emulated kernel knows, as JSON")
    verb.set_defaults(verb=verbs.state)


def _add_guest_verb(chosen: Verbs) -> None:
    verb = chosen.add_parser(
        "guest",
        help="define a test guest, or change how it behaves",
        description="Define a TCG guest unless libvirt knows it, and set how it behaves from now on; "
        "what is not named here is as usual.",
    )
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("--start", action="store_true", help="start it too")
    verb.add_argument("--crash", action="store_true", help="let its QEMU die of a segmentation fault")
    Behaviour.add_options(verb)
    verb.set_defaults(verb=verbs.guest)


if __name__ == "__main__":
    sys.exit(main())
