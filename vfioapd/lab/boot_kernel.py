# SPDX-License-Identifier: Apache-2.0
"""The service of a booted lab that stands in for the kernel: it runs until the container stops."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from vfioapd.lab import shim_wrapper, world
from vfioapd.lab.errors import LabError
from vfioapd.lab.host import Host
from vfioapd.lab.layout import Layout


def main() -> int:
    """Show the emulated bus in /sys, tell systemd, and wait. Exit status 1 when that cannot be."""
    layout = Layout()
    world.make_folders(layout)
    host = Host(layout, Path(sys.argv[1]), with_libvirt=False)
    host.services.clear()  # systemd starts them, by its own units
    try:
        Path("/sys/module").mkdir(exist_ok=True)  # systemd-nspawn shows other parts of sysfs alone
        host.power_on()
    except (LabError, OSError) as error:
        print(f"vfioap-lab: {error}", file=sys.stderr)
        return 1
    shim_wrapper.write(layout)
    shim_wrapper.write_lab(layout)
    layout.booted.touch()
    _tell_systemd("READY=1")
    # Without its kernel the host is of no use; one that is only stopped, to play a hang, is still there.
    while signal.sigwait({signal.SIGTERM, signal.SIGCHLD}) == signal.SIGCHLD and host.kernel.pid:
        pass
    host.power_off()
    return 1


def _tell_systemd(text: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    sys.exit(main())
