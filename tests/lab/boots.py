# SPDX-License-Identifier: Apache-2.0
"""What the tests of booted hosts share: the systems they boot, guests with autostart, a look at the state."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vfioapd import VERSION
from vfioapd.lab import roots
from vfioapd.lab.boot_harness import BootedLab, booted_lab
from vfioapd.lab.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.lab.harness import Lab

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / f".cache/packages/vfioapd_{VERSION}_all.deb"
MACHINE = "this machine's"
# Systems where virtqemud and its siblings stand for libvirtd: see vfioapd/lab/modular.py.
MODULAR = [
    pytest.param(name, id=name, marks=[pytest.mark.boot, pytest.mark.modular])
    for name in ("debian12-modular", "debian13-modular")
]
# The machine's own Debian runs the checkout, the others the package.
SYSTEMS = [
    pytest.param(MACHINE, id="debian12"),
    pytest.param("debian13", id="debian13", marks=pytest.mark.boot),
    *MODULAR,
]
NOT_BELOW_TMP = pytest.mark.skipif(
    CHECKOUT.parts[1] == "tmp", reason="a unit with PrivateTmp=yes cannot run a daemon from below /tmp"
)

# libvirt's unit reloads by the kill of procps, which the smallest of systems lacks.
KILL = """
test -x /bin/kill || printf '#!/bin/sh\\nkill "$@"\\n' > /usr/bin/kill
chmod 755 /usr/bin/kill
"""
# A part of a script: guest aw1 starts and ends as long as the process $upgrade runs, and five times at least.
GUESTS_MEANWHILE = """\
starts=0 failed=0
while kill -0 $upgrade 2> /dev/null || [ $starts -lt 5 ]; do
  starts=$((starts + 1))
  virsh -q start aw1 --paused || failed=$((failed + 1))
  virsh -q destroy aw1 || failed=$((failed + 1))
done
wait $upgrade
"""


@contextlib.contextmanager
def boot(host: str, system: str, *, package: Path | None = None) -> Iterator[BootedLab]:
    """A booted lab on one of the systems, with that package or as the system has it; skipped with the
    reason where that cannot be had."""
    options: list[str] = []
    if system != MACHINE:
        _fetch(system)
        options += ["--root", system]
    package = package or (None if system == MACHINE else PACKAGE)
    if package:
        skip_without(package)
        options += [f"--{package.suffix[1:]}", str(package)]
    with booted_lab(host, *options) as lab:
        yield lab


def _fetch(system: str) -> None:
    if roots.SYSTEMS[system].is_modular and roots.find(system) is None:
        pytest.skip(f"{system} is not built, which takes minutes: make test-modular")
    try:
        roots.fetch(system)
    except LabError as error:
        pytest.skip(str(error))


def skip_without(package: Path) -> None:
    if not package.exists():
        pytest.skip(f"{package.relative_to(CHECKOUT)} is not built: make test-boot builds it")


def autostarted(name: str) -> str:
    """A script that defines a guest which libvirt starts with the host."""
    return f"vfioap-lab guest {name}; virsh -q autostart {name}"


def status(lab: BootedLab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.run("vfioapctl", "status", "--json").stdout)
    return found


def matrices(lab: BootedLab) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in status(lab)["matrices"]}


def matrix(lab: BootedLab) -> dict[str, Any]:
    (found,) = matrices(lab).values()
    return found


def libvirts_daemon(lab: Lab) -> str:
    """The one that has the guests, as its unit is called."""
    return "libvirtd" if lab.run("test", "-e", "/usr/sbin/virtqemud", check=False).returncode else "virtqemud"


def moment(lab: BootedLab, unit: str, what: str) -> int:
    """When a unit became active, or began to; microseconds of the machine's clock."""
    return int(lab.value(unit, f"{what}TimestampMonotonic"))


def told(lab: BootedLab, message: str) -> list[dict[str, str]]:
    """Entries of the journal of this boot with that MESSAGE_ID."""
    lines = lab.run("journalctl", "--boot", "--output=json", f"MESSAGE_ID={message}").stdout
    return [json.loads(line) for line in lines.splitlines()]
