# SPDX-License-Identifier: Apache-2.0
"""Other ways to make the devices that vfioapd restores: as a service in its place at boot, or by virsh.

``python -m bench.boot_ways`` does it by virsh, in a booted lab without devices, and prints the milliseconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import apply_time
from bench.apply_time import ADAPTERS, DOMAINS, bare_writes, uuid_of
from bench.processes import milliseconds, run
from vfioapd.backend import write_helper

if TYPE_CHECKING:
    from collections.abc import Iterator

MDEVS = Path("/sys/bus/mdev/devices")
SAVED = "/var/bench"  # outlives the boot
LIBVIRT_SECONDS = 60

# vfioapd.service with another program, at the same place in the boot and in the same sandbox.
DROP_IN = """\
[Service]
Type=oneshot
RemainAfterExit=yes
Restart=no
WatchdogSec=0
StandardInput=file:{saved}
ExecStart=
ExecStart={program}
"""


def drop_in(way: str) -> str:
    """For vfioapd.service, whose new program reads what ``text`` gives from its standard input."""
    helper = f"{sys.executable} -I -S {write_helper.__file__}"
    return DROP_IN.format(saved=SAVED, program=helper if way == "bare" else "/bin/bash -e")


def text(way: str) -> str:
    """What the program reads: all writes in one line, or a script."""
    if way == "bare":
        return apply_time.bare_line()
    lines = _redbook() if way == "script" else _mdevctl()
    return "\n".join([_mask(), *lines]) + "\n"


def main() -> int:
    """All devices by virsh, one after the other."""
    apply_time.empty()
    apply_time.settle()
    _wait_for_libvirt()
    listed = run("virsh", "-q", "nodedev-list", "--all", "--cap", "mdev").split()
    names = [name for name in listed if any(_underscored(domain) in name for domain in DOMAINS)]

    def make() -> None:
        apply_time.write(*next(bare_writes()))
        for name in names:
            run("virsh", "-q", "nodedev-start", name)

    took = milliseconds(make)
    found = len(list(MDEVS.iterdir()))
    if found != len(DOMAINS):
        raise SystemExit(f"bench: virsh made {found} devices, not {len(DOMAINS)}")
    print(took)
    return 0


def _mask() -> str:
    path, mask = next(bare_writes())
    return f"echo {mask.strip()} > {path}"


def _redbook() -> Iterator[str]:
    """As the Redbook SG24-8547 has it (Examples 3-8 to 3-14), with one mask and without its sleeps: a
    number is echoed into each attribute."""
    for domain in DOMAINS:
        yield f"echo {uuid_of(domain)} > {apply_time.CREATE}"
        yield f"cd {apply_time.MATRIX}/{uuid_of(domain)}"
        yield from (f"echo {adapter:#04x} > assign_adapter" for adapter in ADAPTERS)
        yield f"echo {domain:#06x} > assign_domain"
        yield f"echo {domain:#06x} > assign_control_domain"


def _mdevctl() -> Iterator[str]:
    yield from (f"mdevctl start --uuid {uuid_of(domain)}" for domain in DOMAINS)


def _wait_for_libvirt() -> None:
    """Until it has heard that the devices are gone: it refuses to start one that it takes for active."""
    deadline = time.monotonic() + LIBVIRT_SECONDS
    while run("virsh", "-q", "nodedev-list", "--cap", "mdev").split():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: libvirt lists removed devices after {LIBVIRT_SECONDS} s")
        time.sleep(0.1)


def _underscored(domain: int) -> str:
    return str(uuid_of(domain)).replace("-", "_")


if __name__ == "__main__":
    sys.exit(main())
