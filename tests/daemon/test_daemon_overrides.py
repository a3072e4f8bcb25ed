# SPDX-License-Identifier: Apache-2.0
"""Linux 7.3 forgets a queue's driver_override with the queue, but goes on counting it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from doubles import ADMIN, Rig, host_of, uuid_of

from vfioapd.daemon.drift import Drift
from vfioapd.engine.run import ApplyError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def newer(tmp_path: Path) -> Rig:
    """A matrix for a running guest, its queues taken by driver_override."""
    rig = Rig(host_of("7.3"), tmp_path)
    rig.restore()
    rig.guests.add("bastion", running=True)
    rig.define("vault", queues="00.0011,02.0011", guest="bastion")
    return rig


def lose_and_return(rig: Rig) -> None:
    """Adapter 0 goes, and comes back with queues that know of no override."""
    rig.kernel.play({"action": "remove-adapter", "adapter": 0})
    Drift(rig.standing).look(None)
    assert rig.service.show("vault").problem
    rig.kernel.play({"action": "add-adapter", "adapter": 0, "type": "CEX8C"})


def test_queues_that_come_back_are_taken_again_and_the_guest_has_them(newer: Rig) -> None:
    lose_and_return(newer)
    Drift(newer.standing).look(None)
    shown = newer.service.show("vault")
    assert shown.problem is None
    assert shown.guest_matrix == ["00.0011", "02.0011"]


def test_masks_that_the_kernel_then_refuses_are_explained_and_nothing_is_changed(newer: Rig) -> None:
    lose_and_return(newer)
    Drift(newer.standing).look(None)
    newer.detach("vault", "bastion")
    before = newer.state()
    text = newer.places.host_file.read_text().replace(
        "version = 1\n", 'version = 1\n[host]\nbinding = "masks"\n'
    )
    with pytest.raises(ApplyError) as failed:
        newer.service.apply(text, ADMIN)
    assert "until the next boot after one that had has left the host" in str(failed.value)
    assert failed.value.stuck == ()
    assert newer.state() == before
    assert str(uuid_of("vault")) in newer.kernel.sysfs.names("bus/mdev/devices")
