# SPDX-License-Identifier: Apache-2.0
"""A whole LPAR applied at once: 85 matrices of 60 adapters, against the bare writes and against mdevctl."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from bench.figures import Figure, Goal, Section, ratio
from bench.processes import VFIOAPCTL, milliseconds, run, running_daemon
from vfioapd.domain.mask import Mask
from vfioapd.lab import wire
from vfioapd.lab.layout import Layout

if TYPE_CHECKING:
    from bench.inside import Options

ADAPTERS, DOMAINS = range(60), range(85)
BUS = Path("/sys/bus/ap")
MATRIX = Path("/sys/devices/vfio_ap/matrix")
CREATE = MATRIX / "mdev_supported_types/vfio_ap-passthrough/create"
DEFINITIONS = Path("/etc/mdevctl.d/matrix")
EVERYTHING = "0x" + "f" * 64

METHOD = """\
{host}, no device and all queues the host's before each sample. One `vfioapctl apply` of a host.toml with 85
matrices of 60 adapters × 1 domain, whole process: lock, one read of the host, plan, journal, writes, a check
by a fresh read, definitions, revision. Beside it the bare writes that this takes at least (one mask, 85
devices made, 85 matrices set), by a loop in Python that checks nothing; and `mdevctl start` of the same
85, one process each, with the mask already right. The daemon is stopped (SIGSTOP) while the others run."""


def measure(options: Options) -> Section:
    """The three in turn; then an apply with nothing to do."""
    ours = Figure("`vfioapctl apply` of 85 matrices", "ms", [])
    bare = Figure("the bare writes", "ms", [])
    mdevctl = Figure("85 × `mdevctl start`, mask right", "ms", [])
    again = Figure("`vfioapctl apply`, nothing to do", "ms", [])
    writes = idle_writes = 0
    with running_daemon() as daemon:
        for _ in range(options.rounds):
            _apply(_host_file(()))
            _writes(reset=True)
            ours.samples.append(milliseconds(lambda: _apply(_host_file(DOMAINS))))
            writes = _writes()
            again.samples.append(milliseconds(lambda: run(VFIOAPCTL, "apply")))
            idle_writes = _writes() - writes
            with daemon.frozen():
                _empty()
                bare.samples.append(milliseconds(_bare))
                _empty(masks=False)
                mdevctl.samples.append(milliseconds(_mdevctl))
                _empty()
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


def _host_file(domains: range | tuple[()]) -> str:
    tables = [
        f'[[matrix]]\nname = "m{domain}"\nuuid = "{_uuid(domain)}"\n'
        f"adapters = {[*ADAPTERS]}\ndomains = [{domain}]\n"
        for domain in domains
    ]
    return "\n".join(['version = 1\n[host]\nbinding = "masks"\n', *tables])


def _apply(text: str) -> None:
    file = Path("/run/vfioapd-bench.toml")
    file.write_text(text)
    run(VFIOAPCTL, "apply", str(file), "--disrupt")


def _empty(*, masks: bool = True) -> None:
    """No devices; with ``masks`` every queue the host's."""
    for device in Path("/sys/bus/mdev/devices").iterdir():
        _write(device / "remove", "1\n")
    if masks:
        _write(BUS / "apmask", f"{EVERYTHING}\n")
        _write(BUS / "aqmask", f"{EVERYTHING}\n")


def _bare() -> None:
    adapters = Mask.of(ADAPTERS)
    _write(BUS / "apmask", ",".join(f"-{adapter}" for adapter in ADAPTERS) + "\n")
    for domain in DOMAINS:
        _write(CREATE, f"{_uuid(domain)}\n")
        domains = Mask.of([domain])
        _write(MATRIX / str(_uuid(domain)) / "ap_config", f"{adapters},{domains},{domains}\n")


def _mdevctl() -> None:
    for domain in DOMAINS:
        run("mdevctl", "start", "--uuid", str(_uuid(domain)))


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _writes(*, reset: bool = False) -> int:
    """Sysfs writes since the last reset, counted by the emulated kernel."""
    answer = wire.request(Layout().kernel_socket, {"command": "writes", "reset": reset})
    return int(str(answer["writes"]))


def _uuid(domain: int) -> UUID:
    return UUID(int=0x1000_0000_0000_4000_8000_0000_0000_0000 + domain)
