# SPDX-License-Identifier: Apache-2.0
"""Every command of the service: what it leaves in the kernel, in the files and in the guests."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from doubles import ADMIN, uuid_of

from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.rpc.interface import Asked, DefineRequest, Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import Rig

    from vfioapd.rpc.types import Change

VAULT, SPARE = "00.000d,02.000d", "04.000d"
MATRIX = "devices/vfio_ap/matrix"
CREATE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create"

COMMENTED = """\
# LPAR 7: ask Ute.
version = 1

[host]
keep = ["01.0011"] # terminal

[[matrix]]
name = "old"      # aligned
uuid = "00000000-0000-0000-0000-00000000001d"
adapters = [0x06] # the spare
domains = [13]
"""


def with_guests(rig: Rig) -> Rig:
    """A running, an idle and a transient guest."""
    rig.restore()
    rig.guests.add("bastion", running=True)
    rig.guests.add("idle")
    rig.guests.add("fleeting", running=True, persistent=False)
    return rig


@pytest.fixture
def host(rig: Rig) -> Rig:
    return with_guests(rig)


@pytest.fixture
def each_host(any_rig: Rig) -> Rig:
    """On each kernel; for what the kernels do differently."""
    return with_guests(any_rig)


def matrix_of(rig: Rig, name: str) -> str:
    text = rig.kernel.sysfs.read(f"{MATRIX}/{uuid_of(name)}/matrix")
    return " ".join(text.split())


def devices(rig: Rig) -> list[str]:
    return sorted(rig.kernel_state()["mdevs"])  # type: ignore[call-overload, no-any-return]


def status_of(rig: Rig, queue: str) -> str:
    return rig.kernel.sysfs.read(f"devices/ap/card{queue[:2]}/{queue}/status").strip()


def mirror(rig: Rig, name: str) -> dict[str, object] | None:
    path = rig.places.definitions / str(uuid_of(name))
    return json.loads(path.read_text()) if path.exists() else None


def by_hand(rig: Rig, name: str, adapter: int, domain: int) -> None:
    """A device that somebody makes with echo."""
    rig.kernel.sysfs.write("bus/ap/apmask", f"-{adapter}")
    rig.kernel.sysfs.write(CREATE, str(uuid_of(name)))
    rig.kernel.sysfs.write(f"{MATRIX}/{uuid_of(name)}/assign_adapter", str(adapter))
    rig.kernel.sysfs.write(f"{MATRIX}/{uuid_of(name)}/assign_domain", str(domain))


# --- what each command does


def test_define_makes_the_device_the_definition_and_the_file(each_host: Rig) -> None:
    change = each_host.define("vault", queues=VAULT)
    assert matrix_of(each_host, "vault") == "00.000d 02.000d"
    assert change.handed_over == ["00.000d", "02.000d"]
    assert status_of(each_host, "00.000d") == "assigned"
    assert 'name = "vault"' in each_host.places.host_file.read_text()
    definition = mirror(each_host, "vault")
    assert definition is not None
    assert definition["start"] == "manual", "the daemon starts it, after the masks"
    assert each_host.service.show("vault").state == "started"
    assert each_host.revisions()[-1].startswith("define vault")


def test_collateral_is_listed_and_shown_as_free(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig("6.12")
    rig.restore()
    assert rig.define("vault", queues=VAULT).collateral == ["00.0011", "02.0011"]
    owners = {row.queue: row.owner for row in rig.service.queues()}
    assert owners["00.0011"] == owners["02.0011"] == "free"
    assert owners["00.000d"] == "vault"
    assert owners["04.000d"] == "host"


def test_a_manual_matrix_leaves_the_kernel_alone_until_it_is_started(each_host: Rig) -> None:
    before = each_host.kernel_state()
    each_host.define("vault", queues=VAULT, start="manual")
    assert each_host.kernel_state() == before
    assert mirror(each_host, "vault") is not None
    each_host.start("vault")
    assert matrix_of(each_host, "vault") == "00.000d 02.000d"
    each_host.stop("vault")
    assert each_host.kernel_state() == before, "its queues are the host's again"


def test_stop_of_an_automatic_matrix_keeps_its_queues_from_the_host(host: Rig) -> None:
    """Keys of a guest may be in them."""
    host.define("vault", queues=VAULT)
    host.stop("vault")
    assert devices(host) == []
    assert status_of(host, "00.000d") == "unassigned"
    assert host.service.show("vault").state == "stopped"


def test_undefine_leaves_the_host_as_it_was_before_define(each_host: Rig) -> None:
    each_host.define("other", queues="06.0011")
    before = each_host.kernel_state()
    each_host.define("vault", queues=VAULT)
    each_host.undefine("vault")
    assert each_host.kernel_state() == before
    assert mirror(each_host, "vault") is None
    assert "vault" not in each_host.places.host_file.read_text()


def test_attach_and_detach_reach_both_documents_and_host_toml(each_host: Rig) -> None:
    each_host.define("vault", queues=VAULT)
    each_host.attach("vault", "bastion")
    bastion = each_host.guests.rooms["bastion"]
    assert bastion.live == bastion.config == {uuid_of("vault")}
    assert status_of(each_host, "00.000d") == "in use"
    assert 'guest = "bastion"' in each_host.places.host_file.read_text()
    assert [row.guest for row in each_host.service.queues() if row.queue == "00.000d"] == ["bastion"]
    each_host.detach("vault", "bastion")
    assert bastion.live == bastion.config == set()
    assert "bastion" not in each_host.places.host_file.read_text()
    assert matrix_of(each_host, "vault") == "00.000d 02.000d", "the device stays for the next guest"


@pytest.mark.parametrize(("where", "live", "config"), [("live", 1, 0), ("config", 0, 1), ("both", 1, 1)])
def test_attach_goes_where_it_is_told_to_go(host: Rig, where: str, live: int, config: int) -> None:
    host.define("vault", queues=VAULT)
    host.attach("vault", "bastion", where)
    bastion = host.guests.rooms["bastion"]
    assert (len(bastion.live), len(bastion.config)) == (live, config)
    assert (host.service.show("vault").guest == "bastion") is bool(config)


def test_a_guest_that_does_not_run_is_attached_for_its_next_start_and_starts_then(host: Rig) -> None:
    host.define("vault", queues=VAULT, guest="idle")
    idle = host.guests.rooms["idle"]
    assert (idle.live, idle.config) == (set(), {uuid_of("vault")})
    host.guests.start("idle")
    assert host.service.show("vault").live == "idle"


def test_a_transient_guest_is_attached_live_and_leaves_no_trace_in_host_toml(host: Rig) -> None:
    host.define("vault", queues=VAULT)
    host.attach("vault", "fleeting")
    assert host.guests.rooms["fleeting"].live == {uuid_of("vault")}
    assert "fleeting" not in host.places.host_file.read_text()


def test_start_plugs_the_matrix_back_into_the_guest_that_it_is_for(host: Rig) -> None:
    host.define("vault", queues=VAULT, guest="bastion")
    host.detach("vault", "bastion", "live")
    host.stop("vault")
    host.start("vault")
    assert host.guests.rooms["bastion"].live == {uuid_of("vault")}


def test_several_matrices_are_started_and_stopped_together_or_not_at_all(host: Rig) -> None:
    host.define("a", queues="00.000d", start="manual")
    host.define("b", queues="02.000d", start="manual")
    before = host.state()
    with pytest.raises(VfioApError):
        host.start("a", "b", "ghost")
    assert host.state() == before
    host.start("a", "b")
    assert devices(host) == sorted([str(uuid_of("a")), str(uuid_of("b"))])
    host.stop("a", "b")
    assert host.kernel_state() == before["kernel"]


def test_the_admins_comments_and_spelling_outlive_every_command(host: Rig) -> None:
    host.places.host_file.parent.mkdir(parents=True, exist_ok=True)
    host.places.host_file.write_text(COMMENTED)
    host.service.apply(None, ADMIN)
    host.define("vault", queues=VAULT)
    host.attach("old", "bastion")
    host.detach("old", "bastion")
    host.undefine("vault")
    assert host.places.host_file.read_text() == COMMENTED


# --- again, and again


AGAIN: list[tuple[str, Callable[[Rig], object]]] = [
    ("start", lambda rig: rig.start("vault")),
    ("stop", lambda rig: rig.stop("vault")),
    ("attach", lambda rig: rig.attach("vault", "bastion")),
    ("attach live", lambda rig: rig.attach("vault", "bastion", "live")),
    ("attach config", lambda rig: rig.attach("vault", "idle", "config")),
    ("detach", lambda rig: rig.detach("vault", "bastion")),
    ("apply", lambda rig: rig.service.apply(None, ADMIN)),
]


@pytest.mark.parametrize("act", [act for _, act in AGAIN], ids=[name for name, _ in AGAIN])
def test_the_same_command_twice_does_once_and_records_once(host: Rig, act: Callable[[Rig], object]) -> None:
    host.define("vault", queues=VAULT)
    act(host)
    before, revisions, writes = host.state(), host.revisions(), host.kernel.write_count
    assert act(host).steps == []  # type: ignore[attr-defined]
    assert host.state() == before
    assert host.revisions() == revisions
    assert host.kernel.write_count == writes


# --- bad input changes nothing


BAD: list[tuple[str, Problem, Callable[[Rig], object]]] = [
    ("queue not on host", Problem.QUEUE_NOT_ON_HOST, lambda r: r.define("x", queues="09.000d")),
    ("decimal domain", Problem.QUEUE_NOT_ON_HOST, lambda r: r.define("x", adapters="0", domains="11")),
    ("kept queue", Problem.QUEUE_KEPT_BY_HOST, lambda r: r.define("x", queues="03.000d")),
    ("queue of ours", Problem.QUEUE_TAKEN, lambda r: r.define("x", queues="00.000d")),
    ("queue of a stranger", Problem.QUEUE_TAKEN, lambda r: r.define("x", queues="06.0011")),
    ("queue of a strange file", Problem.QUEUE_TAKEN, lambda r: r.define("x", queues="04.0011")),
    ("no domain", Problem.INCOMPLETE_MATRIX, lambda r: r.define("x", adapters="4")),
    ("no adapter", Problem.INCOMPLETE_MATRIX, lambda r: r.define("x", domains="13")),
    ("nothing", Problem.INCOMPLETE_MATRIX, lambda r: r.define("x")),
    ("no cross", Problem.NOT_A_MATRIX, lambda r: r.define("x", queues="04.000d,05.0011")),
    ("name taken", Problem.NAME_TAKEN, lambda r: r.define("vault", queues="04.000d", uuid=str(uuid_of("x")))),
    ("uuid taken", Problem.UUID_TAKEN, lambda r: r.define("x", queues="04.000d", uuid=str(uuid_of("vault")))),
    ("strange uuid", Problem.UUID_TAKEN, lambda r: r.define("stranger", queues="04.000d")),
    ("bad name", Problem.BAD_NAME, lambda r: r.define("a b", queues="04.000d")),
    ("bad uuid", Problem.BAD_UUID, lambda r: r.define("x", queues="04.000d", uuid="{5}")),
    ("bad word", Problem.BAD_REQUEST, lambda r: r.define("x", queues="04.000d", start="now")),
    ("both ways", Problem.BAD_REQUEST, lambda r: r.define("x", queues="04.000d", adapters="4")),
    ("bare hex", Problem.BAD_NUMBER, lambda r: r.define("x", adapters="4", domains="000d")),
    ("bad queue", Problem.BAD_QUEUE, lambda r: r.define("x", queues="5.17")),
    ("unknown guest", Problem.UNKNOWN_GUEST, lambda r: r.define("x", queues="04.000d", guest="ghost")),
    ("second device", Problem.GUEST_HAS_MATRIX, lambda r: r.define("x", queues="04.000d", guest="bastion")),
    ("second attach", Problem.GUEST_HAS_MATRIX, lambda r: r.attach("spare", "bastion")),
    ("other's matrix", Problem.MATRIX_IN_USE, lambda r: r.attach("vault", "idle")),
    ("stop in use", Problem.MATRIX_IN_USE, lambda r: r.stop("vault")),
    ("undefine in use", Problem.MATRIX_IN_USE, lambda r: r.undefine("vault")),
    ("unknown matrix", Problem.UNKNOWN_MATRIX, lambda r: r.start("ghost")),
    ("live while off", Problem.GUEST_NOT_RUNNING, lambda r: r.attach("spare", "idle", "live")),
    ("config of transient", Problem.GUEST_NOT_DEFINED, lambda r: r.attach("spare", "fleeting", "config")),
    ("bad place", Problem.BAD_REQUEST, lambda r: r.attach("spare", "idle", "somewhere")),
    ("bad xml", Problem.BAD_REQUEST, lambda r: r.service.xml("vault", "picture")),
    ("no revision", Problem.BAD_REQUEST, lambda r: r.service.restore_revision(99, ADMIN)),
    ("file syntax", Problem.BAD_HOST_FILE, lambda r: r.service.apply("version = ", ADMIN)),
    ("file key", Problem.BAD_HOST_FILE, lambda r: r.service.apply("version = 1\nkey = 1\n", ADMIN)),
    ("file version", Problem.BAD_HOST_FILE, lambda r: r.service.apply("version = 2\n", ADMIN)),
    ("no wait", Problem.BAD_REQUEST, lambda r: r.service.apply(None, replace(ADMIN, confirm_within=0))),
]


def inhabited(rig: Rig) -> Rig:
    """A host with everything on it that a command can run into."""
    rig.restore()
    rig.service.apply('version = 1\n[host]\nkeep = ["03.0011", "01.000d"]\n', ADMIN)
    rig.guests.add("bastion", running=True)
    rig.guests.add("idle")
    rig.guests.add("fleeting", running=True, persistent=False)
    rig.define("vault", adapters="0,2", domains="13", guest="bastion")
    rig.define("spare", queues="00.0011")
    by_hand(rig, "stranger", 6, 17)
    foreign = {"mdev_type": "vfio_ap-passthrough", "start": "auto"}
    foreign["attrs"] = [{"assign_adapter": "4"}, {"assign_domain": "0x11"}]  # type: ignore[assignment]
    (rig.places.definitions / str(uuid_of("strange file"))).write_text(json.dumps(foreign))
    return rig


@pytest.mark.parametrize(("problem", "act"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused_with_its_code_and_changes_nothing_at_all(
    rig: Rig, problem: Problem, act: Callable[[Rig], object]
) -> None:
    before, revisions = inhabited(rig).state(), rig.revisions()
    journal, writes = rig.places.journal.read_bytes(), rig.kernel.write_count
    with pytest.raises(VfioApError) as error:
        act(rig)
    assert error.value.problem is problem, str(error.value)
    assert error.value.hint, str(error.value)
    assert "\n" not in str(error.value)
    assert rig.state() == before
    assert rig.revisions() == revisions
    assert rig.kernel.write_count == writes
    assert rig.places.journal.read_bytes() == journal
    assert not rig.places.lock.exists()


def test_a_torn_file_of_somebody_else_stops_definitions_and_is_named(rig: Rig) -> None:
    inhabited(rig)
    torn = rig.places.definitions / str(uuid_of("torn"))
    torn.write_text('{"mdev_type": "vfio_ap-pass')
    before = rig.state()
    with pytest.raises(VfioApError) as error:
        rig.define("x", queues="04.000d")
    assert error.value.problem is Problem.TORN_DEFINITION
    assert str(torn) in str(error.value)
    assert rig.state() == before
    assert any(str(torn) in one for one in rig.service.status().problems)
    rig.start("spare")
    rig.stop("spare")


@pytest.mark.parametrize("content", [b"", b'{"mdev_ty', b"\xff\xfe"])
def test_our_own_definition_torn_by_somebody_is_written_anew_with_the_next_change(
    rig: Rig, content: bytes
) -> None:
    inhabited(rig)
    ours = rig.places.definitions / str(uuid_of("spare"))
    whole = ours.read_text()
    ours.write_bytes(content)
    rig.define("x", queues="05.000d")
    assert ours.read_text() == whole


# --- people, time, libvirt


def test_the_history_says_who_did_what_and_why(rig: Rig) -> None:
    rig.restore()
    me = Asked(Peer(os.getpid(), os.getuid(), os.getgid()), reason="night shift")
    rig.define("vault", asked=me, queues=VAULT)
    rig.stop("vault")
    rig.undefine("vault")
    rows = rig.service.revisions()
    assert [row.reason.partition(" ")[0].rstrip(":") for row in rows] == ["define", "stop", "undefine"]
    assert "night shift" in rows[0].reason
    assert rows[0].user == "root" or os.getuid()
    assert f"PID {os.getpid()}" in str(rows[0].program)
    assert any("create mdev" in step for step in rows[0].steps)
    assert rows[0].time is not None
    assert rows[0].time.endswith("Z")


def test_an_earlier_revision_is_made_true_again_to_the_letter(each_host: Rig) -> None:
    each_host.define("vault", queues=VAULT)
    then, kernel = each_host.places.host_file.read_text(), each_host.kernel_state()
    number = each_host.service.revisions()[-1].number
    each_host.define("more", queues="06.0011")
    each_host.undefine("vault")
    assert '-name = "vault"' in each_host.service.diff(number)
    each_host.service.restore_revision(number, ADMIN)
    assert each_host.places.host_file.read_text() == then
    assert each_host.kernel_state() == kernel
    assert each_host.service.diff(number) == ""


def test_without_libvirt_matrices_live_but_guests_cannot_be_changed(host: Rig) -> None:
    host.define("vault", queues=VAULT, guest="bastion")
    host.guests.is_up = False
    assert not host.service.status().libvirt
    before = host.state()
    for act in (
        lambda: host.attach("vault", "idle"),
        lambda: host.detach("vault", "bastion"),
        lambda: host.define("x", queues="06.000d", guest="idle"),
        lambda: host.undefine("vault"),
        lambda: host.service.apply("version = 1\n", ADMIN),
    ):
        with pytest.raises(VfioApError) as error:
            act()
        assert error.value.problem in (Problem.LIBVIRT_UNAVAILABLE, Problem.MATRIX_IN_USE)
    assert host.state() == before
    host.define("free", queues="06.0011")
    host.undefine("free")


def test_without_libvirt_no_matrix_is_taken_from_a_guest_that_would_not_hear_of_it(host: Rig) -> None:
    host.define("vault", queues=VAULT, guest="idle")
    text = host.places.host_file.read_text()
    host.guests.is_up = False
    before = host.state()
    for new in ("version = 1\n", text.replace('guest = "idle"\n', ""), text.replace('"idle"', '"bastion"')):
        with pytest.raises(VfioApError) as error:
            host.service.apply(new, ADMIN)
        assert error.value.problem is Problem.LIBVIRT_UNAVAILABLE
    assert host.state() == before


def test_a_guest_that_does_not_let_go_keeps_everything_as_it_was(host: Rig) -> None:
    host.define("vault", queues=VAULT, guest="bastion")
    host.guests.rooms["bastion"].holds_on = True
    before = host.state()
    with pytest.raises(VfioApError, match="has not let go"):
        host.detach("vault", "bastion")
    assert host.state() == before


def in_force(host: Rig) -> str:
    return host.standing.places.host_file.read_text()


CHANGES: dict[str, Callable[[Rig, Asked], Change]] = {
    "define": lambda host, asked: host.define(
        "new", asked=asked, queues="00.0011", guest="bastion", uuid=str(uuid_of("new"))
    ),
    "undefine": lambda host, asked: host.service.undefine(["vault"], asked),
    "stop": lambda host, asked: host.service.stop(["vault"], asked),
    "attach": lambda host, asked: host.service.attach("vault", "bastion", "both", asked),
    "edit of a word": lambda host, asked: host.service.edit(DefineRequest("vault", require="any"), asked),
    "apply of a text": lambda host, asked: host.service.apply("version = 1\n", asked),
    "apply of a comment": lambda host, asked: host.service.apply(in_force(host) + "# mine\n", asked),
    "restore": lambda host, asked: host.service.restore_revision(1, asked),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_dry_run_of_any_change_tells_the_very_steps_and_makes_none(host: Rig, name: str) -> None:
    host.define("vault", queues=VAULT)
    host.define("spare", queues=SPARE)
    before, revisions = host.state(), host.revisions()
    shown = CHANGES[name](host, replace(ADMIN, dry_run=True))
    assert shown.steps
    assert shown.made is False
    assert host.state() == before
    assert host.revisions() == revisions
    assert CHANGES[name](host, ADMIN).steps == shown.steps
    assert host.revisions() != revisions


def test_a_matrix_without_a_device_is_stopped_by_a_note_alone(host: Rig) -> None:
    """And stays so: with nothing to be done it would be made again by whoever mends it."""
    host.define("vault", queues=VAULT)
    host.kernel.sysfs.write(f"{MATRIX}/{uuid_of('vault')}/remove", "1")
    note = [f"write {host.places.stopped}"]
    assert host.service.stop(["vault"], replace(ADMIN, dry_run=True)).steps == note
    assert host.stop("vault").steps == note
    assert host.service.show("vault").state == "stopped"
    assert host.stop("vault").steps == []


def test_an_edit_of_words_alone_is_planned_and_put_in_force(host: Rig) -> None:
    """A plan that said nothing was to be done would be taken for an edit that is in force."""
    host.define("vault", queues=VAULT)
    assert host.service.plan(None, ADMIN).steps == []
    path = host.standing.places.host_file
    path.write_text(in_force(host) + "# mine\n")
    put = [f"put {path} in force as it stands"]
    assert host.service.plan(None, ADMIN).steps == put
    assert host.service.apply(None, ADMIN).steps == put
    assert host.service.plan(None, ADMIN).steps == []
    assert host.service.apply(None, ADMIN).steps == []


@pytest.mark.parametrize("text", [None, "", "# which guest gets which", "\n"])
def test_a_host_toml_that_says_nothing_takes_no_queue_from_anybody(host: Rig, text: str | None) -> None:
    """It was moved away, or an editor ended too early: nobody who wants that writes nothing."""
    host.define("vault", queues=VAULT)
    path, before, kernel = host.standing.places.host_file, in_force(host), host.kernel_state()
    path.unlink()
    if text is not None:
        path.write_text(text)
    for act in (
        lambda: host.service.plan(None, ADMIN),
        lambda: host.service.apply(None, ADMIN),
        lambda: host.service.apply(text or "", ADMIN),
        lambda: host.define("new", queues="00.0011"),
    ):
        with pytest.raises(VfioApError, match="says nothing, as a file that was cut off") as refused:
            act()
        assert refused.value.problem is Problem.BAD_HOST_FILE
        assert "vfioapctl restore 1 brings it back" in str(refused.value.hint)
    assert "says nothing" in " ".join(host.service.status().problems)
    assert host.kernel_state() == kernel
    host.service.restore_revision(1, ADMIN)
    assert in_force(host) == before


def test_a_host_toml_with_its_version_alone_forgets_all_matrices(host: Rig) -> None:
    host.define("vault", queues=VAULT)
    host.standing.places.host_file.write_text("version = 1\n")
    host.service.apply(None, ADMIN)
    assert host.service.status().matrices == []
    host.standing.places.host_file.write_text("")
    host.service.apply(None, ADMIN)


def test_queues_that_leave_the_host_without_need_are_told_before_the_last_of_a_mode_goes(rig: Rig) -> None:
    """Scenario S1: adapters 5 and 7 are all that the host has of EP11."""
    rig.restore()
    before = rig.state()
    with pytest.raises(VfioApError) as error:
        rig.define("s1a", queues="05.000d,07.000d")
    assert error.value.problem is Problem.NEEDS_DISRUPT
    assert "EP11" in str(error.value)
    assert rig.state() == before
    rig.define("s1a", asked=replace(ADMIN, disrupt=True), queues="05.000d,07.000d")
    assert rig.service.show("s1a").state == "started"


def test_a_host_without_vfio_ap_takes_manual_definitions_and_says_what_is_missing(
    new_rig: Callable[..., Rig],
) -> None:
    rig = new_rig("6.12", modules=("zcrypt_cex4",))
    rig.restore()
    with pytest.raises(VfioApError) as error:
        rig.define("vault", queues=VAULT)
    assert error.value.problem is Problem.VFIO_AP_MISSING
    rig.define("vault", queues=VAULT, start="manual")
    assert not rig.service.status().vfio_ap
    rig.kernel.load_module("vfio_ap")
    rig.start("vault")


def test_status_counts_every_queue_once(each_host: Rig) -> None:
    each_host.define("vault", queues=VAULT)
    by_hand_needs_masks = each_host.kernel.host.kernel.name != "7.3"
    if by_hand_needs_masks:
        by_hand(each_host, "stranger", 6, 17)
    status = each_host.service.status()
    assert status.queues_total == 16 == status.queues_host + status.queues_free + status.queues_guests
    assert [row.uuid for row in status.foreign] == ([str(uuid_of("stranger"))] if by_hand_needs_masks else [])
    assert {row.owner for row in each_host.service.queues()} >= {"vault", "host"}
