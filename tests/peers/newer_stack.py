# SPDX-License-Identifier: Apache-2.0
"""Debian 13's mdevctl and libvirt in a lab: their root folder under an overlay, in it the lab's own
/sys, /dev, /proc, /run and mdevctl definitions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfioapd.lab.harness import Lab, Result

CHECKOUT = Path(__file__).resolve().parents[2]  # must be seen inside, too, when it is below /tmp
BIN = "/run/newer/bin"
PROGRAMS = ("libvirtd", "mdevctl", "virsh")
SHARED = "run proc sys dev tmp etc/mdevctl.d"  # run first, before it holds all the others
SET_UP = """
mkdir -p /run/newer/{{root,upper,work,bin,tmp}} /run/libvirt
case {checkout} in /tmp/*)
    mkdir -p /run/newer{checkout} && mount --bind {checkout} /run/newer{checkout} ;;
esac
mount --rbind /run/newer/tmp /tmp
mount -t overlay overlay -o lowerdir={lower},upperdir=/run/newer/upper,workdir=/run/newer/work /run/newer/root
for folder in {shared}; do
    mkdir -p /run/newer/root/$folder
    mount --rbind /$folder /run/newer/root/$folder
done
cp /etc/passwd /etc/group /run/newer/root/etc/
printf '%s = "none"\\n' auth_unix_ro auth_unix_rw >> /run/newer/root/etc/libvirt/libvirtd.conf
for program in {programs}; do
    {{
        echo '#!/bin/sh'
        echo unset RUST_BACKTRACE
        echo LC_ALL=C PATH=/usr/sbin:/usr/bin exec chroot /run/newer/root $program '"$@"'
    }} > {bin}/$program
    chmod +x {bin}/$program
done
"""
START_LIBVIRTD = """
libvirtd -d
for _ in $(seq 200); do virsh -q -c nodedev:///system nodedev-list --cap ap_matrix 2>/dev/null && exit; done
exit 1
"""


class NewerStack:
    """Commands of it stand before the lab's own on the PATH."""

    def __init__(self, lab: Lab, root: Path) -> None:
        self._lab = lab
        programs = " ".join(PROGRAMS)
        lab.shell(SET_UP.format(lower=root, shared=SHARED, programs=programs, bin=BIN, checkout=CHECKOUT))

    def shell(self, script: str, *, check: bool = True) -> Result:
        return self._lab.shell(f"PATH={BIN}:$PATH\n{script}", check=check)

    def python(self, script: str) -> Result:
        """Run a script with the interpreter of the tests, inside."""
        return self._lab.run(sys.executable, "-c", script, check=False)

    def start_libvirtd(self) -> None:
        self.shell(START_LIBVIRTD)
