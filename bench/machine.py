# SPDX-License-Identifier: Apache-2.0
"""The machine and the programs of a run, as far as they say how fast things are."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from vfioapd import VERSION

PACKAGES = ("libvirt-daemon", "mdevctl", "python3-libvirt")


def facts() -> list[tuple[str, str]]:
    """Name and value, in the order of the report."""
    return [
        ("date", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("processor", f"{os.cpu_count()} × {_processor()}, {platform.machine()}"),
        ("memory", f"{_memory() / 2**20:.1f} GB"),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("system", platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")),
        ("load before the run", f"{os.getloadavg()[0]:.2f}"),
        ("vfioapd", VERSION),
        ("Python", platform.python_version()),
        *((name, _package(name)) for name in PACKAGES),
    ]


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return " ".join(found[1].split()) if found else "unknown"


def _memory() -> int:
    """In kB."""
    found = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


def _package(name: str) -> str:
    query = ["dpkg-query", "-W", "-f=${Version}", name]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout or "not installed"
    except FileNotFoundError:
        return "unknown"
