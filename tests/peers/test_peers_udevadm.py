# SPDX-License-Identifier: Apache-2.0
"""udevadm monitor prints the uevents of a mask change as the kernel was recorded to send them."""

from __future__ import annotations

import shlex
import subprocess
from typing import TYPE_CHECKING

from recording import host_file, read_session

from vfioapd.lab.harness import running_lab

if TYPE_CHECKING:
    from pathlib import Path

    from recording import Line

    from vfioapd.lab.harness import Lab

Event = list[tuple[str, str]]


def test_a_mask_change_is_monitored_in_the_kernels_order_with_its_keys(tmp_path: Path) -> None:
    session = read_session()
    write = next(line for line in session if line["op"] == "write" and line.get("uevents"))
    file = tmp_path / "recorded.toml"
    file.write_text(host_file(session[0]))
    with running_lab(str(file), "--no-libvirt") as lab:
        change = f"printf %s {shlex.quote(write['data'])} > {write['path']}"
        events = monitored(lab, change, len(write["uevents"]))
    assert [without_number(event) for event in events] == [as_recorded(line) for line in write["uevents"]]
    numbers = [int(dict(event)["SEQNUM"]) for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def monitored(lab: Lab, change: str, count: int) -> list[Event]:
    """The first `count` events that the monitor prints after a change made once it listens."""
    command = lab.command_line("stdbuf", "-oL", "udevadm", "monitor", "--kernel", "--property")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as monitor:
        assert monitor.stdout
        try:
            while not monitor.stdout.readline().startswith("KERNEL"):  # the legend comes when it listens
                pass
            lab.shell(change)
            return [_read_event(monitor) for _ in range(count)]
        finally:
            monitor.terminate()


def _read_event(monitor: subprocess.Popen[str]) -> Event:
    """From its KERNEL[...] line to the empty line behind it."""
    assert monitor.stdout
    for line in monitor.stdout:
        if line.startswith("KERNEL["):
            break
    event = []
    for line in monitor.stdout:
        if line == "\n":
            break
        name, _, value = line.rstrip("\n").partition("=")
        event.append((name, value))
    return event


def without_number(event: Event) -> Event:
    return [(name, value) for name, value in event if name != "SEQNUM"]


def as_recorded(line: Line) -> Event:
    keys = {"ACTION": line["action"], "DEVPATH": line["devpath"], **line["env"]}
    return [(name, value.rstrip("\n")) for name, value in keys.items() if name != "SEQNUM"]
