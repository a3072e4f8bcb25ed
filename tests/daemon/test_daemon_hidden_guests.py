# SPDX-License-Identifier: Apache-2.0
"""A guest whose queues have all gone still holds its device, and the kernel shows nothing of it: removing
the device would block. What libvirt knows stands in the way."""

from __future__ import annotations

import pytest
from doubles import ADMIN, Rig, uuid_of

from vfioapd.domain.problems import Problem, VfioApError

VAULT = uuid_of("vault")
WITHOUT_VAULT = "version = 1\n"


@pytest.fixture
def hidden(any_rig: Rig) -> Rig:
    """Guest bastion runs with vault, and the LPAR has lost the only adapter of that."""
    any_rig.restore()
    any_rig.guests.add("bastion", running=True)
    any_rig.define("vault", queues="05.000d,05.0011", guest="bastion")
    any_rig.kernel.play({"action": "remove-adapter", "adapter": 5})
    (device,) = any_rig.host.bus().mdevs
    assert (device.guest_matrix, device.in_use) == (frozenset(), False)
    return any_rig


def refusal(rig: Rig, command: str) -> Problem:
    before = rig.state()
    with pytest.raises(VfioApError) as refused:
        rig.stop("vault") if command == "stop" else rig.undefine("vault")
    assert rig.state() == before
    return refused.value.problem


@pytest.mark.parametrize("command", ["stop", "undefine"])
def test_its_device_is_in_use_by_libvirts_word(hidden: Rig, command: str) -> None:
    assert refusal(hidden, command) is Problem.MATRIX_IN_USE


@pytest.mark.parametrize("command", ["stop", "undefine"])
def test_while_libvirt_cannot_be_asked_the_device_is_left(hidden: Rig, command: str) -> None:
    hidden.guests.is_up = False
    assert refusal(hidden, command) is Problem.LIBVIRT_UNAVAILABLE


def test_a_host_toml_without_it_makes_the_guest_let_go_first(hidden: Rig) -> None:
    steps = hidden.service.apply(WITHOUT_VAULT, ADMIN).steps
    verbs = [step.split()[0] for step in steps]
    assert verbs.index("detach") < verbs.index("remove")
    assert hidden.guests.rooms["bastion"].live == set()
    assert hidden.host.bus().mdevs == ()


def test_without_libvirt_no_host_toml_takes_it_away(hidden: Rig) -> None:
    hidden.guests.is_up = False
    with pytest.raises(VfioApError) as refused:
        hidden.service.apply(WITHOUT_VAULT, ADMIN)
    assert refused.value.problem is Problem.LIBVIRT_UNAVAILABLE


def test_a_device_that_has_queues_and_no_user_is_stopped_without_libvirt(any_rig: Rig) -> None:
    any_rig.restore()
    any_rig.guests.add("bastion")
    any_rig.define("vault", queues="05.000d,05.0011", guest="bastion")
    any_rig.guests.is_up = False
    assert any_rig.stop("vault").steps


def test_when_its_guest_has_ended_the_hook_stops_it_without_asking_libvirt(any_rig: Rig) -> None:
    any_rig.restore()
    any_rig.guests.add("bastion")
    any_rig.define("vault", queues="05.000d,05.0011", guest="bastion", start="manual")
    any_rig.service.hook_prepare("bastion", [str(VAULT)])
    any_rig.kernel.play({"action": "remove-adapter", "adapter": 5})
    assert any_rig.service.hook_release("bastion", [str(VAULT)]) == ["vault"]
    assert any_rig.host.bus().mdevs == ()


def test_the_refusal_names_the_daemon_that_this_host_is_set_up_with(hidden: Rig) -> None:
    """A start of libvirtd would end virtqemud: their units conflict."""
    link = hidden.root / "etc/systemd/system/sockets.target.wants/virtqemud.socket"
    link.parent.mkdir(parents=True)
    link.symlink_to("/usr/lib/systemd/system/virtqemud.socket")
    hidden.guests.is_up = False
    with pytest.raises(VfioApError) as refused:
        hidden.attach("vault", "bastion")
    assert refused.value.hint == "start it: systemctl start virtqemud"
