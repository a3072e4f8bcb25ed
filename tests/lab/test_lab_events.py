# SPDX-License-Identifier: Apache-2.0
"""One stream of events on a host where a shell, the daemon and libvirt are at work."""

from __future__ import annotations

import json
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from labs import DAEMON_LOG, start_daemon

from vfioapd.lab.harness import running_lab

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from vfioapd.lab.harness import Lab

UUID = "825b3872-0001-0001-0011-28a403f8b357"


@pytest.fixture(scope="module")
def host() -> Iterator[Lab]:
    with running_lab("rdbkvm4") as lab:
        start_daemon(lab)
        lab.shell("vfioap-lab guest bastion")
        yield lab


class Follower:
    """``vfioapctl events --follow --json`` and the lines that it has printed."""

    def __init__(self, lab: Lab) -> None:
        self.process: subprocess.Popen[str] = lab.popen("vfioapctl", "events", "--follow", "--json")
        self.seen: list[dict[str, object]] = []
        Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.seen.append(json.loads(line))

    def has(self, kind: str, words: str) -> bool:
        return any(row["kind"] == kind and words in str(row["text"]) for row in self.seen)


@pytest.fixture
def follower(host: Lab) -> Iterator[Follower]:
    found = Follower(host)
    yield found
    found.process.terminate()
    found.process.wait()


def test_what_a_shell_the_daemon_and_libvirt_do_is_told_as_it_happens(
    host: Lab, follower: Follower, wait_until: Callable[..., None]
) -> None:
    define = f"vfioapctl define vault --queues 01.0011 --guest bastion --uuid {UUID}"
    happenings = [
        ("echo -2 > /sys/bus/ap/apmask", "uevent", "change ap ap APMASK=0xdf"),
        (define, "change", "define vault: done in "),
        ("virsh -q start bastion", "guest", "guest bastion started"),
        ("vfioapctl define other --queues 01.0011 || true", "change", "held by matrix vault"),
        ("virsh -q destroy bastion || true", "guest", "guest bastion stopped"),
        (f"mdevctl stop -u {UUID}", "drift", "matrix vault drifted: its device is gone"),
    ]
    for command, kind, words in happenings:
        host.shell(command)
        wait_until(lambda: follower.has(kind, words), f"{kind}: {words}")  # noqa: B023
    numbers = [row["number"] for row in follower.seen]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == len(numbers)


def test_what_happened_before_is_shown_to_everybody(host: Lab) -> None:
    rows = json.loads(host.run("vfioapctl", "events", "--json", "--kind", "daemon").stdout)
    assert "ready" in rows[0]["text"]


def test_a_reader_that_is_killed_costs_the_daemon_nothing(host: Lab, wait_until: Callable[..., None]) -> None:
    for _ in range(20):
        one = Follower(host)
        wait_until(lambda: one.seen, "something is read")  # noqa: B023
        one.process.kill()
        one.process.wait()
    host.shell("echo -4 > /sys/bus/ap/apmask; vfioapctl status")
    last = Follower(host)
    wait_until(lambda: last.has("uevent", "change ap ap APMASK"), "the daemon goes on telling")
    last.process.kill()
    last.process.wait()
    log = host.run("cat", DAEMON_LOG).stdout
    assert "never awaited" not in log
    assert "Traceback" not in log
