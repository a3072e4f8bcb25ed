# SPDX-License-Identifier: Apache-2.0
"""Random operations on one kernel, or on two through different faces, with invariants after every step.

Run as a program (root) it compares the in-process face with a mounted tree. The environment variable
VFIOAP_EMULATOR_OPERATIONS sets how many operations are made at the least (default 1,000).
"""

from __future__ import annotations

import os
import sys
from itertools import combinations
from random import Random
from typing import TYPE_CHECKING

from emulated import BUS, MATRIX, TYPE, host
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from vfioapd.emulator.faces import Face, InProcess
from vfioapd.emulator.generation import GENERATIONS
from vfioapd.emulator.kernel import Kernel
from vfioapd.emulator.machine import Answer, Status
from vfioapd.emulator.snapshot import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 50  # per example

UUIDS = [f"{n}{n}{n}{n}{n}{n}{n}{n}-0000-4000-8000-000000000000" for n in (1, 2, 3)]
ADAPTERS = [5, 6, 9, 200]
DOMAINS = [0x04, 0x10, 0x54, 0x20, 85]
QUEUES = [f"{a:02x}.{d:04x}" for a in (5, 6, 9) for d in (0x04, 0x10, 0x54)]
WORDS = ["", "\n", "0x", "junk", "08", "18446744073709551616", "-1", "1", " 5"]

Operation = tuple[str, ...]


def _number(random: Random, pool: list[int]) -> str:
    """Mostly a number of the pool, its first ones more often, now and then a bad spelling."""
    if random.random() < 0.1:
        return random.choice(WORDS)
    number = random.choice([*pool, *pool[:2] * 2])
    return hex(number) if random.random() < 0.3 else str(number)


def _mask(random: Random, pool: list[int]) -> str:
    """A relative or an absolute mask."""
    form = random.random()
    if form < 0.1:
        return random.choice([*WORDS, "0x" + "f" * 64, "+0-255"])
    if form < 0.3:
        return _absolute(random, pool)
    return ",".join(f"{random.choice('--+')}{random.choice(pool)}" for _ in range(random.randint(1, 3)))


def _absolute(random: Random, pool: list[int]) -> str:
    numbers = {random.choice(pool) for _ in range(random.randint(0, 2))}
    return f"0x{sum(1 << (255 - n) for n in numbers):064x}"


def _assign(random: Random, kind: str, pool: list[int]) -> Operation:
    verb = random.choice(["assign", "assign", "unassign"])
    return "write", f"{MATRIX}/{random.choice(UUIDS)}/{verb}_{kind}", _number(random, pool)


def _ap_config(random: Random) -> Operation:
    pools = (
        (ADAPTERS[:3], DOMAINS[:4], DOMAINS[:3]) if random.random() < 0.8 else (ADAPTERS, DOMAINS, DOMAINS)
    )
    text = ",".join(_absolute(random, pool) for pool in pools) + "\n"
    return "write", f"{MATRIX}/{random.choice(UUIDS)}/ap_config", text


def _driver(random: Random) -> Operation:
    driver = random.choice(["cex4queue", "vfio_ap", "cex4card"])
    device = random.choice([*QUEUES, "card05", "card06"])
    return "write", f"{BUS}/drivers/{driver}/{random.choice(['bind', 'unbind'])}", device


def _rare(random: Random) -> Operation:
    queue = random.choice(QUEUES)
    return random.choice(
        [
            ("write", f"{TYPE}/create", random.choice([*UUIDS, UUIDS[0].upper(), "x"])),
            ("remove", random.choice(UUIDS)),
            ("write", f"{BUS}/drivers_autoprobe", random.choice("0111")),
            (
                "write",
                f"{BUS}/devices/{queue}/driver_override",
                random.choice(["vfio_ap", "\n", "\n", "none"]),
            ),
            ("write", f"{BUS}/devices/{random.choice([queue, 'card05'])}/online", random.choice("01x")),
            (random.choice(["unplug", "plug", "plug", "deconfigure", "checkstop"]), random.choice("56")),
            (random.choice(["take domain", "give domain"]), random.choice(["4", "16", "84"])),
            ("queue", queue, random.choice("00134")),
            (random.choice(["load", "load", "unload"]), random.choice(["vfio_ap", "zcrypt_cex4"])),
            ("list", random.choice([BUS, f"{BUS}/devices", MATRIX, "devices/ap/card05"])),
        ]
    )


def random_operation(random: Random) -> Operation:
    """One operation; those that meet each other's rules come often, those that clear the table seldom."""
    makers: list[tuple[int, Callable[[], Operation]]] = [
        (6, lambda: _assign(random, "adapter", ADAPTERS)),
        (6, lambda: _assign(random, "domain", DOMAINS)),
        (2, lambda: _assign(random, "control_domain", DOMAINS)),
        (3, lambda: _ap_config(random)),
        (3, lambda: ("write", f"{BUS}/apmask", _mask(random, ADAPTERS))),
        (3, lambda: ("write", f"{BUS}/aqmask", _mask(random, DOMAINS))),
        (2, lambda: _driver(random)),
        (1, lambda: ("write", f"{BUS}/drivers_probe", random.choice(QUEUES))),
        (2, lambda: ("scan",)),
        (2, lambda: (random.choice(["open", "close"]), random.choice(UUIDS))),
        (6, lambda: _rare(random)),
    ]
    return random.choices([maker for _, maker in makers], [weight for weight, _ in makers])[0]()


class World:
    """One kernel seen through one face."""

    def __init__(self, kernel: Kernel, face: Face) -> None:
        self.kernel = kernel
        self.face = face
        self._unplugged = dict(kernel.machine.adapters)
        self.had_override = False
        # Something to begin with: queues for vfio_ap and mdevs to give them to.
        self._write(f"{BUS}/apmask", "-5,-6")
        for uuid in UUIDS[:2]:
            self._write(f"{TYPE}/create", uuid)

    def perform(self, operation: Operation) -> object:
        """The result of an operation: a value, or the errno it was refused with."""
        try:
            return getattr(self, "_" + operation[0].replace(" ", "_"))(*operation[1:])
        except OSError as error:
            return error.errno

    def _write(self, path: str, text: str) -> int:
        written = self.face.write_bytes(path, text.encode())
        self.had_override = self.had_override or path.endswith("driver_override")
        return written

    def _remove(self, uuid: str) -> int:
        if uuid in self.kernel.guests().values():
            return 0  # would block; that is tested by itself
        return self._write(f"{MATRIX}/{uuid}/remove", "1")

    def _list(self, path: str) -> object:
        return self.face.entries(path)

    def _scan(self) -> None:
        self._write(f"{BUS}/scans", "1")

    def _unplug(self, adapter: str) -> None:
        self.kernel.machine.adapters.pop(int(adapter), None)

    def _plug(self, adapter: str) -> None:
        plugged = self._unplugged[int(adapter)]
        plugged.status = Status.OK
        self.kernel.machine.adapters[int(adapter)] = plugged

    def _deconfigure(self, adapter: str) -> None:
        self._unplugged[int(adapter)].status = Status.DECONFIGURED

    def _checkstop(self, adapter: str) -> None:
        self._unplugged[int(adapter)].status = Status.CHECKSTOPPED

    def _take_domain(self, domain: str) -> None:
        self.kernel.machine.usage &= ~(1 << int(domain))

    def _give_domain(self, domain: str) -> None:
        self.kernel.machine.usage |= 1 << int(domain)

    def _queue(self, name: str, answer: str) -> None:
        adapter, domain = (int(part, 16) for part in name.split("."))
        self.kernel.machine.queue_answers[adapter, domain] = Answer(int(answer))

    def _open(self, uuid: str) -> None:
        self.kernel.guest_open(uuid, f"guest of {uuid}")

    def _close(self, uuid: str) -> None:
        self.kernel.guest_close(f"guest of {uuid}")

    def _load(self, module: str) -> None:
        self.kernel.load_module(module)

    def _unload(self, module: str) -> None:
        self.kernel.unload_module(module)


def check_world(world: World) -> None:
    """What is true of a kernel at all times."""
    kernel = world.kernel
    _check_bindings(kernel)
    bus = kernel.state.bus
    vfio_ap = kernel.state.modules.vfio_ap
    mdevs = list(vfio_ap.mdevs.values()) if vfio_ap else []
    for one, other in combinations(mdevs, 2):
        assert not one.matrix.shares_queues_with(other.matrix.apm, other.matrix.aqm)
    for mdev in mdevs:
        if not world.had_override:
            assert not mdev.matrix.shares_queues_with(bus.apmask, bus.aqmask)
        for axis in ("apm", "aqm", "adm"):
            assert not getattr(mdev.guest_matrix, axis) & ~getattr(mdev.matrix, axis)


def _check_bindings(kernel: Kernel) -> None:
    bus = kernel.state.bus
    queues = [queue for card in bus.cards.values() for queue in card.queues.values()]
    assert len(queues) == bus.queue_count
    assert sum(queue.driver is not None for queue in queues) == bus.bound_count
    assert {queue.name for queue in queues} == {name for name in bus.devices if "." in name}
    for queue in queues:
        assert bus.by_domain[queue.domain][queue.adapter] is queue
        if queue.driver is None:
            continue
        assert queue.driver.devices[queue.name] is queue
        if not bus.overrides and queue.name not in bus.misfits:
            assert queue.driver.is_default == bus.is_host_owned(queue.adapter, queue.domain)
    # Only an override that was followed and then cleared may leave a queue where the masks do not.
    stray = [queue for queue in bus.misfits.values() if queue.driver and queue.override is None]
    assert not stray or kernel.state.generation.has_driver_override


def machine_for(make_worlds: Callable[[Kernel, Kernel], list[World]]) -> type[RuleBasedStateMachine]:
    """A state machine that does everything in each world and compares them."""

    class Agreement(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.worlds: list[World] = []

        @rule(generation=st.sampled_from(sorted(GENERATIONS)), seed=st.integers(0, 1 << 64))
        def operate(self, generation: str, seed: int) -> None:
            # Drawn by number: strategies would repeat their simplest case far too often.
            operation = random_operation(Random(seed))
            note(str(operation))
            if not self.worlds:
                self.worlds = make_worlds(Kernel(host(generation)), Kernel(host(generation)))
            results = [world.perform(operation) for world in self.worlds]
            assert all(result == results[0] for result in results), (operation, results)

        @invariant()
        def kernels_are_sound(self) -> None:
            for world in self.worlds:
                check_world(world)

        def teardown(self) -> None:
            states = [snapshot(world.face) for world in self.worlds]
            assert all(state == states[0] for state in states)

    return Agreement


def run(make_worlds: Callable[[Kernel, Kernel], list[World]]) -> None:
    wanted = int(os.environ.get("VFIOAP_EMULATOR_OPERATIONS", "1000"))
    profile = settings(
        max_examples=max(1, wanted // STEPS),
        stateful_step_count=STEPS,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        database=None,
        # A failing run of hundreds of writes takes minutes to shrink; asked for when one is looked at.
        phases=[Phase.generate, *([Phase.shrink] if "VFIOAP_EMULATOR_SHRINK" in os.environ else [])],
    )
    run_state_machine_as_test(machine_for(make_worlds), settings=profile)  # type: ignore[no-untyped-call]


def in_process_only(kernel: Kernel, _other: Kernel) -> list[World]:
    return [World(kernel, InProcess(kernel))]


def main() -> int:
    """Compare the two faces."""
    from contextlib import ExitStack

    from vfioapd.emulator.fuse import enter_private_mounts
    from vfioapd.emulator.replay import mounted

    enter_private_mounts()
    open_mount = ExitStack()

    def both_faces(kernel: Kernel, other: Kernel) -> list[World]:
        open_mount.close()  # that of the example before
        return [World(kernel, InProcess(kernel)), World(other, open_mount.enter_context(mounted(other)))]

    with open_mount:
        run(both_faces)
    return 0


if __name__ == "__main__":
    sys.exit(main())
