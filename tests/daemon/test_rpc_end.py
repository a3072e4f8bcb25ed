# SPDX-License-Identifier: Apache-2.0
"""The daemon ends while clients are connected: what they are told, and what its journal says of it."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from doubles import RunningServer

from vfioapd.daemon.feed import Kind
from vfioapd.domain.problems import Problem, Refused
from vfioapd.rpc.client import CallError, call, stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doubles import Rig

HOOK = {"guest": "bastion", "uuids": []}


class Slow:
    """A service that is in the middle of a hook's call and of a change until it is let on."""

    def __init__(self) -> None:
        self.begun, self.let_on = threading.Semaphore(0), threading.Event()

    def undefine(self, names: list[str], _asked: object) -> object:
        self._wait()
        raise Refused(Problem.UNKNOWN_MATRIX, f"{names[0]} is not there")

    def hook_prepare(self, guest: str, _uuids: list[str]) -> list[str]:
        self._wait()
        return [f"made for {guest}"]

    def status(self) -> object:
        self._wait()
        raise ZeroDivisionError("a bug")

    def _wait(self) -> None:
        self.begun.release()
        assert self.let_on.wait(10)


@pytest.fixture
def journal(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.INFO)
    return caplog


def complaints(journal: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in journal.records if one.levelno >= logging.WARNING]


def end_during(rig: Rig, method: str, **parameters: object) -> Future[dict[str, object]]:
    """A client's call is under way when the daemon is told to end; it can be carried out a moment later."""
    slow = Slow()
    with ThreadPoolExecutor(1) as client:
        with RunningServer(rig, slow) as server:
            called = client.submit(call, server.rw, method, **parameters)
            assert slow.begun.acquire(timeout=10)
            threading.Timer(0.2, slow.let_on.set).start()
        return called


def test_a_hooks_call_is_answered_when_the_daemon_ends_in_its_middle(
    rig: Rig, journal: pytest.LogCaptureFixture
) -> None:
    assert end_during(rig, "HookPrepare", **HOOK).result(10) == {"started": ["made for bastion"]}
    assert complaints(journal) == []


def test_a_change_is_answered_when_the_daemon_ends_in_its_middle(
    rig: Rig, journal: pytest.LogCaptureFixture
) -> None:
    assert "vault is not there" in str(end_during(rig, "Undefine", names=["vault"]).exception(10))
    assert complaints(journal) == []


def test_a_bug_is_told_and_logged_even_as_the_daemon_ends(
    rig: Rig, journal: pytest.LogCaptureFixture
) -> None:
    assert "a bug" in str(end_during(rig, "Status").exception(10))
    assert [one.exc_info[0] for one in journal.records if one.exc_info] == [ZeroDivisionError]


def test_who_follows_events_hears_the_end_and_the_journal_has_no_word_of_it(
    rig: Rig, journal: pytest.LogCaptureFixture
) -> None:
    rig.standing.feed.tell(Kind.GUEST, "guest bastion started")
    with RunningServer(rig) as server:
        reader = stream(server.ro, "Follow")
        next(reader)
    with pytest.raises(CallError, match="vfioapd has ended"):
        next(reader)
    assert complaints(journal) == []


def test_who_waits_with_a_second_call_is_not_served_any_more(
    rig: Rig, journal: pytest.LogCaptureFixture
) -> None:
    slow = Slow()
    request = json.dumps({"method": "org.vfioapd.Host.HookPrepare", "parameters": HOOK}).encode() + b"\0"
    with socket.socket(socket.AF_UNIX) as client:
        with RunningServer(rig, slow) as server:
            client.connect(server.rw)
            client.sendall(request * 2)
            assert slow.begun.acquire(timeout=10)
            threading.Timer(0.2, slow.let_on.set).start()
        client.settimeout(10)
        answers = b"".join(iter(lambda: client.recv(4096), b""))
    assert answers.count(b"\0") == 1
    assert not slow.begun.acquire(blocking=False)
    assert complaints(journal) == []


def test_a_client_that_does_not_read_its_answer_does_not_hold_the_daemon(
    rig: Rig, journal: pytest.LogCaptureFixture
) -> None:
    class Talkative:
        def xml(self, name: str, kind: str) -> str:
            return "x" * 10_000_000

    request = {"method": "org.vfioapd.Host.Xml", "parameters": {"name": "vault", "kind": "nodedev"}}
    with socket.socket(socket.AF_UNIX) as client:
        with RunningServer(rig, Talkative()) as server:
            client.connect(server.rw)
            client.sendall(json.dumps(request).encode() + b"\0")
            client.recv(1)
            begin = time.monotonic()
        assert time.monotonic() - begin < 5
    assert complaints(journal) == []
