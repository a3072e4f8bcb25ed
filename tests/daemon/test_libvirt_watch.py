# SPDX-License-Identifier: Apache-2.0
"""The connection to libvirt, as its daemons come, end slowly and come back; none is started by it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vfioapd.daemon import libvirt_watch
from vfioapd.daemon.libvirt_watch import LibvirtWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vfioapd.virt.connection import GuestEvent

SECONDS = 5.0


class Libvirt:
    """virtqemud as its PID file and /proc show it. Its socket is there all the time, so that each connection
    counts: it would start a daemon that is none."""

    def __init__(self, folder: Path) -> None:
        self.run, self.proc = folder / "run", folder / "proc"
        self.run.mkdir()
        self.proc.mkdir()
        self.connections = 0
        self.close: Callable[[], None]
        self.told: list[str] = []

    def start(self, pid: int) -> None:
        (self.proc / str(pid)).mkdir()
        (self.proc / f"{pid}/comm").write_text("virtqemud\n")
        (self.run / "virtqemud.pid").write_text(f"{pid}\n")

    def end(self) -> None:
        (self.run / "virtqemud.pid").unlink()

    def connect(self) -> bool:
        self.connections += 1
        return True

    def listen(self, heard: Callable[[GuestEvent], None], lost: Callable[[], None]) -> None:
        self.close = lost

    def tell(self, what: str, event: GuestEvent | None = None, *, all_new: bool = False) -> None:
        self.told.append(what)

    async def until(self, connections: int) -> None:
        async with asyncio.timeout(SECONDS):
            while (self.connections, self.told[-1:]) != (connections, ["libvirt is there"]):
                await asyncio.sleep(0.01)


@pytest.fixture
def libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Libvirt:
    made = Libvirt(tmp_path)
    monkeypatch.setattr(libvirt_watch, "RUN", made.run)
    monkeypatch.setattr(libvirt_watch, "PROC", made.proc)
    return made


@pytest.fixture
def worker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


async def connected(libvirt: Libvirt, worker: ThreadPoolExecutor) -> None:
    """A watch that has found a daemon."""
    libvirt.start(7)
    LibvirtWatch(asyncio.get_running_loop(), worker, libvirt, libvirt.tell).begin()
    await libvirt.until(connections=1)


def test_a_daemon_that_ends_slowly_is_left_alone_and_the_next_one_found(
    libvirt: Libvirt, worker: ThreadPoolExecutor
) -> None:
    async def play() -> None:
        await connected(libvirt, worker)
        libvirt.close()
        await asyncio.sleep(1.0)  # it would have been called twice by now
        assert libvirt.connections == 1
        libvirt.end()
        await asyncio.sleep(0.1)
        assert libvirt.connections == 1
        libvirt.start(8)
        await libvirt.until(connections=2)

    asyncio.run(play())


def test_a_daemon_that_closes_the_connection_and_does_not_end_is_called_again(
    libvirt: Libvirt, worker: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_watch, "ENDING_SECONDS", 0.5)

    async def play() -> None:
        await connected(libvirt, worker)
        libvirt.close()
        await libvirt.until(connections=2)

    asyncio.run(play())


def test_a_daemon_that_was_replaced_at_once_is_not_waited_for(
    libvirt: Libvirt, worker: ThreadPoolExecutor
) -> None:
    async def play() -> None:
        await connected(libvirt, worker)
        libvirt.end()
        libvirt.start(8)
        libvirt.close()
        async with asyncio.timeout(1):
            await libvirt.until(connections=2)

    asyncio.run(play())
