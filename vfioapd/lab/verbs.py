# SPDX-License-Identifier: Apache-2.0
"""What each verb of vfioap-lab does; returns the exit status."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.lab import boot, init, namespaces, peers, requirements, roots, wire
from vfioapd.lab import guest as guests
from vfioapd.lab.errors import Exit, LabError
from vfioapd.lab.host import lab_environment
from vfioapd.lab.layout import Layout, current_lab

if TYPE_CHECKING:
    import argparse

REBOOT_SECONDS = 180.0


def run(options: argparse.Namespace) -> int:
    requirements.check_root()
    requirements.check_programs(with_libvirt=options.libvirt)
    host_file = requirements.find_host_file(options.hostfile)
    _check_host_file(host_file)
    return namespaces.run_new(
        lambda: init.main(Layout(), host_file, options.command, with_libvirt=options.libvirt)
    )


def enter(options: argparse.Namespace) -> int:
    requirements.check_root()
    lab = namespaces.find_lab(options.lab)
    return namespaces.run_inside(
        lab, lambda: namespaces.exec_command(options.command, _environment(Layout()))
    )


def boot_up(options: argparse.Namespace) -> int:
    requirements.check_root()
    requirements.check_programs(with_libvirt=True, boots=True)
    host_file = requirements.find_host_file(options.hostfile)
    _check_host_file(host_file)
    packages = [Path(name).resolve() for name in options.packages]
    boot.check_packages(packages, on_another_system=options.root is not None)
    base = roots.fetch(options.root) if options.root else None
    return boot.run(host_file, options.command, packages, base)


def fetch_peers(_options: argparse.Namespace) -> int:
    print(peers.fetch())
    return Exit.OK


def run_peer(tool: str, arguments: list[str]) -> int:
    return subprocess.run([*peers.command(tool), *arguments], check=False).returncode


def reboot(_options: argparse.Namespace) -> int:
    _ask_init({"command": "reboot"})
    return Exit.OK


def service(options: argparse.Namespace) -> int:
    _ask_init({"command": "service", "action": options.action, "name": options.name})
    return Exit.OK


def state(_options: argparse.Namespace) -> int:
    print(json.dumps(_ask_kernel({"command": "state"})["state"], indent=2))
    return Exit.OK


def play(options: argparse.Namespace) -> int:
    details = dict(_detail(word) for word in options.details)
    _ask_kernel({"command": "play", "action": options.action, **details})
    return Exit.OK


def module(options: argparse.Namespace) -> int:
    _ask_kernel({"command": f"{options.action}_module", "name": options.name})
    return Exit.OK


def guest(options: argparse.Namespace) -> int:
    guests.define(current_lab(), options.name, guests.Behaviour.from_options(options))
    if options.start:
        guests.start(options.name)
    if options.crash:
        guests.crash(options.name)
    return Exit.OK


def _environment(layout: Layout) -> dict[str, str]:
    return boot.environment(layout) if layout.booted.exists() else lab_environment(layout)


def _check_host_file(path: Path) -> None:
    # Imported here: inside a lab nobody reads host files, and a lab without an emulator has other troubles.
    from vfioapd.emulator.hostfile import HostFileError, load_host_file

    try:
        load_host_file(str(path))
    except HostFileError as error:
        raise LabError(str(error), Exit.USAGE) from error


def _detail(word: str) -> tuple[str, object]:
    """KEY=VALUE; a value is a number (0x too), else whatever JSON it is, else text."""
    key, is_pair, value = word.partition("=")
    if not is_pair:
        raise LabError(f"{word!r} is not KEY=VALUE", Exit.USAGE)
    for parse in (lambda text: int(text, 0), json.loads):
        with contextlib.suppress(ValueError):
            return key, parse(value)
    return key, value


def _ask_init(message: wire.Message) -> wire.Message:
    return _checked(wire.request(current_lab().init_socket, message, REBOOT_SECONDS))


def _ask_kernel(message: wire.Message) -> wire.Message:
    return _checked(wire.request(current_lab().kernel_socket, message))


def _checked(answer: wire.Message) -> wire.Message:
    if "error" in answer:
        raise LabError(str(answer.get("message", answer["error"])))
    return answer


def replay(arguments: list[str]) -> int:
    """Sessions recorded on real kernels, played on the emulated one."""
    from vfioapd.emulator import replay as sessions  # only here: the other verbs need no kernel model

    return sessions.main(arguments)
