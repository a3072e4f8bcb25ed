# SPDX-License-Identifier: Apache-2.0
"""What the unit tests of plan, engine, backend, daemon, rpc and cli stand on.

A ``Rig`` is one host: the emulated kernel, libvirt's semantics in memory, files in a folder of its own,
and the service over them. It can fail at any step, lose its power at any step, and come up again.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from vfioapd.daemon.live_host import LiveHost
from vfioapd.daemon.places import Places
from vfioapd.daemon.restoring import restore
from vfioapd.daemon.service import Service
from vfioapd.daemon.standing import Standing
from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.domain.snapshot import Guest
from vfioapd.emulator.generation import GENERATIONS
from vfioapd.emulator.hostfile import Host, load_host_file
from vfioapd.emulator.kernel import Kernel
from vfioapd.emulator.snapshot import snapshot
from vfioapd.engine.journal import Journal
from vfioapd.plan.doctor_facts import GuestFacts, HostdevFacts
from vfioapd.plan.steps import Plug, Where, describe
from vfioapd.rpc.interface import Asked, DefineRequest, Peer
from vfioapd.rpc.server import READ_ONLY_MODE, WRITABLE_MODE, Server, listen
from vfioapd.store.history import History

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from vfioapd.plan.steps import GuestStep, KernelStep, Step
    from vfioapd.rpc.types import Change

KERNELS = ("6.1", "6.12", "7.3")
ADMIN = Asked(Peer(pid=1, uid=0, gid=0))
NAMESPACE = UUID("825b3872-0001-0003-0011-28a403f8b357")


class PowerCut(BaseException):
    """The host, or the daemon, ends here. Not an Exception: nobody may clean up after it."""


@dataclass
class Room:
    """One guest: whether it runs, whether it is defined, its devices in both documents."""

    running: bool = False
    persistent: bool = True
    live: set[UUID] = field(default_factory=set)
    config: set[UUID] = field(default_factory=set)
    holds_on: bool = False  # does not answer an unplug


class Libvirt:
    """libvirt's documented answers (9.0) in memory; a live device is opened in the emulated kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.rooms: dict[str, Room] = {}
        self.is_up = True

    def add(self, name: str, *, running: bool = False, persistent: bool = True) -> Room:
        self.rooms[name] = Room(running, persistent)
        return self.rooms[name]

    def start(self, name: str) -> None:
        """Start a guest from its definition; a missing or taken mdev is an error, as is a second one."""
        room = self.rooms[name]
        if len(room.config) > 1:
            raise self._error("Only one hostdev of model vfio-ap is supported")
        for uuid in room.config:
            self._kernel.guest_open(str(uuid), name)
        room.running, room.live = True, set(room.config)

    def destroy(self, name: str) -> None:
        room = self.rooms[name]
        if room.live:
            self._kernel.guest_close(name)
        room.running, room.live = False, set()
        if not room.persistent:
            del self.rooms[name]

    def reboot(self) -> None:
        """The host came up again: nothing runs, what was transient is gone."""
        self.rooms = {name: replace(room, running=False, live=set()) for name, room in self.rooms.items()}
        self.rooms = {name: room for name, room in self.rooms.items() if room.persistent}

    def state(self) -> dict[str, object]:
        return {
            name: (room.running, room.persistent, sorted(map(str, room.live)), sorted(map(str, room.config)))
            for name, room in self.rooms.items()
        }

    def read(self) -> tuple[Guest, ...] | None:
        if not self.is_up:
            return None
        return tuple(
            Guest(
                name,
                uuid5(NAMESPACE, name),
                running=room.running,
                persistent=room.persistent,
                live=frozenset(room.live),
                config=frozenset(room.config),
            )
            for name, room in sorted(self.rooms.items())
        )

    def definitions(self) -> tuple[GuestFacts, ...] | None:
        if not self.is_up:
            return None
        return tuple(
            GuestFacts(name, devices=tuple(map(HostdevFacts, sorted(room.config))))
            for name, room in sorted(self.rooms.items())
            if room.persistent
        )

    def versions(self) -> tuple[int | None, int | None]:
        return (9_000_000, 7_002_000) if self.is_up else (None, None)

    def read_if_connected(self) -> tuple[Guest, ...] | None:
        return self.read()

    def rename(self, old: str, new: str) -> None:
        self.rooms[new] = self.rooms.pop(old)

    def holds(self, step: GuestStep) -> bool:
        room = self._room(step)
        devices = room.live if step.where is Where.LIVE else room.config
        return (step.uuid in devices) is isinstance(step, Plug)

    def execute(self, step: GuestStep) -> None:
        room = self._room(step)
        if step.where is Where.LIVE and not room.running:
            raise self._error("domain is not running")
        if step.where is Where.CONFIG and not room.persistent:
            raise self._error("cannot modify the persistent configuration of a transient domain")
        (self._plug if isinstance(step, Plug) else self._unplug)(step, room)

    def _plug(self, step: GuestStep, room: Room) -> None:
        if step.where is Where.CONFIG:
            if step.uuid in room.config:
                raise self._error("device is already in the domain configuration")
            room.config.add(step.uuid)
            return
        try:
            self._kernel.guest_open(str(step.uuid), step.guest)
        except OSError as error:
            raise self._error(f"device_add: {error}") from error
        room.live.add(step.uuid)

    def _unplug(self, step: GuestStep, room: Room) -> None:
        devices = room.live if step.where is Where.LIVE else room.config
        if step.uuid not in devices:
            raise self._error("device not present in domain configuration")
        if step.where is Where.LIVE:
            if room.holds_on:
                raise self._error(f"guest {step.guest} has not let go of the device")
            self._kernel.guest_close(step.guest)
        devices.remove(step.uuid)

    def _room(self, step: GuestStep) -> Room:
        if not self.is_up:
            raise self._error("Failed to connect socket: Connection refused")
        if step.guest not in self.rooms:
            raise self._error(f"Domain not found: no domain with matching name '{step.guest}'")
        return self.rooms[step.guest]

    @staticmethod
    def _error(text: str) -> VfioApError:
        return VfioApError(Problem.STEP_FAILED, f"libvirt refused: {text}")


class ScriptedHost(LiveHost):
    """A live host that calls ``before`` and ``after`` around every step that is carried out."""

    def __init__(self, kernel: Kernel, places: Places, guests: Libvirt) -> None:
        super().__init__(kernel.sysfs, places, guests)
        self.made: list[str] = []
        self.before: Callable[[int, Step], None] = lambda number, step: None
        self.after: Callable[[int, Step], None] = lambda number, step: None

    def execute(self, step: Step) -> None:
        number = len(self.made)
        self.made.append(describe(step))
        self.before(number, step)
        super().execute(step)
        self.after(number, step)

    def execute_each(self, steps: Sequence[KernelStep]) -> Iterator[KernelStep]:
        for step in steps:
            self.execute(step)
            yield step


class Rig:
    """One host with everything on it."""

    def __init__(self, host: Host, root: Path) -> None:
        self.root = root
        self.kernel = Kernel(host)
        self.guests = Libvirt(self.kernel)
        self.boots = 1
        self.places = replace(Places.below(root), boot_id=root / "boot_id")
        self.up()

    def up(self) -> None:
        """Start the daemon, as new, over the same host and files."""
        self.host = ScriptedHost(self.kernel, self.places, self.guests)
        self.journal = Journal(self.places.journal, f"boot-{self.boots}")
        self.standing = Standing(self.host, self.places, self.journal, History(self.places.revisions))
        self.service = Service(self.standing)

    def restart(self) -> None:
        """The daemon ends and starts again."""
        self.up()
        self.restore()

    def restore(self) -> None:
        """What the daemon does first."""
        restore(self.standing)

    def reboot(self) -> None:
        """The host ends and starts again; the daemon is not up yet."""
        self.kernel.reboot()
        self.guests.reboot()
        self.boots += 1
        for path in sorted(self.places.runtime.rglob("*")):
            path.unlink()
        self.places.lock.unlink(missing_ok=True)

    def define(self, name: str, asked: Asked = ADMIN, **fields: str) -> Change:
        """Define a matrix; its UUID follows from its name, so that two runs can be compared."""
        fields.setdefault("uuid", str(uuid_of(name)))
        return self.service.define(DefineRequest(name, **fields), asked)

    def undefine(self, *names: str) -> Change:
        return self.service.undefine(names, ADMIN)

    def start(self, *names: str) -> Change:
        return self.service.start(names, ADMIN)

    def stop(self, *names: str) -> Change:
        return self.service.stop(names, ADMIN)

    def attach(self, name: str, guest: str, where: str = "both") -> Change:
        return self.service.attach(name, guest, where, ADMIN)

    def detach(self, name: str, guest: str, where: str = "both") -> Change:
        return self.service.detach(name, guest, where, ADMIN)

    def kernel_state(self) -> dict[str, object]:
        return dict(snapshot(self.kernel.sysfs))

    def files(self) -> dict[str, str]:
        """Every file but the journal and the revisions, with its text."""
        aside = (self.places.journal, self.places.revisions)
        return {
            str(path.relative_to(self.root)): path.read_bytes().decode("latin-1")
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not any(path.is_relative_to(one) for one in aside)
        }

    def state(self) -> dict[str, object]:
        """Everything that a change may change: the kernel, the files, the guests."""
        return {"kernel": self.kernel_state(), "files": self.files(), "guests": self.guests.state()}

    def revisions(self) -> list[str]:
        return [one.reason for one in History(self.places.revisions).revisions()]


def uuid_of(name: str) -> UUID:
    return uuid5(NAMESPACE, name)


def host_of(kernel: str = "6.12", **changes: object) -> Host:
    """The shipped host rdbkvm4 on one of the kernels."""
    return replace(load_host_file("rdbkvm4"), kernel=GENERATIONS[kernel], **changes)


def rdbkvm4_definitions() -> Iterator[tuple[str, dict[str, str]]]:
    """Scenarios S1 and S3 of the Redbook."""
    yield "s1a", {"queues": "05.000d,07.000d"}
    yield "s1b", {"adapters": "5,7", "domains": "17"}
    yield "s3", {"queues": "01.0011,03.0011"}


class RunningServer:
    """The real server on two real sockets, in a thread of its own, over a rig's service."""

    def __init__(self, rig: Rig, service: object = None) -> None:
        self.rw, self.ro = str(rig.places.socket), str(rig.places.read_only_socket)
        self._runner = asyncio.Runner()  # as asyncio.run, which the daemon ends with
        self._loop = self._runner.get_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(rig, service or rig.service))

    def __enter__(self) -> RunningServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self, rig: Rig, service: object) -> None:
        with self._runner:
            self._runner.run(self._serve(rig, service))

    async def _serve(self, rig: Rig, service: object) -> None:
        with ThreadPoolExecutor(1) as reads, ThreadPoolExecutor(1) as changes:
            server = Server(service, reads, changes)  # type: ignore[arg-type]
            server.serve(listen(rig.places.socket, mode=WRITABLE_MODE), writable=True)
            server.serve(listen(rig.places.read_only_socket, mode=READ_ONLY_MODE), writable=False)
            self._ready.set()
            await self._stop.wait()
            await server.close()
