# SPDX-License-Identifier: Apache-2.0
"""A whole LPAR applied at once: 85 matrices of 60 adapters, against the bare writes and against mdevctl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from bench.figures import Figure, Goal, Section, ratio
from bench.processes import VFIOAPCTL, milliseconds, run, running_daemon
from vfioapd.backend import write_helper
from vfioapd.domain.mask import Mask
from vfioapd.lab import wire
from vfioapd.lab.layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.inside import Options

ADAPTERS, DOMAINS = range(60), range(85)
BUS = Path("/sys/bus/ap")
MATRIX = Path("/sys/devices/vfio_ap/matrix")
CREATE = MATRIX / "mdev_supported_types/vfio_ap-passthrough/create"
DEFINITIONS = Path("/etc/mdevctl.d/matrix")
EVERYTHING = "0x" + "f" * 64
SETTLE_SECONDS = 1.0

METHOD = """\
{host}, no device, all queues the host's and udevd idle before each sample. One `vfioapctl apply` of a
host.toml with 85 matrices of 60 adapters × 1 domain, whole process: lock, one read of the host, plan,
journal, writes, a check by a fresh read, definitions, revision. Beside it the bare writes that this takes at
least (one mask, 85 devices made, 85 matrices set), by the process that makes the daemon's writes, started for
them and given all of them at once: it checks nothing; and the mask followed by `mdevctl start` of the same
85, one process each. The daemon is stopped (SIGSTOP) while the others run."""


def measure(options: Options) -> Section:
    """The three in turn; then an apply with nothing to do."""
    ours = Figure("`vfioapctl apply` of 85 matrices", "ms", [])
    bare = Figure("the bare writes", "ms", [])
    mdevctl = Figure("the mask, then 85 × `mdevctl start`", "ms", [])
    again = Figure("`vfioapctl apply`, nothing to do", "ms", [])
    writes = idle_writes = 0
    writes_file = Path("/run/vfioapd-bench.writes")
    writes_file.write_text(bare_line())
    with running_daemon() as daemon:
        for _ in range(options.rounds):
            _apply(host_file(()))
            settle()
            _writes(reset=True)
            ours.samples.append(milliseconds(lambda: _apply(host_file(DOMAINS))))
            writes = _writes()
            settle()
            again.samples.append(milliseconds(lambda: run(VFIOAPCTL, "apply")))
            idle_writes = _writes() - writes
            with daemon.frozen():
                empty()
                settle()
                bare.samples.append(milliseconds(lambda: write_bare(writes_file)))
                empty()
                settle()
                mdevctl.samples.append(milliseconds(by_mdevctl))
                empty()
    least = 1 + 2 * len(DOMAINS)
    return Section(
        f"A whole LPAR applied at once, {options.host_words}",
        METHOD.format(host=options.host_words),
        [ours, bare, mdevctl, again],
        [
            Goal("apply, against the bare writes", "×", ratio(ours, bare), 1.3),
            Goal("apply, against `mdevctl start`", "×", ratio(ours, mdevctl), 0.5, inclusive=False),
            Goal("writes made, against the least possible", "×", writes / least, 1.0),
            Goal("writes of an apply with nothing to do", "writes", idle_writes, 0),
        ],
        [f"{writes} sysfs writes were made, {least} is the least possible."],
    )


def host_file(domains: range | tuple[()]) -> str:
    tables = [
        f'[[matrix]]\nname = "m{domain}"\nuuid = "{uuid_of(domain)}"\n'
        f"adapters = {[*ADAPTERS]}\ndomains = [{domain}]\n"
        for domain in domains
    ]
    return "\n".join(['version = 1\n[host]\nbinding = "masks"\n', *tables])


def _apply(text: str) -> None:
    file = Path("/run/vfioapd-bench.toml")
    file.write_text(text)
    run(VFIOAPCTL, "apply", str(file), "--disrupt")


def empty() -> None:
    """No devices, every queue the host's."""
    for device in Path("/sys/bus/mdev/devices").iterdir():
        write(device / "remove", "1\n")
    write(BUS / "apmask", f"{EVERYTHING}\n")
    write(BUS / "aqmask", f"{EVERYTHING}\n")


def bare_line() -> str:
    """All the writes in one line, as the helper takes them."""
    return json.dumps([(str(path), text) for path, text in bare_writes()]) + "\n"


def write_bare(file: Path) -> None:
    with file.open() as lines:
        helper = [sys.executable, "-I", "-S", write_helper.__file__]
        answers = subprocess.run(helper, stdin=lines, capture_output=True, text=True, check=True).stdout
    if set(answers.split()) != {"0"}:
        raise SystemExit(f"bench: the bare writes were answered {answers.split()}")


def bare_writes() -> Iterator[tuple[Path, str]]:
    adapters = Mask.of(ADAPTERS)
    yield BUS / "apmask", ",".join(f"-{adapter}" for adapter in ADAPTERS) + "\n"
    for domain in DOMAINS:
        yield CREATE, f"{uuid_of(domain)}\n"
        domains = Mask.of([domain])
        yield MATRIX / str(uuid_of(domain)) / "ap_config", f"{adapters},{domains},{domains}\n"


def settle() -> None:
    """Until udevd and the daemon have heard all that was said about the queues that moved."""
    run("udevadm", "settle", "--timeout", "60")
    time.sleep(SETTLE_SECONDS)


def by_mdevctl() -> None:
    write(*next(bare_writes()))
    for domain in DOMAINS:
        run("mdevctl", "start", "--uuid", str(uuid_of(domain)))


def write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _writes(*, reset: bool = False) -> int:
    """Sysfs writes since the last reset, counted by the emulated kernel."""
    answer = wire.request(Layout().kernel_socket, {"command": "writes", "reset": reset})
    return int(str(answer["writes"]))


def uuid_of(domain: int) -> UUID:
    return UUID(int=0x1000_0000_0000_4000_8000_0000_0000_0000 + domain)
