# SPDX-License-Identifier: Apache-2.0
"""What others do to the host is said, and mended where the admin wants that, never in a war."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from doubles import ADMIN, Rig, uuid_of

from vfioapd.daemon import drift as drift_module
from vfioapd.daemon.drift import REPAIRS, Drift

if TYPE_CHECKING:
    from collections.abc import Callable

REPAIR = 'version = 1\n[host]\nrepair = true\n\n[[matrix]]\nname = "vault"\nuuid = "{uuid}"\n'
MATRIX = "devices/vfio_ap/matrix"


class Clock:
    """time.monotonic that moves only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(drift_module, "time", made)
    return made


def repairing(rig: Rig) -> Rig:
    """One matrix that is to be mended."""
    rig.restore()
    text = REPAIR.format(uuid=uuid_of("vault")) + "adapters = [0]\ndomains = [13]\n"
    rig.service.apply(text, ADMIN)
    return rig


def remove_device(rig: Rig) -> None:
    rig.kernel.sysfs.write(f"{MATRIX}/{uuid_of('vault')}/remove", "1\n")


def is_active(rig: Rig) -> bool:
    return str(uuid_of("vault")) in rig.kernel.sysfs.names("bus/mdev/devices")


def give_back_masks(rig: Rig) -> None:
    remove_device(rig)
    rig.kernel.sysfs.write("bus/ap/apmask", "+0\n")


def reassign(rig: Rig) -> None:
    rig.kernel.sysfs.write(f"{MATRIX}/{uuid_of('vault')}/unassign_domain", "13\n")


def edit_definition(rig: Rig) -> None:
    (rig.places.definitions / str(uuid_of("vault"))).write_text("{}")


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (remove_device, "its device is gone"),
        (give_back_masks, "its device is gone"),
        (reassign, "holds another matrix"),
        (edit_definition, "was changed or removed"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_what_others_did_is_said_and_left_alone_without_repair(
    rig: Rig, others: Callable[[Rig], None], words: str
) -> None:
    rig.restore()
    rig.define("vault", queues="00.000d")
    others(rig)
    before = rig.state()
    assert Drift(rig.standing).look(None) is None
    assert words in (rig.service.show("vault").problem or "")
    assert rig.state() == before


@pytest.mark.parametrize("others", [remove_device, give_back_masks, reassign, edit_definition])
def test_with_repair_the_host_is_as_desired_again_and_the_complaint_ends(
    rig: Rig, others: Callable[[Rig], None], clock: Clock
) -> None:
    repairing(rig)
    wanted = rig.state()
    others(rig)
    Drift(rig.standing).look(None)
    assert rig.state() == wanted
    assert rig.service.show("vault").problem is None


def test_nothing_drifted_is_nothing_done(rig: Rig) -> None:
    repairing(rig)
    made = len(rig.host.made)
    assert Drift(rig.standing).look(None) is None
    assert len(rig.host.made) == made


def test_the_holder_of_the_lock_is_named_beside_what_happened(rig: Rig) -> None:
    rig.restore()
    rig.define("vault", queues="00.000d")
    remove_device(rig)
    Drift(rig.standing).look("chzdev (PID 4711)")
    assert "chzdev (PID 4711)" in (rig.service.show("vault").problem or "")


def test_a_matrix_that_is_undone_again_and_again_is_mended_with_growing_pauses_then_left_alone(
    rig: Rig, clock: Clock
) -> None:
    repairing(rig)
    drift = Drift(rig.standing)
    pauses = []
    for _ in range(REPAIRS):
        remove_device(rig)
        while (wait := drift.look(None)) is not None:
            pauses.append(wait)
            clock.now += wait
        assert is_active(rig)
    remove_device(rig)
    assert drift.look(None) is None
    assert not is_active(rig), "the other tool has won"
    assert "another program" in (rig.service.show("vault").problem or "")
    assert pauses == [1.0, 2.0, 4.0, 8.0]


def test_an_admin_who_starts_it_again_is_obeyed_whatever_was_given_up(rig: Rig, clock: Clock) -> None:
    test_a_matrix_that_is_undone_again_and_again_is_mended_with_growing_pauses_then_left_alone(rig, clock)
    rig.start("vault")
    assert is_active(rig)
    assert rig.service.show("vault").problem is None


def test_after_quiet_minutes_earlier_repairs_do_not_count(rig: Rig, clock: Clock) -> None:
    repairing(rig)
    drift = Drift(rig.standing)
    for _ in range(3 * REPAIRS):
        remove_device(rig)
        assert drift.look(None) is None
        assert is_active(rig)
        clock.now += drift_module.FORGET


def test_a_stopped_matrix_is_not_taken_for_drift(rig: Rig) -> None:
    repairing(rig)
    rig.stop("vault")
    assert Drift(rig.standing).look(None) is None
    assert not is_active(rig)


def test_hardware_that_comes_late_is_taken_up_with_the_next_news(rig: Rig) -> None:
    """A matrix that could not be made at start is tried again, whether or not repair is wanted."""
    rig.restore()
    rig.define("vault", queues="00.000d")
    rig.reboot()
    rig.kernel.unload_module("vfio_ap")
    rig.restart()
    assert rig.service.show("vault").state == "failed"
    rig.kernel.load_module("vfio_ap")
    Drift(rig.standing).look(None)
    assert is_active(rig)
    assert rig.service.show("vault").problem is None
