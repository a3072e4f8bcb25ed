# SPDX-License-Identifier: Apache-2.0
"""The part of devtmpfs: device nodes that appear and vanish with devices, before anybody is told."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from .events import Uevent


# The emulated tree serves these itself: touching them here would wait for the very thread that does it.
_SERVED = "vfio/"


class DeviceNodes:
    """A subscriber for `Events`; needs CAP_MKNOD. No driver is behind the nodes: opening one gives ENXIO."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, event: Uevent) -> None:
        name = event.env.get("DEVNAME", _SERVED)
        if name.startswith(_SERVED) or event.action not in ("add", "remove"):
            return
        node = self._folder / name
        try:
            if event.action == "remove" or node.is_char_device():  # the latter is left from before a reboot
                node.unlink()
            if event.action == "add":
                number = os.makedev(int(event.env["MAJOR"]), int(event.env["MINOR"]))
                os.mknod(node, stat.S_IFCHR | 0o600, number)
        except OSError as error:
            print(f"vfioapd.emulator: no device node {node}: {error.strerror}", file=sys.stderr)
