# SPDX-License-Identifier: Apache-2.0
"""What a boot waits for, what it does without, and what it says of each matrix."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vfioapd.daemon import arrival, serving
from vfioapd.daemon.drift import Drift
from vfioapd.daemon.outcomes import Message
from vfioapd.daemon.restoring import RESTORE_AGAIN, restore

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import Rig

ROOT = Path(__file__).parents[2]
CARD = {"action": "add-adapter", "adapter": 6, "type": "CEX8C"}


COLLECTS = """
import gc, os
from vfioapd.daemon import main, serving, start

async def serve(*_):
    print("serving", gc.isenabled())

os.geteuid = lambda: 0
main.restore = lambda *_: print("restoring", gc.isenabled())
serving.serve = serve
start.main()
"""


class Events:
    """The kernel's uevents: each wait plays the next thing to happen; after the last nothing comes."""

    def __init__(self, *happenings: Callable[[], object]) -> None:
        self._happenings = list(happenings)
        self.waits: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        if not self._happenings:
            return False
        self._happenings.pop(0)()
        return True

    def close(self) -> None:
        """Nothing is open."""


def booted(rig: Rig, *, adapter: bool = True, complete: bool = True) -> Rig:
    """Up again after a reboot, before the daemon does anything; perhaps without adapter 6, or with
    queues that no driver has."""
    rig.restart()
    rig.define("vault", queues="06.000d,06.0011")
    rig.define("other", queues="00.000d")
    rig.reboot()
    if not adapter:
        rig.kernel.play({"action": "remove-adapter", "adapter": 6})
    if not complete:
        rig.kernel.unload_module("zcrypt_cex4", with_unused=False)
    rig.up()
    return rig


def plug(rig: Rig) -> None:
    rig.kernel.play(CARD)


def messages(caplog: pytest.LogCaptureFixture) -> dict[str, list[str]]:
    """Matrix names by the id of what was told of them."""
    found: dict[str, list[str]] = {}
    for record in caplog.records:
        if message := getattr(record, "MESSAGE_ID", ""):
            found.setdefault(Message(message).name, []).append(getattr(record, "VFIOAPD_MATRIX", ""))
    return found


def guest_matrix(rig: Rig, name: str) -> list[str] | None:
    return rig.service.show(name).guest_matrix


def test_a_complete_bus_is_not_waited_for_even_where_an_adapter_is_missing(rig: Rig) -> None:
    booted(rig, adapter=False)
    events = Events()
    restore(rig.standing, lambda: events)
    assert events.waits == []
    assert guest_matrix(rig, "other") == ["00.000d"]


def test_drivers_of_the_host_that_come_late_hold_nobody_up(any_rig: Rig) -> None:
    rig = booted(any_rig, complete=False)
    events = Events()
    restore(rig.standing, lambda: events)
    assert events.waits == []
    assert guest_matrix(rig, "vault") == ["06.000d", "06.0011"]


def test_a_bus_that_is_still_looking_is_waited_for_by_its_events(any_rig: Rig) -> None:
    rig = booted(any_rig, adapter=False, complete=False)
    events = Events(lambda: None, lambda: plug(rig))
    restore(rig.standing, lambda: events)
    assert len(events.waits) == 2
    assert guest_matrix(rig, "vault") == ["06.000d", "06.0011"]
    assert rig.standing.short == {}


def test_the_wait_for_the_bus_has_an_end_and_says_what_is_missing(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    booted(rig, adapter=False, complete=False)
    told: list[str] = []
    rig.standing.on_status = told.append
    events = Events()
    restore(rig.standing, lambda: events)
    assert 0 < events.waits[0] <= arrival.BUS_SECONDS
    assert "06.000d, 06.0011" in told[0]
    assert "BUS_LATE" in messages(caplog)
    assert guest_matrix(rig, "other") == ["00.000d"]
    assert "vault" in told[-1]


def test_a_bus_with_many_events_is_waited_for_no_longer(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    booted(rig, adapter=False, complete=False)
    seconds = iter(range(0, 1000, 10))
    monkeypatch.setattr("vfioapd.daemon.arrival.time.monotonic", lambda: float(next(seconds)))
    events = Events(*[lambda: None] * 50)
    restore(rig.standing, lambda: events)
    assert events.waits == [20.0, 10.0]


def test_a_restarted_daemon_waits_for_nothing(rig: Rig) -> None:
    booted(rig, adapter=False, complete=False)
    rig.restart()
    rig.up()
    events = Events()
    restore(rig.standing, lambda: events)
    assert events.waits == []


def test_each_matrix_has_its_outcome_in_the_journal(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    booted(rig, adapter=False)
    caplog.clear()
    restore(rig.standing, Events)
    assert messages(caplog) == {"SHORT": ["vault"], "RESTORED": ["other"]}
    assert rig.standing.is_degraded()
    assert "1 without all of their queues: vault" in rig.standing.summary()
    caplog.clear()
    rig.restart()
    assert messages(caplog) == {"SHORT": ["vault"]}, "what is whole is told once a boot"


def test_without_the_module_each_matrix_is_told_as_not_restored(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    booted(rig)
    rig.kernel.unload_module("vfio_ap")
    restore(rig.standing, Events)
    assert messages(caplog) == {"NOT_RESTORED": ["vault", "other"]}
    assert "2 not restored: other, vault" in rig.standing.summary()


def test_a_card_that_comes_after_the_boot_is_taken_up_without_anybody_asking(
    any_rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rig = booted(any_rig, adapter=False)
    restore(rig.standing, Events)
    plug(rig)
    caplog.clear()
    told: list[str] = []
    rig.standing.on_status = told.append
    Drift(rig.standing).look(None)
    assert guest_matrix(rig, "vault") == ["06.000d", "06.0011"]
    assert "vault" in messages(caplog)["TAKEN_UP"]
    assert not any("drifted" in record.getMessage() for record in caplog.records)
    assert not rig.standing.is_degraded()
    assert told[-1] == "2 matrices defined"


def test_a_lock_that_another_program_holds_is_tried_again_by_the_clock(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    booted(rig)
    rig.places.lock.write_text("1\n")  # the first process lives as long as the host
    monkeypatch.setattr("vfioapd.daemon.restoring.LOCK_PATIENCE", 0.01)
    assert restore(rig.standing, Events) == RESTORE_AGAIN
    assert "lock" in rig.standing.failures[""]
    assert Drift(rig.standing).look(None) == RESTORE_AGAIN
    rig.places.lock.unlink()
    assert Drift(rig.standing).look(None) is None
    assert guest_matrix(rig, "vault") == ["06.000d", "06.0011"]
    assert not rig.standing.is_degraded()


def test_a_bus_that_comes_after_the_daemon_is_taken_up_with_its_news(rig: Rig) -> None:
    booted(rig)
    rig.kernel.play({"action": "fail", "path": "bus/ap/bindings", "access": "read", "errno": "ENOENT"})
    assert restore(rig.standing, Events) is None
    assert rig.standing.is_degraded()
    rig.kernel.play({"action": "mend", "path": "bus/ap/bindings"})
    assert Drift(rig.standing).look(None) is None
    assert guest_matrix(rig, "vault") == ["06.000d", "06.0011"]


@pytest.mark.parametrize("left", ["version = ", "# what guests", ""])
def test_with_host_toml_and_its_newest_revision_damaged_an_older_one_is_in_force(rig: Rig, left: str) -> None:
    booted(rig)
    sorted(rig.places.revisions.glob("*.toml"))[-1].write_text("version = ")
    rig.places.host_file.write_text(left)
    restore(rig.standing, Events)
    assert guest_matrix(rig, "vault") == ["06.000d", "06.0011"]
    assert rig.standing.is_degraded()


@pytest.mark.parametrize("left", [0, 20, None], ids=["empty", "cut in its first comment", "gone"])
def test_a_host_toml_that_was_cut_off_or_is_gone_is_not_taken_for_an_empty_one(
    rig: Rig, left: int | None
) -> None:
    booted(rig)
    rig.places.host_file.write_text(("# what guests get\n" * 3)[:left])
    if left is None:
        rig.places.host_file.unlink()
    restore(rig.standing, Events)
    assert guest_matrix(rig, "vault") == ["06.000d", "06.0011"]
    assert rig.standing.is_degraded()


def test_a_host_toml_that_says_that_there_is_no_matrix_is_obeyed(rig: Rig) -> None:
    booted(rig)
    rig.places.host_file.write_text("version = 1\n")
    restore(rig.standing, Events)
    assert rig.service.status().matrices == []


def test_a_boot_waits_for_no_library_that_the_restore_does_not_need() -> None:
    """libvirt's start waits for the daemon to be ready, imports included."""
    script = "import sys, vfioapd.daemon.start, vfioapd.daemon.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"argparse", "asyncio", "asyncvarlink", "libvirt", "lxml", "pyudev", "tomlkit"}
    ours = {name.partition("vfioapd.")[2] for name in loaded}
    assert not {one for one in ours if one.startswith("rpc")}
    assert not ours & {f"daemon.{name}" for name in ("command", "doctor", "drift", "news", "service", "whys")}


def test_no_garbage_is_looked_for_before_the_host_is_restored() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECTS], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["restoring False", "serving True"]


def test_the_daemon_gives_the_boot_free_before_systemd_kills_it() -> None:
    limit = re.search(r"^TimeoutStartSec=(\d+)$", (ROOT / "units/vfioapd.service").read_text(), re.MULTILINE)
    assert limit
    assert arrival.BUS_SECONDS < serving.RESTORE_SECONDS < int(limit[1])


def test_every_message_id_is_documented_and_no_two_are_alike() -> None:
    page = (ROOT / "docs/boot.md").read_text()
    ids = {message.value for message in Message}
    assert len(ids) == len(Message)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert set(re.findall("[0-9a-f]{32}", page)) == ids
