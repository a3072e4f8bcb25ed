# SPDX-License-Identifier: Apache-2.0
"""vfioapctl adopt over the real server: what its screen and its record say, and who may write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from doubles import ADMIN, RunningServer
from messy_hosts import HOSTS, KEYS, PARENT, TORN
from test_adopt import build, put

from vfioapd.cli import exits, main
from vfioapd.domain.problems import Problem
from vfioapd.rpc.client import CallError, call

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import Rig

A, B, C = KEYS["A"], KEYS["B"], KEYS["C"]

SCREEN = f"""\
MATRIX      QUEUES           START  GUEST  UUID
bastion     01.0011 03.0011  auto   -      {C}
ap-05.000d  05.000d 07.000d  auto   -      {A}

to know: mdev {A} is active and defined nowhere, so a reboot would forget it [no-definition]
(being adopted defines it)

left as it is: {{root}}/{PARENT}/{B} cannot be read as a definition: it is empty [torn-definition]
(repair it or move it away: mv {{root}}/{PARENT}/{B} /root/)

to know: running guest bastion has mdev {C}, and its definition does not name it [live-only]
(for good: vfioapctl attach bastion bastion)

adopt: 3 steps, none made yet
  write {{root}}/{PARENT}/{C}
  write {{root}}/{PARENT}/{A}
  write {{root}}/etc/vfioapd/host.toml
(vfioapctl adopt --write does it)
"""


@pytest.fixture
def book(new_rig: Callable[..., Rig]) -> Rig:
    """The Redbook's host after S3, and an empty file where a definition of B was to be."""
    (messy,) = (one for one in HOSTS if one.name.startswith("S3"))
    rig = build(messy, new_rig())
    put(rig.root / PARENT / B, "")
    return rig


@pytest.fixture
def server(book: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    with RunningServer(book) as running:
        monkeypatch.setenv("VFIOAPD_SOCKET", running.rw)
        yield running


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = exits.OK) -> str:
    capsys.readouterr()
    assert main.main(list(words)) == status
    return capsys.readouterr().out


@pytest.mark.usefixtures("server")
def test_the_screen_lists_what_becomes_ours_and_what_does_not_fit(
    book: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    before = book.state()
    assert said(capsys, "adopt") == SCREEN.format(root=book.root)
    assert said(capsys, "adopt", "--write", "--dry-run") == SCREEN.format(root=book.root)
    assert book.state() == before


@pytest.mark.usefixtures("server")
def test_written_once_there_is_nothing_left_to_adopt(book: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    done = said(capsys, "adopt", "--write", "--reason", "moved in")
    assert "adopt: done in 3 steps" in done
    assert "--write" not in done
    assert book.revisions() == ["adopt: moved in"]
    again = said(capsys, "adopt")
    assert again.startswith("2 matrices are vfioapd's already: bastion, ap-05.000d\n")
    assert again.endswith("adopt: nothing to adopt\n")
    assert said(capsys, "plan") == "plan: nothing to do\n"
    assert said(capsys, "status").count("(not ours)") == 1, "the device of the empty file"


@pytest.mark.usefixtures("server")
def test_the_record_has_the_matrices_the_findings_and_the_change(capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads(said(capsys, "adopt", "--json"))
    assert list(record) == ["ours", "matrices", "findings", "change"]
    assert record["matrices"][0] == {
        "name": "bastion",
        "uuid": C,
        "adapters": [1, 3],
        "domains": [17],
        "control_domains": [],
        "queues": ["01.0011", "03.0011"],
        "start": "auto",
        "guest": None,
    }
    assert [list(one) for one in record["findings"]] == [["code", "sentence", "hint", "uuid", "left"]] * 3
    assert record["change"]["made"] is False


def test_everybody_may_look_and_only_the_other_socket_writes(book: Rig, server: RunningServer) -> None:
    looked = call(server.ro, "Adopt")
    assert looked == call(server.rw, "Adopt", write=False)
    before = book.state()
    with pytest.raises(CallError) as error:
        call(server.ro, "Adopt", write=True)
    assert error.value.problem == Problem.READ_ONLY
    assert book.state() == before


@pytest.mark.usefixtures("server")
def test_an_edit_that_waits_is_not_taken_along(book: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    put(book.places.host_file, "version = 1\n# mine\n")
    before = book.state()
    said(capsys, "adopt", "--write", status=exits.REFUSED)
    assert book.state() == before
    (book.root / PARENT / B).unlink()  # apply would be refused for it
    said(capsys, "apply")
    said(capsys, "adopt", "--write")
    assert book.places.host_file.read_text().startswith("version = 1\n# mine\n")


def test_a_host_where_only_host_toml_is_missing_says_so(
    new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The definition is byte for byte as vfioapd itself writes it."""
    (messy,) = (one for one in HOSTS if one.name == "all in order, guest shut off")
    rig = build(messy, new_rig())
    rig.service.adopt(ADMIN, write=True)
    rig.places.host_file.unlink()
    for path in rig.places.revisions.iterdir():
        path.unlink()
    with RunningServer(rig) as running:
        monkeypatch.setenv("VFIOAPD_SOCKET", running.rw)
        only = f"adopt: 1 step, none made yet\n  write {rig.places.host_file}\n(vfioapctl adopt --write"
        assert only in said(capsys, "adopt")
        assert "adopt: done in 1 step" in said(capsys, "adopt", "--write")


def test_a_torn_file_stays_to_the_byte(book: Rig) -> None:
    put(book.root / PARENT / KEYS["E"], TORN)
    book.service.adopt(ADMIN, write=True)
    assert (book.root / PARENT / KEYS["E"]).read_text() == TORN
    assert (book.root / PARENT / B).read_text() == ""
