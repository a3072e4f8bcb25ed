# SPDX-License-Identifier: Apache-2.0
"""What the lab puts in its folder of programs: the <emulator> of its guests, what they run, and itself."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from vfioapd.lab.guest_kernel import idle_kernel
from vfioapd.lab.layout import KERNEL_VARIABLE, LAB_VARIABLE, PACKAGE_PARENT
from vfioapd.lab.requirements import find_program

if TYPE_CHECKING:
    from vfioapd.lab.layout import Layout


def write(layout: Layout) -> None:
    """libvirt starts it with an empty environment, so all it needs is written into it."""
    real = find_program("qemu-system-s390x") or "qemu-system-s390x"
    variables = {
        "PYTHONPATH": PACKAGE_PARENT,
        LAB_VARIABLE: layout.root,
        KERNEL_VARIABLE: layout.kernel_socket,
    }
    settings = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in variables.items())
    command = shlex.join([sys.executable, "-m", "vfioapd.lab.shim", real])
    layout.shim.write_text(f'#!/bin/sh\n{settings} exec {command} "$@"\n')
    layout.shim.chmod(0o755)
    layout.guest_kernel.write_bytes(idle_kernel())


def write_lab(layout: Layout) -> None:
    """A booted system need not have the interpreter that vfioap-lab was installed for."""
    path = layout.bin / "vfioap-lab"
    command = shlex.join([sys.executable, "-m", "vfioapd.lab.main"])
    path.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(PACKAGE_PARENT))} exec {command} "$@"\n')
    path.chmod(0o755)
