# SPDX-License-Identifier: Apache-2.0
"""`python -m vfioapd.emulator HOSTFILE MOUNTPOINT`: serve an emulated kernel until SIGTERM."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from .control import ControlServer
from .device_nodes import DeviceNodes
from .fuse import Mount
from .hostfile import HostFileError, load_host_file
from .kernel import Kernel
from .netlink import Injector, is_private_network
from .plays import PlayError


def main() -> int:
    arguments = _parse_arguments()
    try:
        kernel = Kernel(load_host_file(arguments.hostfile))
        if arguments.dev:
            kernel.events.subscribe(DeviceNodes(arguments.dev))
        _send_uevents(kernel, arguments.uevents)
        mount = Mount(kernel, arguments.mountpoint)
        mount.start()
    except (HostFileError, PlayError, OSError) as error:
        print(f"vfioapd.emulator: {error}", file=sys.stderr)
        return 1
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: end.set())
    if arguments.control:
        ControlServer(kernel, arguments.control).start()
    _start_timers(kernel, end)
    print("ready", flush=True)
    end.wait()
    mount.stop()
    if arguments.control:
        arguments.control.unlink(missing_ok=True)
    # A worker thread of libfuse may still hang in a request whose caller is gone.
    sys.stdout.flush()
    os._exit(0)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vfioapd.emulator", description=__doc__)
    parser.add_argument("hostfile", help="path of a host file or name of a shipped one")
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("--control", type=Path, metavar="SOCKET", help="unix socket for run-time control")
    parser.add_argument(
        "--uevents",
        choices=("private", "always", "never"),
        default="private",
        help="send kernel uevents: only in a private network namespace (default), always, or never",
    )
    parser.add_argument("--dev", type=Path, metavar="FOLDER", help="where device nodes are made and removed")
    parser.add_argument("--no-uevents", dest="uevents", action="store_const", const="never")
    return parser.parse_args()


def _send_uevents(kernel: Kernel, when: str) -> None:
    if when == "never":
        return
    if when == "private" and not is_private_network():
        print(
            "vfioapd.emulator: uevents are not sent because this is the machine's own network namespace; "
            "use --uevents always to send them all the same",
            file=sys.stderr,
        )
        return
    kernel.events.subscribe(Injector())


def _start_timers(kernel: Kernel, end: threading.Event) -> None:
    threading.Thread(target=_scan_regularly, args=(kernel, end), name="scan", daemon=True).start()
    if kernel.host.plays:
        threading.Thread(target=_play_script, args=(kernel, end), name="plays", daemon=True).start()


def _scan_regularly(kernel: Kernel, end: threading.Event) -> None:
    while not end.wait(kernel.state.config_time):
        kernel.scan()


def _play_script(kernel: Kernel, end: threading.Event) -> None:
    """The [[play]] tables of the host file, each `after` seconds from the one before."""
    for action in kernel.host.plays:
        after = action.get("after", 0)
        if end.wait(after if isinstance(after, int | float) else 0):
            return
        try:
            kernel.play(action)
        except PlayError as error:
            print(f"vfioapd.emulator: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
