# SPDX-License-Identifier: Apache-2.0
"""The <emulator> of a lab guest: the real qemu-system-s390x, with the vfio-ap device that TCG cannot have.

libvirt's probes go straight through. A guest's QEMU keeps the process id that libvirt started; a child
stands between the two on the QMP monitor (`shim_proxy`) and plays the guest's AP bus (`shim_bus`).
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vfioapd.lab.layout import KERNEL_VARIABLE, current_lab
from vfioapd.lab.shim_bus import ApBus, Device, PlugError

MONITOR = re.compile(r"(socket,id=charmonitor,)fd=(\d+)(.*)")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """QEMU's arguments as libvirt writes them, taken apart."""

    guest: str
    monitor: int | None  # listening socket that libvirt connects to; None in a probe
    devices: tuple[Device, ...]
    rest: tuple[str, ...]  # without the devices

    def with_monitor(self, descriptor: int) -> list[str]:
        return [MONITOR.sub(rf"\g<1>fd={descriptor}\g<3>", argument) for argument in self.rest]


def main() -> NoReturn:
    real, *arguments = sys.argv[1:]
    line = parse_command_line(arguments)
    if line.monitor is None:
        os.execv(real, [real, *arguments])
    bus = ApBus(Path(os.environ[KERNEL_VARIABLE]), line.guest)
    _cold_plug(bus, line.devices)
    listener = _listen()
    qemu = os.getpid()
    if os.fork() == 0:
        _become_proxy(line, bus, listener, qemu)
    listener.set_inheritable(True)
    os.close(line.monitor)
    os.execv(real, [real, *line.with_monitor(listener.fileno())])


def parse_command_line(arguments: list[str]) -> CommandLine:
    guest, monitor = "", None
    devices: list[Device] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        value = next(words, None) if word in ("-device", "-name", "-chardev") else None
        if word == "-device" and value and (device := parse_device(value)):
            devices.append(device)
            continue
        if word == "-name" and value:
            guest = _guest_name(value)
        if word == "-chardev" and value and (match := MONITOR.fullmatch(value)):
            monitor = int(match[2])
        rest += [word] if value is None else [word, value]
    return CommandLine(guest, monitor, tuple(devices), tuple(rest))


def parse_device(text: str) -> Device | None:
    """JSON since libvirt 6.9 with QEMU 6.2, before that `vfio-ap,id=...,sysfsdev=...`."""
    if text.startswith("{"):
        properties = json.loads(text)
    else:
        driver, *pairs = text.split(",")
        properties = {"driver": driver, **dict(pair.partition("=")[::2] for pair in pairs)}
    return Device.from_properties(properties)


def _guest_name(value: str) -> str:
    """`guest=NAME,debug-threads=on`; QEMU writes a comma in a name twice."""
    match = re.match(r"guest=((?:[^,]|,,)*)", value)
    return (match[1] if match else value).replace(",,", ",")


def _cold_plug(bus: ApBus, devices: tuple[Device, ...]) -> None:
    for device in devices:
        try:
            bus.plug(device)
        except PlugError as error:
            bus.close()
            sys.exit(f"qemu-system-s390x: -device {device.text()}: {error}")


def _listen() -> socket.socket:
    """The monitor of the real QEMU. It listens before QEMU runs, so nobody has to wait for it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("")  # an abstract address that the kernel picks, private to the lab's network namespace
    listener.listen()
    return listener


def _become_proxy(line: CommandLine, bus: ApBus, listener: socket.socket, qemu: int) -> NoReturn:
    from vfioapd.lab import shim_proxy  # asyncio: only this process pays for it

    assert line.monitor is not None
    status = 1
    try:
        os.setsid()
        address = listener.getsockname()
        listener.close()
        _leave_only(line.monitor, current_lab().logs / f"shim-{line.guest}.log")
        shim_proxy.run(bus, line.monitor, address, qemu)
        status = 0
    finally:
        os._exit(status)


def _leave_only(kept: int, log: Path) -> None:
    """libvirt waits for the end of pipes that this process must not hold open."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


if __name__ == "__main__":
    main()
