# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.emulator``, as root: the emulated kernel's speed, beside a bare tmpfs in the same run.

Prints a section in Markdown: how long hosts take to load, and what one read or write of an attribute
costs through the mounted tree (open, one read or write, close) at 16 and at 5,100 queues.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Figure, Goal, Section
from vfioapd.emulator.hostfile import Card, Host, load_host_file
from vfioapd.emulator.kernel import Kernel
from vfioapd.emulator.machine import DEFAULT_FUNCTIONS, Mode

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
MICROSECONDS = 1e6

# What is read or written, with the text of the write.
ATTRIBUTES = {
    "bus attribute": ("bus/ap/config_time", b"30\n"),
    "queue attribute": ("devices/ap/card05/05.000d/request_count", b"0\n"),
}
METHOD = (
    "Loading is in process, from host file to the last uevent of the boot. An access is open, one read or "
    "write, close, by another process than the server's; the tmpfs row is the same on a file in /dev/shm."
)


def main() -> int:
    """Measure and print. Exit status 1 without root."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000, help="accesses of each kind")
    rounds = parser.parse_args().rounds
    if os.geteuid() != 0:
        print("bench.emulator: mounting needs root", file=sys.stderr)
        return 1
    section = Section("Emulated kernel", METHOD)
    loads = _load_times()
    section.figures.extend(loads)
    bare = _tmpfs(rounds)
    section.figures.extend(bare)
    for host in ("rdbkvm4", "full-lpar"):
        section.figures.extend(_mounted(host, rounds))
    _judge(section, loads, bare)
    print(section.markdown())
    return 0


def _load_times() -> list[Figure]:
    largest = Host(
        "256 x 256",
        max_domain=255,
        usage_domains=tuple(range(256)),
        cards=tuple(Card(number, "CEX8C", DEFAULT_FUNCTIONS[Mode.CCA]) for number in range(256)),
    )
    return [
        Figure(
            "load 5,100 queues",
            "s",
            [_seconds(lambda: Kernel(load_host_file("full-lpar"))) for _ in range(5)],
        ),
        Figure("load 65,536 queues", "s", [_seconds(lambda: Kernel(largest)) for _ in range(3)]),
    ]


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _tmpfs(rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder, "attribute")
        path.write_bytes(b"30\n")
        return _accesses("tmpfs", path, b"30\n", rounds)


def _mounted(host: str, rounds: int) -> list[Figure]:
    """The same through a served tree, in namespaces of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "--mount", "--net", sys.executable, "-m", "vfioapd.emulator", host, folder]
        server = subprocess.Popen([*command, "--no-uevents"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        server.stdout.readline()
        tree = Path(f"/proc/{server.pid}/root{folder}")
        # Down to the folder once, so that /proc is not measured too.
        before = os.open(".", os.O_RDONLY)
        os.chdir(tree)
        figures = []
        for name, (path, text) in ATTRIBUTES.items():
            figures += _accesses(f"{host}, {name}", Path(path), text, rounds)
        os.fchdir(before)
        os.close(before)
        server.terminate()
        server.wait()
        return figures


def _accesses(name: str, path: Path, text: bytes, rounds: int) -> list[Figure]:
    reads = [_seconds(lambda: _read(path)) * MICROSECONDS for _ in range(rounds)]
    writes = [_seconds(lambda: _write(path, text)) * MICROSECONDS for _ in range(rounds)]
    return [Figure(f"{name}: read", "µs", reads), Figure(f"{name}: write", "µs", writes)]


def _read(path: Path) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        return os.read(file, 4096)
    finally:
        os.close(file)


def _write(path: Path, text: bytes) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, text)
    finally:
        os.close(file)


def _judge(section: Section, loads: list[Figure], bare: list[Figure]) -> None:
    by_name = {figure.what: figure.median for figure in section.figures}
    section.goals.append(Goal("load 5,100 queues", "s", loads[0].median, 2, inclusive=False))
    section.goals.append(Goal("load 65,536 queues", "s", loads[1].median, 30, inclusive=False))
    for index, access in enumerate(("read", "write")):
        small = by_name[f"rdbkvm4, queue attribute: {access}"]
        full = by_name[f"full-lpar, queue attribute: {access}"]
        section.goals.append(Goal(f"mounted {access} at 5,100 queues", "µs", full, 150, inclusive=False))
        section.notes.append(
            f"A mounted {access} at 5,100 queues is {full / small:.2f} times that at 16 queues and "
            f"{full / bare[index].median:.0f} times that on tmpfs."
        )


if __name__ == "__main__":
    sys.exit(main())
