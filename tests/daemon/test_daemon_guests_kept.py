# SPDX-License-Identifier: Apache-2.0
"""``guest = `` in host.toml is kept true, whatever happens to the guest, and no admin is overruled."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from doubles import ADMIN, Rig, uuid_of

from vfioapd.daemon.drift import Drift, GuestNews
from vfioapd.daemon.news import News
from vfioapd.virt.connection import GuestEvent

if TYPE_CHECKING:
    from collections.abc import Callable

VAULT = uuid_of("vault")
OTHER = uuid_of("other")


@pytest.fixture
def given(rig: Rig) -> Rig:
    """Guest bastion runs and has matrix vault, live and in its definition."""
    rig.restore()
    rig.guests.add("bastion", running=True)
    rig.define("vault", queues="00.000d,02.000d", guest="bastion")
    return rig


def look(rig: Rig, *new: str, all_new: bool = False, renamed: tuple[str, str] | None = None) -> float | None:
    """One look after libvirt's news of these guests."""
    news = GuestNews(set(new), all_new=all_new, renamed=[renamed] if renamed else [])
    return Drift(rig.standing).look(None, news, rig.guests.read())


def problem(rig: Rig) -> str:
    return rig.service.show("vault").problem or ""


def has_it(rig: Rig, name: str = "bastion") -> bool:
    room = rig.guests.rooms[name]
    return room.config == {VAULT} and room.live == ({VAULT} if room.running else set())


def defined_anew(rig: Rig) -> None:
    """virsh undefine, and virsh define with a document from before."""
    rig.guests.destroy("bastion")
    del rig.guests.rooms["bastion"]
    look(rig)
    assert problem(rig) == "", "a guest that is not there may come yet"
    rig.guests.add("bastion")


def reverted(rig: Rig) -> None:
    """virsh snapshot-revert to a snapshot from before."""
    rig.guests.destroy("bastion")
    rig.guests.add("bastion", running=True)


def started_as_it_was_saved(rig: Rig) -> None:
    """virsh restore of a file from before the device was there."""
    rig.guests.destroy("bastion")
    rig.guests.rooms["bastion"].config.clear()
    rig.guests.start("bastion")


def crashed_and_started(rig: Rig) -> None:
    rig.guests.destroy("bastion")
    look(rig)
    rig.guests.start("bastion")


@pytest.mark.parametrize("what", [defined_anew, reverted, started_as_it_was_saved, crashed_and_started])
@pytest.mark.parametrize("heard", [True, False], ids=["heard", "libvirt was away"])
def test_a_guest_that_comes_anew_has_its_matrix_without_being_asked(
    given: Rig, what: Callable[[Rig], None], heard: bool
) -> None:
    what(given)
    look(given, *(["bastion"] if heard else []), all_new=not heard)
    assert has_it(given)
    assert problem(given) == ""


def test_a_transient_guest_gets_it_while_it_runs(rig: Rig) -> None:
    rig.restore()
    rig.guests.add("bastion")
    rig.define("vault", queues="00.000d", guest="bastion")
    del rig.guests.rooms["bastion"]
    rig.guests.add("bastion", running=True, persistent=False)
    look(rig, "bastion")
    assert rig.guests.rooms["bastion"].live == {VAULT}


def test_host_toml_follows_a_guest_that_is_renamed(given: Rig) -> None:
    given.guests.destroy("bastion")
    given.guests.rename("bastion", "fortress")
    look(given, renamed=("bastion", "fortress"))
    assert given.service.show("vault").guest == "fortress"
    assert given.revisions()[-1] == "rename guest bastion to fortress: libvirt says so"
    assert has_it(given, "fortress")


def test_a_rename_does_not_put_an_edit_in_force(given: Rig) -> None:
    given.places.host_file.write_text(given.places.host_file.read_text() + "# an edit\n[hos")
    given.guests.destroy("bastion")
    given.guests.rename("bastion", "fortress")
    look(given, renamed=("bastion", "fortress"))
    assert given.service.show("vault").guest == "bastion"
    assert "there is no guest bastion" in problem(given)
    assert "fortress" in problem(given)


def test_a_rename_that_nobody_heard_is_said(given: Rig) -> None:
    given.guests.destroy("bastion")
    given.guests.rename("bastion", "fortress")
    look(given, all_new=True)
    assert problem(given) == "there is no guest bastion, and the device is in the definition of fortress"


@pytest.mark.parametrize("repair", [False, True])
def test_what_somebody_took_from_a_guest_is_drift(rig: Rig, repair: bool) -> None:
    rig.restore()
    rig.guests.add("bastion", running=True)
    text = f"version = 1\n[host]\nrepair = {str(repair).lower()}\n"
    rig.service.apply(text, ADMIN)
    rig.define("vault", queues="00.000d", guest="bastion")
    rig.guests.rooms["bastion"].config.clear()
    look(rig)
    assert has_it(rig) is repair
    assert problem(rig) == ("" if repair else "guest bastion does not have it (config)")


def test_what_somebody_took_from_a_guest_that_has_just_come_is_drift_too(given: Rig) -> None:
    given.guests.rooms["bastion"].live.clear()
    Drift(given.standing).look(
        None, GuestNews({"bastion"}, all_new=True, robbed={"bastion"}), given.guests.read()
    )
    assert not given.guests.rooms["bastion"].live
    assert problem(given) == "guest bastion does not have it (live)"


@pytest.mark.parametrize(
    ("said", "robbed"),
    [
        (["started", "device-removed ua-vfioap"], {"bastion"}),
        (["libvirt is there", "device-removed hostdev0"], {"bastion"}),
        (["device-removed ua-vfioap", "started"], set()),
        (["device-removed ua-vfioap", "libvirt is there"], set()),
        (["started", "device-removed virtio-disk1"], set()),
    ],
    ids=lambda value: " then ".join(value) if isinstance(value, list) else "",
)
def test_a_guest_is_robbed_by_who_unplugs_a_device_after_it_has_come(
    given: Rig, said: list[str], robbed: set[str]
) -> None:
    async def hear() -> set[str]:
        with ThreadPoolExecutor(1) as worker:
            news = News(asyncio.get_running_loop(), worker, worker, given.standing)
            for words in said:
                what, _, device = words.partition(" ")
                if what == "libvirt":
                    news.hear(words, all_new=True)
                else:
                    news.hear(words, GuestEvent("bastion", what, device))
            return news._of_guests.robbed

    assert asyncio.run(hear()) == robbed


def test_what_an_admin_detached_from_a_running_guest_stays_out_until_it_starts_anew(given: Rig) -> None:
    given.detach("vault", "bastion", "live")
    for _ in range(2):
        look(given, all_new=True)
        assert not given.guests.rooms["bastion"].live
        assert problem(given) == ""
        given.restart()
    given.guests.destroy("bastion")
    given.guests.start("bastion")
    look(given, "bastion")
    assert has_it(given)
    given.guests.rooms["bastion"].config.clear()
    look(given)
    assert "(config)" in problem(given), "the note has ended with that run"


@pytest.mark.parametrize("again", ["attach", "start", "apply"])
def test_an_admin_who_gives_it_back_is_obeyed(given: Rig, again: str) -> None:
    given.detach("vault", "bastion", "live")
    if again == "attach":
        given.attach("vault", "bastion", "live")
    elif again == "start":
        given.start("vault")
    else:
        given.service.apply(given.places.host_file.read_text(), ADMIN)
    assert has_it(given)
    assert not given.places.unplugged.exists()


def test_giving_it_for_the_next_start_does_not_plug_it_in_now(given: Rig) -> None:
    given.detach("vault", "bastion", "live")
    given.guests.rooms["bastion"].config.clear()
    given.attach("vault", "bastion", "config")
    look(given, all_new=True)
    assert not given.guests.rooms["bastion"].live


def test_a_foreign_device_in_the_guest_is_respected_and_named(given: Rig) -> None:
    given.guests.destroy("bastion")
    given.guests.rooms["bastion"].config = {OTHER}
    before = given.state()
    look(given, "bastion")
    look(given, all_new=True)
    assert given.state() == before
    assert f"it has mdev {OTHER}" in problem(given)


def test_a_copy_of_the_guest_is_left_alone_and_the_guest_gets_no_second_user(given: Rig) -> None:
    """virt-clone copies the hostdev with its UUID."""
    given.guests.destroy("bastion")
    given.guests.add("copy").config = {VAULT}
    given.guests.rooms["bastion"].config.clear()
    before = given.state()
    look(given, "copy", "bastion")
    assert given.state() == before
    assert "guest copy" in problem(given)


def test_a_stopped_matrix_is_plugged_into_nobody(given: Rig) -> None:
    given.guests.destroy("bastion")
    given.stop("vault")
    given.guests.rooms["bastion"].config.clear()
    look(given, "bastion")
    assert not given.guests.rooms["bastion"].config


def test_without_libvirt_nothing_that_was_found_before_is_called_mended(given: Rig) -> None:
    given.guests.rooms["bastion"].config.clear()
    drift = Drift(given.standing)
    drift.look(None, GuestNews(), given.guests.read())
    drift.look(None, GuestNews(), None)
    assert "(config)" in problem(given)
    given.guests.rooms["bastion"].config.add(VAULT)
    drift.look(None, GuestNews(), given.guests.read())
    assert problem(given) == ""


def test_guests_read_before_another_change_are_not_plugged_twice(given: Rig) -> None:
    given.detach("vault", "bastion", "live")
    before = given.guests.read()
    given.attach("vault", "bastion", "live")
    assert Drift(given.standing).look(None, GuestNews({"bastion"}), before) is None
    assert given.standing.failures == {}
    assert has_it(given)


def test_a_guest_that_somebody_empties_again_and_again_is_given_up_but_not_when_it_starts(rig: Rig) -> None:
    rig.restore()
    rig.guests.add("bastion")
    rig.service.apply("version = 1\n[host]\nrepair = true\n", ADMIN)
    rig.define("vault", queues="00.000d", guest="bastion")
    drift = Drift(rig.standing)
    for _ in range(3):
        rig.guests.rooms["bastion"].config.clear()
        wait = drift.look(None, GuestNews(), rig.guests.read())
    assert wait is not None, "it is tried again after a pause"
    assert not rig.guests.rooms["bastion"].config
    drift.look(None, GuestNews({"bastion"}), rig.guests.read())
    assert rig.guests.rooms["bastion"].config == {VAULT}


@pytest.mark.parametrize(
    ("what", "is_new"),
    [("defined", True), ("started", True), ("reverted", True), ("changed", False), ("stopped", False)],
)
def test_only_what_brings_a_guest_anew_is_mended_unasked(what: str, is_new: bool) -> None:
    assert GuestEvent("bastion", what).is_new is is_new
