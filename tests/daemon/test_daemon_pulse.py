# SPDX-License-Identifier: Apache-2.0
"""systemd's watchdog is fed while changes get on, however long they take, and not when they hang."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from vfioapd.backend.guarded_sysfs import PATIENCE
from vfioapd.daemon import main
from vfioapd.daemon import pulse as pulse_module
from vfioapd.daemon import watchdog as watchdog_module
from vfioapd.daemon.pulse import WORKER, Pulse, tell_systemd
from vfioapd.daemon.watchdog import PERIODS, Watchdog

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from doubles import Rig

WATCHDOG_SECONDS = 30  # of units/vfioapd.service


class Clock:
    """time.monotonic that moves only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Work:
    """A worker that does one thing, which goes on until it is let go."""

    def __init__(self, worker: ThreadPoolExecutor, pulse: Pulse) -> None:
        self.pulse = pulse
        self.step, self.made, self.end = threading.Event(), threading.Event(), threading.Event()
        begun = threading.Event()
        self.done = worker.submit(self._run, begun)
        assert begun.wait(10)

    def _run(self, begun: threading.Event) -> None:
        self.pulse.beat()
        begun.set()
        assert self.step.wait(10)
        self.pulse.beat()
        self.made.set()
        assert self.end.wait(10)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (pulse_module, watchdog_module):
        monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def worker() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, WORKER) as made:
        yield made


def test_an_idle_worker_gets_on_for_ever(clock: Clock, worker: ThreadPoolExecutor) -> None:
    watchdog = Watchdog(worker, Pulse())
    for _ in range(3):
        clock.now += 1000
        assert watchdog.gets_on(90)
        worker.submit(lambda: None).result(10)  # whoever came before was answered


def test_a_long_change_gets_on_while_its_steps_do(clock: Clock, worker: ThreadPoolExecutor) -> None:
    pulse = Pulse()
    watchdog, work = Watchdog(worker, pulse), Work(worker, pulse)
    assert watchdog.gets_on(90)
    clock.now += 80
    assert watchdog.gets_on(90)
    work.step.set()
    assert work.made.wait(10)
    clock.now += 80
    assert watchdog.gets_on(90)
    clock.now += 20
    assert not watchdog.gets_on(90), "its second step hangs"
    work.end.set()
    work.done.result(10)
    worker.submit(lambda: None).result(10)
    assert watchdog.gets_on(90), "it goes on after all"


def test_what_other_threads_do_is_no_sign_of_life(clock: Clock, worker: ThreadPoolExecutor, rig: Rig) -> None:
    pulse = rig.host.pulse
    watchdog, work = Watchdog(worker, pulse), Work(worker, pulse)
    assert watchdog.gets_on(90)
    clock.now += 100
    rig.service.status()
    assert not watchdog.gets_on(90)
    work.step.set()
    work.end.set()


def test_every_step_and_every_read_of_a_change_is_a_sign_of_life(
    clock: Clock, worker: ThreadPoolExecutor, rig: Rig
) -> None:
    ages: list[float] = []

    def note(_number: int, _step: object) -> None:
        ages.append(rig.host.pulse.age())
        clock.now += 50

    rig.host.after = note
    rig.restore()
    worker.submit(lambda: rig.define("vault", queues="00.000d")).result(10)
    assert len(ages) > 3
    assert max(ages) == 0.0


def test_the_kernel_has_more_time_for_a_write_than_the_watchdog_grants_a_step() -> None:
    assert PATIENCE < PERIODS * WATCHDOG_SECONDS


def test_a_daemon_that_systemd_does_not_hear_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    tell_systemd("READY=1\nSTATUS=fine")
    assert "systemd was not told READY=1: " in caplog.text


@pytest.mark.parametrize(("passed", "told"), [(0, []), (1, []), (2, ["READY=1"])])
def test_libvirt_waits_for_no_loop_where_systemd_holds_both_sockets(
    monkeypatch: pytest.MonkeyPatch, passed: int, told: list[str]
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(main, "passed_sockets", lambda: passed)
    monkeypatch.setattr(main, "tell_systemd", heard.append)
    main._tell_ready()
    assert heard == told


PASSED = """
import os, socket
from vfioapd.daemon.pulse import passed_sockets
none = passed_sockets()
for number, one in enumerate(socket.socketpair(), start=3):
    os.dup2(one.detach(), number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2")
print(none, passed_sockets(), passed_sockets())
"""


def test_sockets_that_systemd_passed_are_counted_and_left_to_who_takes_them() -> None:
    done = subprocess.run([sys.executable, "-c", PASSED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "2", "2"]
