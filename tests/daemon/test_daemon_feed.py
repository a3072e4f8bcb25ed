# SPDX-License-Identifier: Apache-2.0
"""The stream of events: complete for whoever keeps up, bounded for whoever does not."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest

from vfioapd.cli.main import main
from vfioapd.daemon.feed import KEPT, Feed, JournalLines, Kind, uevent_lines
from vfioapd.daemon.following import SHOWN_FIRST, WAITING, follow
from vfioapd.rpc.client import CallError, call, stream
from vfioapd.udev.monitor import Uevent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from doubles import Rig, RunningServer

    from vfioapd.rpc.types import EventRow


async def _take(feed: Feed, count: int) -> list[EventRow]:
    found = []
    async for row in follow(feed):
        found.append(row)
        if len(found) == count:
            break
    return found


def test_the_newest_events_are_kept_in_their_order() -> None:
    feed = Feed()
    for number in range(KEPT + 5):
        feed.tell(Kind.UEVENT, str(number))
    rows = feed.recent()
    assert [row.text for row in rows] == [str(number) for number in range(5, KEPT + 5)]
    assert [row.number for row in rows] == list(range(6, KEPT + 6))


def test_who_follows_gets_the_last_few_and_then_all_without_a_gap() -> None:
    feed = Feed()
    for number in range(50):
        feed.tell(Kind.GUEST, str(number))

    async def play() -> list[EventRow]:
        reader = asyncio.create_task(_take(feed, SHOWN_FIRST + 100))
        await asyncio.sleep(0)
        teller = threading.Thread(target=lambda: [feed.tell(Kind.GUEST, str(n)) for n in range(50, 150)])
        teller.start()
        rows = await reader
        teller.join()
        return rows

    rows = asyncio.run(play())
    assert [row.text for row in rows] == [str(number) for number in range(50 - SHOWN_FIRST, 150)]


def test_a_reader_that_is_too_slow_loses_events_is_told_how_many_and_holds_nobody_up() -> None:
    feed = Feed()

    async def play() -> list[EventRow]:
        following = follow(feed)
        first = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0)
        feed.tell(Kind.DRIFT, "first")
        await first
        for number in range(WAITING + 7):
            feed.tell(Kind.DRIFT, str(number))
        await asyncio.sleep(0.01)  # the loop takes what it was told
        return [await anext(following) for _ in range(WAITING + 1)]

    *heard, last = asyncio.run(play())
    assert [row.text for row in heard] == [str(number) for number in range(WAITING)]
    assert (last.number, last.kind) == (0, "lost")
    assert last.text.startswith("7 events were lost")


def test_a_reader_that_goes_is_forgotten() -> None:
    feed = Feed()

    async def play() -> None:
        following = follow(feed)
        feed.tell(Kind.DAEMON, "one")
        await anext(following)
        assert feed._listeners
        await following.aclose()  # type: ignore[attr-defined]

    asyncio.run(play())
    assert not feed._listeners


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vfioapd.daemon.drift", "drift"),
        ("vfioapd.daemon.hooking", "hook"),
        ("vfioapd.daemon.command", "change"),
        ("vfioapd.daemon.service", "change"),
        ("vfioapd.rpc.interface", "change"),
        ("vfioapd.virt.connection", "guest"),
        ("vfioapd", "daemon"),
        ("vfioapd.backend.lock", "daemon"),
    ],
)
def test_lines_of_the_journal_are_events_by_what_they_are_about(name: str, kind: str) -> None:
    feed = Feed()
    lines = JournalLines(feed)
    record = logging.LogRecord(name, logging.WARNING, __file__, 1, "matrix %s drifted", ("vault",), None)
    lines.handle(record)
    assert [(row.kind, row.text) for row in feed.recent()] == [(kind, "matrix vault drifted")]


@pytest.mark.parametrize(
    ("name", "level"), [("asyncio", logging.ERROR), ("vfioapd.engine.run", logging.INFO)]
)
def test_single_steps_and_lines_of_others_are_no_events(name: str, level: int) -> None:
    feed = Feed()
    JournalLines(feed).handle(logging.LogRecord(name, level, __file__, 1, "apmask -5", (), None))
    assert feed.recent() == []


def bound(queue: str, driver: str = "vfio_ap") -> Uevent:
    return Uevent("bind", queue, "ap", {"DRIVER": driver})


def test_thousands_of_uevents_alike_are_one_line_and_others_are_told_each() -> None:
    queues = [f"{adapter:02x}.{domain:04x}" for adapter in range(60) for domain in range(85)]
    mask = Uevent("change", "ap", "ap", {"APMASK": "0x0"})
    events = [mask, *(event for queue in queues for event in (bound(queue), bound(queue, "cex4queue")))]
    assert uevent_lines(events) == [
        "change ap ap APMASK=0x0",
        "bind ap 00.0000 to 3b.0054 DRIVER=vfio_ap (5100 events, 5100 devices)",
        "bind ap 00.0000 to 3b.0054 DRIVER=cex4queue (5100 events, 5100 devices)",
    ]
    assert uevent_lines([bound("05.0011"), bound("05.000d")]) == [
        "bind ap 05.0011 DRIVER=vfio_ap",
        "bind ap 05.000d DRIVER=vfio_ap",
    ]


# --- over the socket, and on the screen


@pytest.fixture
def listening(rig: Rig) -> Iterator[Feed]:
    lines = JournalLines(rig.standing.feed)
    logging.getLogger().addHandler(lines)
    yield rig.standing.feed
    logging.getLogger().removeHandler(lines)


def test_commands_and_refusals_are_events(
    rig: Rig, server: RunningServer, listening: Feed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    call(server.rw, "Define", name="vault", queues="00.000d,02.000d")
    with pytest.raises(CallError):
        call(server.rw, "Define", name="other", queues="00.000d")
    rows = call(server.ro, "Events")["events"]
    assert isinstance(rows, list)
    made, refused = (row for row in rows if row["kind"] == "change")
    assert made["text"].startswith("define vault: done in ")
    assert "matrix other cannot have 00.000d" in refused["text"]


def test_events_are_followed_over_the_socket_by_many_and_a_reader_that_dies_costs_nothing(
    rig: Rig, server: RunningServer
) -> None:
    feed = rig.standing.feed
    feed.tell(Kind.GUEST, "guest bastion started")
    readers = [stream(server.ro, "Follow") for _ in range(3)]
    for reader in readers:
        assert next(reader)["event"]["text"] == "guest bastion started"  # type: ignore[index]
    readers[0].close()
    for number in range(3):
        feed.tell(Kind.GUEST, str(number))
    for reader in readers[1:]:
        assert [next(reader)["event"]["text"] for _ in range(3)] == ["0", "1", "2"]  # type: ignore[index]
        reader.close()
    deadline = time.monotonic() + 10
    while feed._listeners:
        feed.tell(Kind.GUEST, "anybody there?")
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_events_are_shown_a_line_each_and_by_kind(
    rig: Rig, server: RunningServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VFIOAPD_SOCKET", server.ro)
    assert main(["events"]) == 0
    assert capsys.readouterr().out == "nothing has happened yet\n"
    rig.standing.feed.tell(Kind.GUEST, "guest bastion started")
    rig.standing.feed.tell(Kind.DRIFT, "matrix vault drifted: its device is gone")
    assert main(["events", "--kind", "drift"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("Z  drift   matrix vault drifted: its device is gone")
    assert main(["events", "--json"]) == 0
    assert [row["kind"] for row in json.loads(capsys.readouterr().out)] == ["guest", "drift"]


def test_following_ends_with_the_daemon_and_says_so(
    rig: Rig,
    server: RunningServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VFIOAPD_SOCKET", server.ro)
    rig.standing.feed.tell(Kind.GUEST, "guest bastion started")

    def end(_path: str, _method: str) -> Iterator[dict[str, object]]:
        reply = next(stream(server.ro, "Follow"))
        yield reply
        raise CallError("not-running", "vfioapd has ended", "systemctl status vfioapd")

    monkeypatch.setattr("vfioapd.cli.events_screen.stream", end)
    assert main(["events", "--follow", "--json"]) == 4
    shown = capsys.readouterr()
    assert json.loads(shown.out.splitlines()[0])["text"] == "guest bastion started"
    assert "vfioapd has ended [not-running]" in shown.err
