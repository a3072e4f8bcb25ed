# SPDX-License-Identifier: Apache-2.0
"""Details of queues that are kept are those that the queues' own files would tell."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from doubles import KERNELS, host_of, uuid_of

from vfioapd.backend.bus import read_snapshot
from vfioapd.backend.details import QueueDetails
from vfioapd.backend.paths import CREATE, card_path, mdev_path, queue_path
from vfioapd.domain.snapshot import QueueDetail
from vfioapd.emulator.kernel import Kernel

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfioapd.domain.apqn import Apqn
    from vfioapd.emulator.events import Uevent

DEVICES = [uuid_of("one"), uuid_of("other")]
SEEDS = range(6)


class Ears:
    """The names of devices with uevents since the last look."""

    def __init__(self, kernel: Kernel) -> None:
        self._heard: set[str] = set()
        kernel.events.subscribe(self._hear)

    def __call__(self) -> set[str]:
        heard, self._heard = self._heard, set()
        return heard

    def _hear(self, event: Uevent) -> None:
        self._heard.add(event.devpath.rpartition("/")[2])


class Counted:
    """The emulated kernel's files, with a count of the reads."""

    def __init__(self, kernel: Kernel) -> None:
        self._sysfs = kernel.sysfs
        self.write, self.names, self.readlink = kernel.sysfs.write, kernel.sysfs.names, kernel.sysfs.readlink
        self.reads: list[str] = []

    def read(self, path: str) -> str:
        self.reads.append(path)
        return self._sysfs.read(path)


def by_files(kernel: Kernel) -> dict[Apqn, QueueDetail]:
    """Every file of every queue, now."""

    def text(path: str) -> str | None:
        try:
            return kernel.sysfs.read(path).strip()
        except FileNotFoundError:
            return None

    def flag(path: str) -> bool | None:
        return None if text(path) is None else text(path) == "1"

    return {
        state.queue: QueueDetail(
            bool(flag(f"{queue_path(state.queue)}/config")),
            bool(flag(f"{queue_path(state.queue)}/chkstop")),
            flag(f"{queue_path(state.queue)}/online"),
            text(f"{queue_path(state.queue)}/status"),
        )
        for state in read_snapshot(kernel.sysfs).queues
    }


def deeds(kernel: Kernel, dice: random.Random) -> list[Callable[[], object]]:
    """What can befall queues; each may be refused."""
    queue = dice.choice(read_snapshot(kernel.sysfs).queues).queue
    adapter, domain, uuid = dice.randrange(8), dice.choice((13, 17)), dice.choice(DEVICES)
    write, card, up = kernel.sysfs.write, card_path(queue.adapter), str(dice.randrange(2))
    plays = ["deconfigure", "configure", "checkstop"]
    return [
        lambda: write(f"{queue_path(queue)}/online", up),
        lambda: write(f"{card}/online", up),
        lambda: write(f"{card}/config", up),
        lambda: write("bus/ap/apmask", f"{dice.choice('+-')}{adapter}"),
        lambda: write("bus/ap/aqmask", f"{dice.choice('+-')}{domain}"),
        lambda: write(CREATE, str(uuid)),
        lambda: write(f"{mdev_path(uuid)}/assign_adapter", str(adapter)),
        lambda: write(f"{mdev_path(uuid)}/assign_domain", str(domain)),
        lambda: write(f"{mdev_path(uuid)}/unassign_adapter", str(adapter)),
        lambda: kernel.guest_open(str(uuid), "bastion"),
        lambda: kernel.guest_close("bastion"),
        lambda: kernel.play({"action": dice.choice(plays), "adapter": adapter}),
        lambda: write("bus/ap/drivers/cex4queue/unbind", str(queue)),
        lambda: write("bus/ap/drivers/cex4queue/bind", str(queue)),
        kernel.scan,
    ]


@pytest.mark.parametrize("generation", KERNELS)
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_kept_is_what_the_files_tell_whatever_befalls_the_host(generation: str, seed: int) -> None:
    kernel, dice = Kernel(host_of(generation)), random.Random(seed)
    details = QueueDetails(kernel.sysfs, Ears(kernel))
    for step in range(60):
        try:
            dice.choice(deeds(kernel, dice))()
        except (OSError, KeyError, RuntimeError):
            continue
        if dice.random() < 0.7:
            assert details.of(read_snapshot(kernel.sysfs)) == by_files(kernel), step


def test_a_second_look_asks_the_cards_alone() -> None:
    kernel = Kernel(host_of())
    files = Counted(kernel)
    details = QueueDetails(files, Ears(kernel))
    snapshot = read_snapshot(kernel.sysfs)
    first = details.of(snapshot)
    files.reads.clear()
    assert details.of(snapshot) == first
    assert files.reads == [f"{card_path(card.adapter)}/chkstop" for card in snapshot.cards]


@pytest.mark.parametrize("changed", [None, lambda: None])
def test_without_news_or_when_news_was_lost_everything_is_read_anew(
    changed: Callable[[], None] | None,
) -> None:
    kernel = Kernel(host_of())
    files = Counted(kernel)
    details = QueueDetails(files, changed)
    snapshot = read_snapshot(kernel.sysfs)
    details.of(snapshot)
    before = len(files.reads)
    details.of(snapshot)
    assert len(files.reads) == 2 * before


def test_queues_of_deconfigured_and_checkstopped_cards_are_told() -> None:
    kernel = Kernel(host_of())
    kernel.play({"action": "deconfigure", "adapter": 2})
    kernel.play({"action": "checkstop", "adapter": 3})
    details = QueueDetails(kernel.sysfs).of(read_snapshot(kernel.sysfs))
    assert {queue.adapter for queue, detail in details.items() if not detail.configured} == {2}
    assert {queue.adapter for queue, detail in details.items() if detail.checkstopped} == {3}


def test_a_queue_that_left_since_the_snapshot_is_left_out() -> None:
    kernel = Kernel(host_of())
    details = QueueDetails(kernel.sysfs, Ears(kernel))
    snapshot = read_snapshot(kernel.sysfs)
    details.of(snapshot)
    kernel.play({"action": "remove-adapter", "adapter": 4})
    kernel.scan()
    assert {queue.adapter for queue in details.of(snapshot)} == {0, 1, 2, 3, 5, 6, 7}


@pytest.mark.parametrize("generation", KERNELS)
def test_a_queue_that_was_offline_for_a_checkstop_alone_is_online_after_it(generation: str) -> None:
    kernel = Kernel(host_of(generation))
    details = QueueDetails(kernel.sysfs, Ears(kernel))
    for action in ("checkstop", "configure"):
        kernel.play({"action": action, "adapter": 3})
        kernel.scan()
        assert details.of(read_snapshot(kernel.sysfs)) == by_files(kernel)
