# SPDX-License-Identifier: Apache-2.0
"""Twenty matrices started: one by one by both tools, and all at once by the daemon's own start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Figure, Goal, Section
from bench.processes import VFIOAPCTL, Daemon, milliseconds, run
from vfioapd.daemon.places import Places
from vfioapd.lab import wire
from vfioapd.lab.layout import Layout
from vfioapd.rpc.client import SOCKET, call

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.inside import Options

ADAPTER_PAIRS = ("0,1", "2,3", "4,5", "6,7")
DOMAIN_PAIRS = ("0,1", "2,3", "4,5", "6,7", "8,9")
HOST_FILE = Places().host_file
STARTED = Places().started  # without it the daemon takes its start for the first one after a boot
BUS = Path("/sys/bus/ap")
MDEVS = Path("/sys/bus/mdev/devices")
MASKS = {"apmask": f"0x00{'f' * 62}", "aqmask": f"0x{'f' * 64}"}

METHOD = """\
{host}. Twenty matrices of two adapters × two domains (and the same two control domains) are defined by
`vfioapctl define --start manual`; mdevctl reads the definitions that this wrote. Before each round there is
no device, and apmask already frees adapters 0 to 7, so that neither tool has a mask to write. Each round
starts all twenty in each way, the ways taking turns to be first; a sample is the time of all twenty.
`mdevctl start` takes one device, `vfioapctl start` one or many, all or none. mdevctl makes the device;
vfioapd also takes the lock, reads the whole host, plans, keeps a journal on disk and checks the result.
The daemon is stopped (SIGSTOP) while mdevctl runs. The last two rows are a whole start of the daemon as
at boot until READY=1, interpreter and imports included: with twenty matrices that start by themselves
and have no device yet, and with nothing to do."""


class Tools:
    """The ways to start all twenty, each with its figure."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.uuids: dict[str, str] = {}  # by name
        self.mdevctl = Figure("20 × `mdevctl start`", "ms", [])
        self.vfioapctl = Figure("20 × `vfioapctl start`", "ms", [])
        self.together = Figure("one `vfioapctl start` of all 20", "ms", [])
        self.calls = Figure("20 × the call `Start` alone, one client", "ms", [])
        self.restore = Figure("daemon start that restores all 20", "ms", [])
        self.nothing = Figure("daemon start with nothing to do", "ms", [])
        self.writes: dict[str, int] = {}  # by figure

    def define(self) -> None:
        """The twenty definitions; nothing is started."""
        cells = [(a, d) for a in ADAPTER_PAIRS for d in DOMAIN_PAIRS]
        for number, (adapters, domains) in enumerate(cells):
            uuid = f"{number:08x}-0000-4000-8000-000000000000"
            self.uuids[f"m{number:02}"] = uuid
            where = ("--adapters", adapters, "--domains", domains, "--uuid", uuid)
            run(VFIOAPCTL, "define", f"m{number:02}", *where, "--start", "manual")

    def by_command(self, rounds: int) -> None:
        """All that admins can type, and the daemon's part of it."""
        ways = (self._by_mdevctl, self._by_vfioapctl, self._by_one_command, self._by_calls)
        for number in range(rounds):
            at = number % len(ways)
            for way in (*ways[at:], *ways[:at]):
                _no_devices(list(self.uuids.values()))
                way()
                _check_devices(len(self.uuids))

    def at_once(self, rounds: int) -> None:
        """Starts of the daemon as at boot, with all devices to make and with none."""
        self._daemon.stop()
        HOST_FILE.write_text(HOST_FILE.read_text().replace('start = "manual"', 'start = "auto"'))
        for _ in range(rounds):
            _no_devices(list(self.uuids.values()))
            for figure in (self.restore, self.nothing):
                STARTED.unlink(missing_ok=True)
                self._sample(figure, self._daemon.start)
                _check_devices(len(self.uuids))
                self._daemon.stop()

    def _by_mdevctl(self) -> None:
        with self._daemon.frozen():
            self._sample(
                self.mdevctl, lambda: [run("mdevctl", "start", "-u", one) for one in self.uuids.values()]
            )

    def _by_vfioapctl(self) -> None:
        self._sample(self.vfioapctl, lambda: [run(VFIOAPCTL, "start", name) for name in self.uuids])

    def _by_one_command(self) -> None:
        self._sample(self.together, lambda: run(VFIOAPCTL, "start", *self.uuids))

    def _by_calls(self) -> None:
        self._sample(self.calls, lambda: [call(SOCKET, "Start", names=[name]) for name in self.uuids])

    def _sample(self, figure: Figure, act: Callable[[], object]) -> None:
        _writes(reset=True)
        figure.samples.append(milliseconds(act))
        self.writes[figure.what] = _writes()


def measure(options: Options) -> Section:
    """Needs a lab whose host has adapters 0 to 7 and domains 0 to 9 at least."""
    daemon = Daemon()
    _set_masks()
    daemon.start()
    try:
        tools = Tools(daemon)
        tools.define()
        tools.by_command(options.rounds)
        tools.at_once(options.rounds)
    finally:
        daemon.stop()
    return _section(tools, options.host_words)


def _section(tools: Tools, host: str) -> Section:
    size = host.partition(" (")[0]
    work = max(0.0, tools.restore.median - tools.nothing.median)  # below what two starts differ by anyway
    writes = "; ".join(f"{what}: {count}" for what, count in tools.writes.items())
    return Section(
        f"Start of 20 matrices: {host}",
        METHOD.format(host=host[0].upper() + host[1:]),
        [tools.mdevctl, tools.vfioapctl, tools.together, tools.calls, tools.restore, tools.nothing],
        [
            _goal(f"{size}: one `vfioapctl start` of all", tools.together.median, tools),
            _goal(f"{size}: 20 × `vfioapctl start`", tools.vfioapctl.median, tools),
            _goal(f"{size}: the daemon's work to restore all", work, tools),
        ],
        [
            f"Writes to sysfs in one round, as the emulated kernel counted them. {writes}.",
            f"The daemon's work to restore all is the difference of the last two rows: {work:.0f} ms.",
        ],
    )


def _goal(what: str, measured: float, tools: Tools) -> Goal:
    """Not slower than mdevctl, one start after the other."""
    return Goal(f"{what} / 20 × `mdevctl start`", "×", measured / tools.mdevctl.median, 1)


def _no_devices(uuids: list[str]) -> None:
    """As the kernel forgets: devices gone, masks as they are to be. Not timed."""
    for uuid in uuids:
        if (MDEVS / uuid).exists():
            (MDEVS / uuid / "remove").write_text("1\n")
    _set_masks()


def _set_masks() -> None:
    for name, value in MASKS.items():
        if (BUS / name).read_text().strip() != value:
            (BUS / name).write_text(f"{value}\n")


def _check_devices(number: int) -> None:
    found = len(list(MDEVS.iterdir()))
    if found != number:
        raise SystemExit(f"bench: {found} devices, not {number}")


def _writes(*, reset: bool = False) -> int:
    answer = wire.request(Layout().kernel_socket, {"command": "writes", "reset": reset})
    return int(str(answer["writes"]))
