# SPDX-License-Identifier: Apache-2.0
"""Where a lab keeps its own files: one folder of its private /run, the same path in every lab."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vfioapd.lab.errors import Exit, LabError

LAB_VARIABLE = "VFIOAP_LAB"
KERNEL_VARIABLE = "VFIOAP_LAB_CONTROL"
ROOT = Path("/run/vfioap-lab")
PACKAGE_PARENT = Path(__file__).resolve().parents[2]
HOSTS = Path(__file__).resolve().parent / "hosts"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths as seen inside the lab."""

    root: Path = ROOT

    @property
    def kernel(self) -> Path:
        """Mount point of the emulated kernel's tree."""
        return self.root / "kernel"

    @property
    def kernel_socket(self) -> Path:
        return self.root / "kernel.sock"

    @property
    def init_socket(self) -> Path:
        return self.root / "init.sock"

    @property
    def notify_socket(self) -> Path:
        return self.root / "notify.sock"

    @property
    def layers(self) -> Path:
        """Upper layers of the overlays, that is: the disk of the emulated host."""
        return self.root / "layers"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def guests(self) -> Path:
        """One JSON file per guest: how it behaves when a device is to be unplugged."""
        return self.root / "guests"

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def shim(self) -> Path:
        return self.bin / "qemu-system-s390x"

    @property
    def guest_kernel(self) -> Path:
        return self.bin / "idle-kernel"

    @property
    def booted(self) -> Path:
        """There in a lab that has a system of its own, with its own programs."""
        return self.root / "booted"

    @property
    def boot_id(self) -> Path:
        return self.root / "boot_id"


def current_lab() -> Layout:
    """The lab this process runs in."""
    root = os.environ.get(LAB_VARIABLE)
    if not root:
        raise LabError(
            "this command works inside a lab only; start one with: vfioap-lab run HOSTFILE -- bash",
            Exit.NO_LAB,
        )
    return Layout(Path(root))
