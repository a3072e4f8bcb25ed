# SPDX-License-Identifier: Apache-2.0
"""Test guests: real libvirt domains with a real, small s390x QEMU that runs next to nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.lab import programs
from vfioapd.lab.errors import Exit, LabError

if TYPE_CHECKING:
    import argparse
    from xml.etree.ElementTree import Element

    from vfioapd.lab.layout import Layout

CAP_SYS_RESOURCE = 24
MEMORY_MIB = 64
# What libvirt needs less of than the usual 8 MiB hard limit on locked memory.
LOCKED_KIB = 8192


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a guest answers when its device is to go; read anew by the shim at each request."""

    refuse_unplug: bool = False
    delay_unplug: float = 0.0  # seconds; libvirt waits 5
    release_on_request: bool = False  # as QEMU 8 and newer, when the kernel wants the device back

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--refuse-unplug", action="store_true", help="the guest rejects each unplug")
        parser.add_argument(
            "--delay-unplug", metavar="SECONDS", type=float, default=0.0, help="the guest takes its time"
        )
        parser.add_argument(
            "--release-on-request", action="store_true", help="QEMU gives the device back when asked to"
        )

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Behaviour:
        return cls(options.refuse_unplug, options.delay_unplug, options.release_on_request)

    @classmethod
    def read(cls, layout: Layout, name: str) -> Behaviour:
        """Of a guest that the lab did not define: the usual one."""
        try:
            return cls(**json.loads(_behaviour_file(layout, name).read_text()))
        except FileNotFoundError:
            return cls()

    def write(self, layout: Layout, name: str) -> None:
        path = _behaviour_file(layout, name)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(asdict(self)))
        temporary.rename(path)


def define(layout: Layout, name: str, behaviour: Behaviour) -> None:
    """Define the guest in libvirt unless it is known; its behaviour changes at once, even while it runs."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise LabError(f"{name!r} cannot be a guest's name: letters, digits and ._+- only", Exit.USAGE)
    behaviour.write(layout, name)
    purpose = f"cannot define guest {name}"
    if name not in _virsh(purpose, "list", "--all", "--name").split():
        _virsh(purpose, "define", "/dev/stdin", document=guest_xml(layout, name))


def start(name: str) -> None:
    _virsh(f"cannot start guest {name}", "start", name)


def crash(name: str) -> None:
    try:
        pid = int(Path(f"/run/libvirt/qemu/{name}.pid").read_text())
    except FileNotFoundError as error:
        raise LabError(f"guest {name} is not running") from error
    os.kill(pid, signal.SIGSEGV)


def guest_xml(layout: Layout, name: str) -> str:
    domain = ElementTree.Element("domain", type="qemu")
    _add(domain, "name", name)
    _add(domain, "memory", str(MEMORY_MIB), unit="MiB")
    if not _may_raise_limits():
        # libvirt raises RLIMIT_MEMLOCK when a device is attached; this keeps it below what is allowed
        _add(_add(domain, "memtune"), "hard_limit", str(LOCKED_KIB), unit="KiB")
    _add(domain, "vcpu", "1")
    system = _add(domain, "os")
    _add(system, "type", "hvm", arch="s390x", machine="s390-ccw-virtio")
    _add(system, "kernel", str(layout.guest_kernel))
    devices = _add(domain, "devices")
    _add(devices, "emulator", str(layout.shim))
    _add(devices, "memballoon", model="none")
    return ElementTree.tostring(domain, encoding="unicode")


def _virsh(purpose: str, *arguments: str, document: str = "") -> str:
    command = ["virsh", "-q", "-c", "qemu:///system", *arguments]
    return programs.run(command, purpose=purpose, document=document)


def _add(parent: Element, tag: str, text: str | None = None, **attributes: str) -> Element:
    element = ElementTree.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _may_raise_limits() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1)
    return False


def _behaviour_file(layout: Layout, name: str) -> Path:
    return layout.guests / f"{name}.json"
