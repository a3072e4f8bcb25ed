# SPDX-License-Identifier: Apache-2.0
"""The part of boot_time that runs in the booted lab: all devices made in one way, timed.

``python -m bench.boot_ways WAY`` prints the milliseconds.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import apply_time
from bench.apply_time import ADAPTERS, DOMAINS, bare_writes, uuid_of
from bench.processes import milliseconds, run

if TYPE_CHECKING:
    from collections.abc import Callable

MDEVS = Path("/sys/bus/mdev/devices")
LIBVIRT_SECONDS = 60
BARE, SCRIPT = Path("/run/bench.writes"), Path("/run/bench.sh")


def main() -> int:
    """Make all devices once, from a host without any; print how long it took."""
    way = sys.argv[1]
    make = WAYS[way]()
    apply_time.empty()
    apply_time.settle()
    _wait_for_libvirt()
    took = milliseconds(make)
    found = len(list(MDEVS.iterdir()))
    if found != len(DOMAINS):
        raise SystemExit(f"bench: {way} made {found} devices, not {len(DOMAINS)}")
    print(took)
    return 0


def _wait_for_libvirt() -> None:
    """Until it has heard that the devices are gone: it refuses to start one that it takes for active."""
    deadline = time.monotonic() + LIBVIRT_SECONDS
    while run("virsh", "-q", "nodedev-list", "--cap", "mdev").split():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: libvirt lists removed devices after {LIBVIRT_SECONDS} s")
        time.sleep(0.1)


def _bare() -> Callable[[], object]:
    apply_time.prepare_bare(BARE)
    return lambda: apply_time.write_bare(BARE)


def _script() -> Callable[[], object]:
    """As the Redbook SG24-8547 has it (Examples 3-8 to 3-14), with one mask and without its sleeps: a
    number is echoed into each attribute."""
    path, mask = next(bare_writes())
    lines = [f"echo {mask.strip()} > {path}"]
    for domain in DOMAINS:
        lines += [
            f"echo {uuid_of(domain)} > {apply_time.CREATE}",
            f"cd {apply_time.MATRIX}/{uuid_of(domain)}",
        ]
        lines += [f"echo {adapter:#04x} > assign_adapter" for adapter in ADAPTERS]
        lines += [f"echo {domain:#06x} > assign_domain", f"echo {domain:#06x} > assign_control_domain"]
    SCRIPT.write_text("\n".join(["set -e", *lines]) + "\n")
    return lambda: run("bash", str(SCRIPT))


def _mdevctl() -> Callable[[], object]:
    return apply_time.by_mdevctl


def _virsh() -> Callable[[], object]:
    listed = run("virsh", "-q", "nodedev-list", "--all", "--cap", "mdev").split()
    names = [name for name in listed if any(_underscored(domain) in name for domain in DOMAINS)]

    def make() -> None:
        apply_time.write(*next(bare_writes()))
        for name in names:
            run("virsh", "-q", "nodedev-start", name)

    return make


def _underscored(domain: int) -> str:
    return str(uuid_of(domain)).replace("-", "_")


WAYS = {"bare": _bare, "script": _script, "mdevctl": _mdevctl, "virsh": _virsh}

if __name__ == "__main__":
    sys.exit(main())
