# SPDX-License-Identifier: Apache-2.0
"""Kernels to test: the fixtures A to D of the reference's conformance cases, for each generation."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.emulator.generation import GENERATIONS
from vfioapd.emulator.hostfile import BootParameters, Card, Host
from vfioapd.emulator.kernel import Kernel
from vfioapd.emulator.machine import DEFAULT_FUNCTIONS, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfioapd.emulator.events import Uevent

ORACLE = Path(__file__).resolve().parents[2].parent / "shared" / "oracle"
TRACES = sorted(ORACLE.glob("*/*.jsonl"))

ALL = tuple(GENERATIONS)
NEW = ("6.12", "7.3")
OLD = ("6.1", "6.12")

BUS = "bus/ap"
MATRIX = "devices/vfio_ap/matrix"
TYPE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough"
U1 = "11111111-0000-4000-8000-000000000001"
U2 = "22222222-0000-4000-8000-000000000002"
M1 = f"{MATRIX}/{U1}"
M2 = f"{MATRIX}/{U2}"

F = "f" * 64


def host(kernel: str = "7.3", **changes: object) -> Host:
    """Host A: two cards, three domains, both drivers loaded, both masks all ones."""
    made = Host(
        name="A",
        kernel=GENERATIONS[kernel],
        max_adapter=63,
        max_domain=84,
        usage_domains=(0x04, 0x10, 0x54),
        control_domains=(0x04, 0x10, 0x53, 0x54),
        cards=(
            Card(5, "CEX7C", DEFAULT_FUNCTIONS[Mode.CCA]),
            Card(6, "CEX8A", DEFAULT_FUNCTIONS[Mode.ACCEL]),
        ),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def booted(kernel: str, **boot: object) -> Kernel:
    """Host A booted with parameters `apmask`, `aqmask`, `domain`."""
    return Kernel(host(kernel, boot=BootParameters(**boot)))  # type: ignore[arg-type]


def start(fixture: str, kernel: str) -> Kernel:
    """A: as booted. B: all queues with vfio_ap. C: empty M1 and M2. D: M1 has 5 x {4, 0x10}."""
    made = Kernel(host(kernel))
    write = made.sysfs.write
    if fixture in "BCD":
        write(f"{BUS}/apmask", "-5,-6\n")
    if fixture in "CD":
        write(f"{TYPE}/create", U1)
        write(f"{TYPE}/create", U2)
    if fixture == "D":
        for name, value in (("adapter", "5"), ("domain", "4"), ("domain", "0x10")):
            write(f"{M1}/assign_{name}", value)
    return made


def errno_of(call: Callable[[], object]) -> str:
    """Name of the errno that a call ends with; "" when it succeeds."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def driver_of(kernel: Kernel, device: str) -> str:
    """Name of the driver that has a card or queue; "" when none has."""
    try:
        return kernel.sysfs.readlink(f"{BUS}/devices/{device}/driver").rpartition("/")[2]
    except FileNotFoundError:
        return ""


def queues_with(kernel: Kernel, driver: str) -> list[str]:
    """Names of the queues that a driver has."""
    return [name for name in kernel.sysfs.names(f"{BUS}/drivers/{driver}") if "." in name]


@dataclass
class Recorder:
    """Keeps the uevents of a kernel, as `action name KEY=value ...` with the event's own keys."""

    events: list[Uevent]

    def lines(self) -> list[str]:
        return [self._line(event) for event in self.events]

    def clear(self) -> None:
        self.events.clear()

    @staticmethod
    def _line(event: Uevent) -> str:
        fixed = ("DEVTYPE", "DEV_TYPE", "MODALIAS", "MODE", "MAJOR", "MINOR", "DEVNAME")
        own = [f"{key}={value}" for key, value in event.keys if key not in fixed]
        return " ".join([event.action, event.devpath.rpartition("/")[2], *own])


def record(kernel: Kernel) -> Recorder:
    """Record the kernel's uevents from now on."""
    recorder = Recorder([])
    kernel.events.subscribe(recorder.events.append)
    return recorder
