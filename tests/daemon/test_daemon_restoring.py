# SPDX-License-Identifier: Apache-2.0
"""What the daemon does when it starts, after a restart of its own or of the host."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from doubles import ADMIN, Rig, uuid_of

from vfioapd.daemon.command import take_back
from vfioapd.domain.problems import Problem, VfioApError

if TYPE_CHECKING:
    from collections.abc import Callable

VAULT = "00.000d,02.000d"
MATRIX = "devices/vfio_ap/matrix"


def states(rig: Rig) -> dict[str, str]:
    return {row.name: row.state for row in rig.service.status().matrices}


def made_by_hand(rig: Rig, name: str, adapter: int, domain: int) -> None:
    rig.kernel.sysfs.write("bus/ap/apmask", f"-{adapter}")
    rig.kernel.sysfs.write(f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create", str(uuid_of(name)))
    rig.kernel.sysfs.write(f"{MATRIX}/{uuid_of(name)}/assign_adapter", str(adapter))
    rig.kernel.sysfs.write(f"{MATRIX}/{uuid_of(name)}/assign_domain", str(domain))


def furnished(rig: Rig) -> Rig:
    """An automatic, a manual and a stopped matrix, and a guest with the first."""
    rig.restart()
    rig.guests.add("bastion", running=True)
    rig.define("vault", queues=VAULT, guest="bastion")
    rig.define("byhand", queues="05.0011", start="manual")
    rig.define("resting", queues="06.0011")
    rig.stop("resting")
    return rig


@pytest.fixture
def host(rig: Rig) -> Rig:
    return furnished(rig)


@pytest.fixture
def each_host(any_rig: Rig) -> Rig:
    """On each kernel; for what the kernels do differently."""
    return furnished(any_rig)


def test_a_restart_changes_nothing(each_host: Rig) -> None:
    each_host.start("byhand")
    before, writes = each_host.state(), each_host.kernel.write_count
    each_host.restart()
    assert each_host.state() == before
    assert each_host.kernel.write_count == writes
    assert states(each_host) == {"vault": "in-use", "byhand": "started", "resting": "stopped"}


def test_a_stopped_matrix_stays_stopped_until_the_host_boots(each_host: Rig) -> None:
    each_host.restart()
    assert states(each_host)["resting"] == "stopped"
    each_host.reboot()
    each_host.restart()
    assert states(each_host) == {"vault": "started", "byhand": "stopped", "resting": "started"}


def test_after_a_boot_masks_and_devices_are_there_before_any_guest_starts(each_host: Rig) -> None:
    before = each_host.kernel.sysfs.read(f"{MATRIX}/{uuid_of('vault')}/matrix")
    each_host.reboot()
    assert each_host.kernel_state()["mdevs"] == {}
    each_host.restart()
    assert each_host.kernel.sysfs.read(f"{MATRIX}/{uuid_of('vault')}/matrix") == before
    each_host.guests.start("bastion")
    assert states(each_host)["vault"] == "in-use"


def test_all_devices_of_a_boot_cost_the_fewest_mask_writes(host: Rig) -> None:
    host.reboot()
    host.restart()
    assert len([step for step in host.host.made if "mask" in step]) <= 1


def test_one_matrix_that_cannot_be_made_stops_no_other_and_is_shown(rig: Rig) -> None:
    rig.restart()
    rig.define("a", queues="00.000d")
    rig.define("b", queues="02.000d")
    rig.define("c", queues="06.000d")
    rig.reboot()
    made_by_hand(rig, "thief", 2, 13)
    rig.restart()
    assert states(rig) == {"a": "started", "b": "failed", "c": "started"}
    row = rig.service.show("b")
    assert row.problem is not None
    assert "EADDRINUSE" in row.problem
    assert "b" in rig.standing.summary()
    rig.kernel.sysfs.write(f"{MATRIX}/{uuid_of('thief')}/remove", "1")
    rig.start("b")
    assert states(rig)["b"] == "started"
    assert "not restored" not in rig.standing.summary()


@pytest.mark.parametrize("text", ["version = ", "version = 1\nkey = 2\n", "\x00", "[[matrix]]\nname = 5\n"])
def test_a_broken_host_toml_takes_no_queue_from_a_guest_and_is_told(host: Rig, text: str) -> None:
    wanted = host.kernel_state()["mdevs"]
    host.places.host_file.write_text(text)
    host.restart()
    assert host.kernel_state()["mdevs"] == wanted
    assert any("host.toml:" in one for one in host.service.status().problems)
    assert host.service.queues()
    assert host.service.show("vault").state == "in-use"
    with pytest.raises(VfioApError) as error:
        host.define("new", queues="03.0011")
    assert error.value.problem is Problem.BAD_HOST_FILE
    host.reboot()
    host.restart()
    assert states(host)["vault"] == "started", "what was in force last stays in force"


@pytest.mark.parametrize("text", [b"\xff\xfe\xfd", b""])
def test_a_host_toml_that_is_no_text_or_empty_leaves_status_working(host: Rig, text: bytes) -> None:
    host.places.host_file.write_bytes(text)
    host.restart()
    assert host.service.status().problems
    assert host.standing.summary()


@pytest.mark.parametrize("start", ["restart", "reboot"])
def test_a_host_toml_that_the_file_system_does_not_give_out_takes_no_queue_from_anybody(
    host: Rig, start: str
) -> None:
    """A folder in its place stands for what root cannot be refused here: no right to read, a bad block."""
    host.reboot()
    host.restart()
    before, matrices = host.kernel_state(), states(host)
    host.places.host_file.unlink()
    host.places.host_file.mkdir()
    if start == "reboot":
        host.reboot()
    host.restart()
    assert (host.kernel_state(), states(host)) == (before, matrices)
    said = f"{host.places.host_file} cannot be read: Is a directory"
    assert said in host.service.status().problems
    acts: dict[str, Callable[[], object]] = {
        "plan": lambda: host.service.plan(None, ADMIN),
        "define": lambda: host.define("new", queues="07.000d"),
        "restore": lambda: host.service.restore_revision(1, ADMIN),
        "diff": lambda: host.service.diff(1),
    }
    for name, act in acts.items():
        with pytest.raises(VfioApError, match=said) as refused:
            act()
        assert refused.value.problem is Problem.BAD_HOST_FILE, name


def test_what_a_broken_host_toml_differs_in_is_shown(host: Rig) -> None:
    """Most of all then an admin wants to see it."""
    path = host.places.host_file
    path.write_text(path.read_text() + "[[matrix\n")
    assert "+[[matrix" in host.service.diff(host.standing.history.last() or 0)


def test_an_edit_by_hand_takes_effect_by_apply_or_at_the_next_boot_but_not_by_a_restart(host: Rig) -> None:
    text = host.places.host_file.read_text()
    host.places.host_file.write_text(text.replace("0x06", "0x04"))
    before = host.kernel_state()
    host.restart()
    assert host.kernel_state() == before
    assert any("edited" in one for one in host.service.status().problems)
    with pytest.raises(VfioApError) as error:
        host.start("byhand")
    assert error.value.problem is Problem.UNAPPLIED_EDIT
    host.reboot()
    host.restart()
    assert host.service.show("resting").queues == ["04.0011"]
    assert states(host)["resting"] == "started"
    assert host.service.status().problems == []


def test_every_deed_of_a_restore_that_fails_is_undone_and_tried_one_by_one(each_host: Rig) -> None:
    each_host.reboot()
    each_host.kernel.play({"action": "fail", "path": "bus/ap/apmask", "access": "write", "errno": "EIO"})
    each_host.restart()
    if each_host.kernel.host.kernel.name == "7.3":
        assert states(each_host)["vault"] == "started", "overrides need no mask"
        return
    assert states(each_host)["vault"] == "failed"
    assert each_host.kernel_state()["mdevs"] == {}
    each_host.kernel.play({"action": "mend", "path": "bus/ap/apmask"})
    each_host.restart()
    assert states(each_host)["vault"] == "started"


def test_no_ap_bus_and_a_held_lock_are_told_and_never_raise(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.restart()
    rig.kernel.play({"action": "fail", "path": "bus/ap/apmask", "access": "read", "errno": "ENOENT"})
    rig.restart()
    assert "AP bus" in rig.standing.failures[""]
    rig.kernel.play({"action": "mend", "path": "bus/ap/apmask"})
    rig.restart()
    assert rig.service.status().problems == []


@pytest.mark.parametrize(
    "break_it",
    [
        lambda rig: sorted(rig.places.revisions.glob("*.toml"))[-1].write_bytes(b"\xff\xfe"),
        lambda rig: sorted(rig.places.revisions.glob("*.toml"))[-1].write_text("version = 9\n"),
        lambda rig: sorted(rig.places.revisions.glob("*.json"))[-1].write_text("{"),
        lambda rig: rig.places.stopped.write_bytes(b"\xff"),
        lambda rig: rig.places.unconfirmed.write_text("{"),
    ],
    ids=["revision is no text", "revision of the future", "torn note", "stopped is no text", "torn wait"],
)
def test_state_of_ours_that_is_damaged_never_keeps_the_daemon_from_starting(
    host: Rig, break_it: Callable[[Rig], object]
) -> None:
    break_it(host)
    host.restart()
    status = host.service.status()
    assert status.queues_total == 16
    assert host.standing.summary()


def test_a_lost_history_leaves_host_toml_in_force_at_the_next_boot(host: Rig) -> None:
    wanted = host.kernel_state()["mdevs"]
    for path in host.places.revisions.iterdir():
        path.unlink()
    host.reboot()
    host.restart()
    assert str(uuid_of("vault")) in host.kernel_state()["mdevs"]  # type: ignore[operator]
    assert wanted


# --- changes that must be confirmed


def apply(rig: Rig, seconds: int | None) -> str:
    """Drop everything from host.toml."""
    before = rig.places.host_file.read_text()
    rig.detach("vault", "bastion")
    rig.service.apply("version = 1\n", replace(ADMIN, confirm_within=seconds))
    return before


def test_a_change_that_is_confirmed_stays(host: Rig) -> None:
    apply(host, 60)
    with pytest.raises(VfioApError) as error:
        host.define("x", queues="03.0011")
    assert error.value.problem is Problem.UNCONFIRMED
    host.service.confirm(ADMIN)
    host.restart()
    assert states(host) == {}
    host.define("x", queues="03.0011")


def test_a_change_that_is_not_confirmed_goes_back_when_the_time_is_over(
    host: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(host, 60)
    left = take_back(host.standing)
    assert left is not None
    assert 50 < left <= 60
    assert states(host) == {}
    later = time.time() + 61
    monkeypatch.setattr("vfioapd.daemon.confirming.time.time", lambda: later)
    assert take_back(host.standing) is None
    assert set(states(host)) == {"vault", "byhand", "resting"}
    assert take_back(host.standing) is None


def test_a_change_that_is_not_confirmed_goes_back_also_when_the_daemon_was_killed_or_the_host_rebooted(
    each_host: Rig,
) -> None:
    apply(each_host, 60)
    each_host.restart()
    assert states(each_host) == {}, "the time is not over"
    each_host.reboot()
    each_host.restart()
    assert set(states(each_host)) == {"vault", "byhand", "resting"}
    assert states(each_host)["vault"] == "started"


def test_a_change_that_cannot_be_taken_back_before_libvirt_is_there_keeps_no_guest_from_its_queues(
    host: Rig,
) -> None:
    """At boot the daemon comes first, so what was not confirmed goes back as soon as libvirt answers."""
    text = host.places.host_file.read_text()
    host.service.apply(
        text.replace('guest = "bastion"\n', ""), replace(ADMIN, confirm_within=60, disrupt=True)
    )
    assert host.guests.rooms["bastion"].config == set()
    host.reboot()
    host.guests.is_up = False
    host.restart()
    assert states(host)["vault"] == "started"
    assert host.standing.failures[""], "that it could not be taken back is told"
    host.guests.is_up = True
    host.restart()
    assert host.places.host_file.read_text() == text
    assert host.guests.rooms["bastion"].config == {uuid_of("vault")}
    assert host.standing.failures == {}
