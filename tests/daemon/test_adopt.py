# SPDX-License-Identifier: Apache-2.0
"""Existing hosts are adopted as they are: what fits becomes ours, what does not is named and left alone."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from doubles import ADMIN
from messy_hosts import HOSTS, KEYS, PARENT, Messy, members

from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.plan.adopt_facts import Trouble
from vfioapd.plan.steps import Plug, Where

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from doubles import Rig

    from vfioapd.rpc.types import Adoption

MATRIX = "devices/vfio_ap/matrix"
NAMES = {uuid: key for key, uuid in KEYS.items()}


def build(messy: Messy, rig: Rig) -> Rig:
    """Make the host as it was left behind: first what vfioapd did, then all others."""
    rig.restore()
    if messy.host_toml:
        for name in messy.guests:
            rig.guests.add(name)
        rig.service.apply(messy.host_toml, replace(ADMIN, disrupt=True))
        rig.guests.rooms.clear()
    sysfs = rig.kernel.sysfs
    for axis, change in zip(("apmask", "aqmask"), messy.masks, strict=True):
        if change:
            sysfs.write(f"bus/ap/{axis}", change)
    for key, text in messy.active.items():
        sysfs.write(f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create", KEYS[key])
        for kind, number in members(text):
            sysfs.write(f"{MATRIX}/{KEYS[key]}/assign_{kind}", str(number))
    for path, text in messy.files.items():
        put(rig.root / (f"{PARENT}/{KEYS[path]}" if path in KEYS else path), text)
    add_guests(messy, rig)
    if messy.stranger:
        rig.kernel.guest_open(KEYS[messy.stranger], "stranger")
    rig.guests.is_up = messy.libvirt
    return rig


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(errors="surrogateescape"))


def add_guests(messy: Messy, rig: Rig) -> None:
    for name, guest in messy.guests.items():
        room = rig.guests.add(name, running=guest.running, persistent=guest.persistent)
        room.config |= {UUID(KEYS[key]) for key in guest.config}
        for key in guest.live:
            rig.guests.execute(Plug(name, UUID(KEYS[key]), Where.LIVE))


def lines(adoption: Adoption) -> Iterator[str]:
    """As the corpus writes it."""
    for one in adoption.matrices:
        yield f"{one.name} {NAMES[one.uuid]} {one.start} {one.guest or '-'}"
    for finding in adoption.findings:
        key = NAMES[finding.uuid] if finding.uuid else "-"
        yield f"{'left' if finding.left else 'know'} {finding.code} {key}"


def pending(rig: Rig) -> list[str]:
    """What apply would do now, or why it would refuse."""
    try:
        return rig.service.plan(None, ADMIN).steps
    except VfioApError as error:
        return [str(error)]


@pytest.fixture(params=HOSTS, ids=lambda messy: messy.name)
def messy(request: pytest.FixtureRequest) -> Messy:
    found: Messy = request.param
    return found


@pytest.fixture
def host(messy: Messy, new_rig: Callable[..., Rig]) -> Rig:
    return build(messy, new_rig(messy.kernel))


def test_the_corpus_has_every_finding_and_many_hosts() -> None:
    codes = {line.split()[1] for messy in HOSTS for line in messy.expect if line[:5] in ("left ", "know ")}
    assert codes == set(Trouble) - {Trouble.MATRIX_TOO_LARGE}
    assert len({messy.name for messy in HOSTS}) == len(HOSTS) >= 60


def test_what_is_proposed_and_found_is_exactly_this(messy: Messy, host: Rig) -> None:
    before = host.state()
    adoption = host.service.adopt(ADMIN, write=False)
    assert sorted(lines(adoption)) == sorted(messy.expect)
    assert host.state() == before, "asking changes nothing"
    for finding in adoption.findings:
        assert re.match(r"\S.*\S\Z", finding.sentence)
        assert finding.sentence[-1] != "."
        if finding.left:
            assert finding.uuid is not None
            assert finding.uuid.replace("-", "") in finding.sentence.lower().replace("-", "")


def test_adopting_writes_files_and_touches_nothing_else(messy: Messy, host: Rig) -> None:
    if not messy.libvirt:
        with pytest.raises(VfioApError) as error:
            host.service.adopt(ADMIN, write=True)
        assert error.value.problem is Problem.LIBVIRT_UNAVAILABLE
        return
    before, due = host.state(), pending(host)
    host.host.made.clear()
    adopted = {UUID(one.uuid) for one in host.service.adopt(ADMIN, write=True).matrices}
    after = host.state()
    assert (after["kernel"], after["guests"]) == (before["kernel"], before["guests"])
    assert all(step.startswith("write ") for step in host.host.made)
    for path, text in before["files"].items():  # type: ignore[attr-defined]
        taken_over = path == "etc/vfioapd/host.toml" or path in {f"{PARENT}/{uuid}" for uuid in adopted}
        assert taken_over or after["files"][path] == text, path  # type: ignore[index]
    assert set(pending(host)) <= set(due), "the new host.toml asks for nothing"


def test_once_adopted_only_what_does_not_fit_is_left(messy: Messy, host: Rig) -> None:
    if not messy.libvirt:
        return
    first = host.service.adopt(ADMIN, write=True)
    again = host.service.adopt(ADMIN, write=False)
    assert again.matrices == []
    left = [line for line in lines(first) if line.startswith("left ")]
    assert [line for line in lines(again) if line.startswith("left ")] == left
    assert set(again.ours) >= {one.name for one in first.matrices}
    text = host.places.host_file.read_text() if host.places.host_file.exists() else ""
    for line in messy.host_toml.splitlines():
        assert line in text, "what stood in host.toml stands there still"


def test_a_reboot_and_the_daemon_bring_back_every_device_that_was_adopted(messy: Messy, host: Rig) -> None:
    if not messy.libvirt or messy.stranger:
        return
    adopted = [one for one in host.service.adopt(ADMIN, write=True).matrices if one.start == "auto"]
    before = {one.uuid: queues(host, one.uuid) for one in adopted}
    host.reboot()
    host.restart()
    assert host.standing.failures == {}
    assert {one.uuid: queues(host, one.uuid) for one in adopted} == before


def test_a_guest_with_two_devices_of_others_stops_no_change_of_ours(new_rig: Callable[..., Rig]) -> None:
    """libvirt lets them be defined; that guest does not start, and all others have nothing to do with it."""
    (messy,) = (one for one in HOSTS if one.name == "a guest with two devices in its definition")
    rig = build(messy, new_rig())
    rig.define("vault", queues="00.000d")
    assert pending(rig) == []
    with pytest.raises(VfioApError) as error:
        rig.attach("vault", "bastion")
    assert error.value.problem is Problem.GUEST_HAS_MATRIX


def queues(rig: Rig, uuid: str) -> str:
    return rig.kernel.sysfs.read(f"{MATRIX}/{uuid}/guest_matrix")
