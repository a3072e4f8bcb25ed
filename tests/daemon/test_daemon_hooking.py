# SPDX-License-Identifier: Apache-2.0
"""What the daemon makes of libvirt's hook: ready before a guest starts, settled after it ended, and never
a call to libvirt, which waits for us meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from doubles import Rig, uuid_of

from vfioapd.backend.lock import ap_lock
from vfioapd.daemon import hooking
from vfioapd.domain.problems import Problem, Refused, Unavailable, VfioApError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VAULT = str(uuid_of("vault"))
BYHAND = str(uuid_of("byhand"))
MATRIX = "devices/vfio_ap/matrix"


def states(rig: Rig) -> dict[str, str]:
    return {row.name: row.state for row in rig.service.status().matrices}


def deaf(rig: Rig) -> None:
    """From here on each call to libvirt fails the test."""

    def refuse(*_: object) -> object:
        raise AssertionError("libvirt was called while it waits for the hook")

    rig.guests.read = rig.guests.execute = rig.guests.holds = refuse  # type: ignore[method-assign, assignment]


def hear(rig: Rig) -> None:
    for name in ("read", "execute", "holds"):
        vars(rig.guests).pop(name, None)


@pytest.fixture
def host(any_rig: Rig) -> Rig:
    """bastion is to have vault and is shut off; byhand is started by hand."""
    any_rig.restore()
    any_rig.guests.add("bastion")
    any_rig.define("vault", queues="00.000d,02.000d", guest="bastion")
    any_rig.define("byhand", queues="05.0011", start="manual")
    return any_rig


def test_a_stopped_matrix_is_started_for_the_guest_and_no_longer_counts_as_stopped(host: Rig) -> None:
    host.stop("vault")
    deaf(host)
    assert host.service.hook_prepare("bastion", [VAULT]) == ["vault"]
    hear(host)
    host.guests.start("bastion")
    assert states(host)["vault"] == "in-use"
    host.restart()
    assert states(host)["vault"] == "in-use"


def test_what_is_ready_needs_no_write_no_lock_and_no_worker(host: Rig) -> None:
    writes = host.kernel.write_count
    deaf(host)
    with ap_lock(host.places.lock):  # the lock is taken by somebody, and the worker is busy
        host.service.hooks.worker = Busy()  # type: ignore[assignment]
        assert host.service.hook_prepare("bastion", [VAULT]) == []
    assert host.kernel.write_count == writes


class Busy:
    def submit(self, *_: object) -> None:
        raise AssertionError("nothing had to be done")


def test_masks_and_devices_that_others_undid_are_made_again(host: Rig) -> None:
    host.kernel.sysfs.write(f"{MATRIX}/{VAULT}/unassign_adapter", "2")
    assert host.service.hook_prepare("bastion", [VAULT]) == ["vault"]
    host.kernel.sysfs.write(f"{MATRIX}/{VAULT}/remove", "1")
    assert host.service.hook_prepare("bastion", [VAULT]) == ["vault"]
    host.kernel.reboot()
    assert host.service.hook_prepare("bastion", [VAULT]) == ["vault"]
    assert host.service.show("vault").guest_matrix == ["00.000d", "02.000d"]


def test_a_guest_of_others_and_one_without_devices_change_nothing(host: Rig) -> None:
    before = host.state()
    deaf(host)
    assert host.service.hook_prepare("plain", []) == []
    assert host.service.hook_prepare("plain", [str(uuid_of("stranger"))]) == []
    assert host.service.hook_release("plain", [str(uuid_of("stranger"))]) == []
    hear(host)
    assert host.state() == before


@pytest.mark.parametrize(
    ("require", "lost", "may_start"),
    [
        ("all", (), True),
        ("all", (2,), False),
        ("all", (0, 2), False),
        ("any", (), True),
        ("any", (2,), True),
        ("any", (0, 2), False),
        ("none", (2,), True),
        ("none", (0, 2), True),
    ],
)
def test_the_policy_decides_with_how_many_queues_a_guest_may_start(
    any_rig: Rig, require: str, lost: tuple[int, ...], may_start: bool
) -> None:
    any_rig.restore()
    any_rig.define("vault", queues="00.000d,02.000d", require=require)
    for adapter in lost:
        any_rig.kernel.play({"action": "remove-adapter", "adapter": adapter})
    deaf(any_rig)
    if may_start:
        any_rig.service.hook_prepare("bastion", [VAULT])
        return
    with pytest.raises(Refused) as error:
        any_rig.service.hook_prepare("bastion", [VAULT])
    assert error.value.problem is Problem.MATRIX_NOT_STARTED
    assert require in str(error.value)
    assert error.value.queues == tuple(f"{adapter:02x}.000d" for adapter in lost)
    assert error.value.hint == "vfioapctl why vault"


def test_a_device_that_cannot_be_made_refuses_the_start_with_the_reason(host: Rig) -> None:
    host.stop("vault")
    host.kernel.unload_module("vfio_ap")
    with pytest.raises(VfioApError) as error:
        host.service.hook_prepare("bastion", [VAULT])
    assert error.value.problem is Problem.VFIO_AP_MISSING


def test_what_is_enough_by_the_policy_starts_even_if_the_rest_cannot_be_made(rig: Rig) -> None:
    rig.restore()
    rig.define("vault", queues="00.000d,02.000d", require="any")
    rig.kernel.sysfs.write(f"{MATRIX}/{VAULT}/unassign_adapter", "2")
    rig.kernel.play(
        {"action": "fail", "path": f"{MATRIX}/{VAULT}/ap_config", "access": "write", "errno": "EIO"}
    )
    assert rig.service.hook_prepare("bastion", [VAULT]) == ["vault"]
    assert rig.service.show("vault").guest_matrix == ["00.000d"]


def test_a_matrix_started_for_one_run_is_stopped_after_it_and_its_queues_go_back(host: Rig) -> None:
    before = host.kernel_state()
    deaf(host)
    assert host.service.hook_prepare("bastion", [BYHAND]) == ["byhand"]
    assert host.service.hook_release("bastion", [BYHAND]) == ["byhand"]
    hear(host)
    assert host.kernel_state() == before
    assert states(host)["byhand"] == "stopped"
    assert not host.places.started_for.exists()


def test_a_matrix_that_was_there_before_stays_after_the_guest(host: Rig) -> None:
    host.start("byhand")
    host.service.hook_prepare("bastion", [BYHAND, VAULT])
    assert host.service.hook_release("bastion", [BYHAND, VAULT]) == []
    assert states(host) == {"byhand": "started", "vault": "started"}


def test_who_starts_it_by_hand_meanwhile_keeps_it(host: Rig) -> None:
    host.service.hook_prepare("bastion", [BYHAND])
    host.start("byhand")
    assert host.service.hook_release("bastion", [BYHAND]) == []
    assert states(host)["byhand"] == "started"


def test_a_release_takes_nothing_from_a_guest_that_still_has_the_device(host: Rig) -> None:
    host.service.hook_prepare("bastion", [BYHAND])
    host.kernel.guest_open(BYHAND, "bastion")
    host.service.hook_release("bastion", [BYHAND])
    assert states(host)["byhand"] == "in-use"


def test_a_release_after_a_refused_start_finds_nothing_to_do(host: Rig) -> None:
    host.kernel.play({"action": "remove-adapter", "adapter": 2})
    with pytest.raises(Refused):
        host.service.hook_prepare("bastion", [VAULT])
    before = host.kernel_state()
    assert host.service.hook_release("bastion", [VAULT]) == []
    assert host.kernel_state() == before


def test_the_end_of_another_guest_changes_nothing(host: Rig) -> None:
    host.service.hook_prepare("bastion", [BYHAND])
    assert host.service.hook_release("other", [BYHAND]) == []
    assert states(host)["byhand"] == "started"


def test_the_daemon_may_be_restarted_between_start_and_end(host: Rig) -> None:
    host.service.hook_prepare("bastion", [BYHAND])
    host.restart()
    assert host.service.hook_release("bastion", [BYHAND]) == ["byhand"]
    assert states(host)["byhand"] == "stopped"


# --- with the thread that makes changes


@pytest.fixture
def worker(host: Rig) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as changes:
        host.service.hooks.worker = changes
        yield changes


@pytest.fixture
def busy(worker: ThreadPoolExecutor) -> Iterator[Callable[[], None]]:
    """The worker is at something else until the test says that it is done."""
    done = threading.Event()
    worker.submit(done.wait)
    yield done.set
    done.set()


def test_a_start_behind_a_long_change_is_refused_with_what_is_running(
    host: Rig, busy: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    host.stop("vault")
    before = host.kernel_state()
    monkeypatch.setattr(hooking, "PATIENCE", 0.1)
    host.standing.running = "define huge"
    with pytest.raises(Unavailable) as error:
        host.service.hook_prepare("bastion", [VAULT])
    assert "define huge" in str(error.value)
    busy()
    host.service.hooks.worker.submit(lambda: None).result(10)  # type: ignore[union-attr]
    assert host.kernel_state() == before, "what was refused is not made later"


def test_a_start_waits_for_a_short_change(host: Rig, busy: Callable[[], None]) -> None:
    host.stop("vault")
    threading.Timer(0.05, busy).start()
    assert host.service.hook_prepare("bastion", [VAULT]) == ["vault"]


def test_a_release_answers_at_once_while_something_else_is_changed(
    host: Rig, busy: Callable[[], None]
) -> None:
    host.places.started_for.parent.mkdir(parents=True, exist_ok=True)
    host.places.started_for.write_text("byhand bastion\n")
    assert host.service.hook_release("bastion", [BYHAND]) == ["byhand"]


def test_a_guest_that_starts_again_before_its_end_was_settled_keeps_its_device(
    host: Rig, worker: ThreadPoolExecutor
) -> None:
    host.service.hook_prepare("bastion", [BYHAND])
    done = threading.Event()
    worker.submit(done.wait)
    host.service.hook_release("bastion", [BYHAND])
    assert host.service.hook_prepare("bastion", [BYHAND]) == []
    done.set()
    worker.submit(lambda: None).result(10)
    assert states(host)["byhand"] == "started"
    host.service.hook_release("bastion", [BYHAND])
    worker.submit(lambda: None).result(10)
    assert states(host)["byhand"] == "stopped", "the next end is settled again"
