# SPDX-License-Identifier: Apache-2.0
"""What a power cut and a new boot do to a host, inside the lab.

Every program is killed, guests included; the emulated kernel forgets, /run is empty, the boot id is a
new one; /etc and /var stay. Only the lab's own processes, its command and the caller's ancestors live
on, else nobody could see the result.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.lab import world
from vfioapd.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vfioapd.lab.host import Host
    from vfioapd.lab.layout import Layout

KILL_SECONDS = 10.0


def reboot(layout: Layout, host: Host, caller: int, spared: Iterable[int | None]) -> None:
    kill_all_but({1, *filter(None, spared), *ancestors(caller)})
    for name in host.services:
        host.stop(name)
    host.reboot_kernel()
    world.empty_run(layout)
    world.new_boot_id(layout)
    host.start_services()


def ancestors(pid: int) -> Iterator[int]:
    """The process itself, its parent and so on, up to the lab's first or to one outside of the lab."""
    while pid:
        yield pid
        pid = _parent(pid)


def kill_all_but(spared: set[int]) -> None:
    """Repeated until none is left, as a process may fork while the others are being killed."""
    deadline = time.monotonic() + KILL_SECONDS
    while victims := [pid for pid in _living() if pid not in spared]:
        if time.monotonic() > deadline:
            raise LabError(f"processes {victims} could not be killed")
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _wait_for_end(victims, deadline)


def _wait_for_end(pids: Iterable[int], deadline: float) -> None:
    while any(_state(pid) not in ("Z", "X", "") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.005)


def _living() -> list[int]:
    numbers = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [pid for pid in numbers if _state(pid) not in ("Z", "X", "")]


def _state(pid: int) -> str:
    return _stat_field(pid, 0)


def _parent(pid: int) -> int:
    return int(_stat_field(pid, 1) or 0)


def _stat_field(pid: int, index: int) -> str:
    """Field of /proc/PID/stat after the name (which may hold any character); empty if it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[index]
    except (OSError, IndexError):
        return ""
