# SPDX-License-Identifier: Apache-2.0
"""Every committed host.toml can be found again, with who, when and why where that is known."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

from vfioapd.domain.problems import Problem, Refused
from vfioapd.store.history import Author, History, Revision

if TYPE_CHECKING:
    from pathlib import Path

UTE = Author(1000, 4711, "vfioapctl")
NOON = datetime(2026, 11, 23, 13, 0, 0, 250_000, timezone(timedelta(hours=1)))


def record(history: History, text: str) -> int:
    return history.record(text, UTE, NOON, reason="define new", summary="new: 05.0011")


def test_revisions_count_from_one_and_are_read_back(tmp_path: Path) -> None:
    history = History(tmp_path / "revisions")
    assert history.revisions() == ()

    numbers = [record(history, f"version = 1 # {n}\n") for n in range(3)]

    assert numbers == [1, 2, 3]
    assert [history.read(number) for number in numbers] == [f"version = 1 # {n}\n" for n in range(3)]
    noon = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
    assert history.revisions() == tuple(
        Revision(number, noon, UTE, "define new", "new: 05.0011") for number in numbers
    )


def test_the_files_can_be_read_by_an_admin(tmp_path: Path) -> None:
    record(History(tmp_path), "version = 1\n")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.json", "000001.toml"]
    assert json.loads((tmp_path / "000001.json").read_text()) == {
        "time": "2026-11-23T12:00:00Z",
        "uid": 1000,
        "pid": 4711,
        "name": "vfioapctl",
        "reason": "define new",
        "summary": "new: 05.0011",
    }


@pytest.mark.parametrize(
    "torn", [None, "", '{"time": "2026', "[]", "\x00", "[" * 5000, '{"time": 3, "uid": "x", "reason": []}']
)
def test_a_torn_or_missing_json_hides_no_revision(tmp_path: Path, torn: str | None) -> None:
    history = History(tmp_path)
    for _ in range(3):
        record(history, "version = 1\n")
    path = tmp_path / "000002.json"
    if torn is None:
        path.unlink()
    else:
        path.write_text(torn)

    first, second, third = history.revisions()

    assert second == Revision(2)
    assert first.author == third.author == UTE
    assert history.read(2) == "version = 1\n"


def test_a_record_cut_short_by_a_crash_is_no_revision(tmp_path: Path) -> None:
    history = History(tmp_path)
    record(history, "version = 1\n")
    (tmp_path / "000002.json").write_text("{}")  # the .toml did not come
    (tmp_path / "٠٠٠٠٠٩.toml").write_text("no number of ours")

    assert [one.number for one in history.revisions()] == [1]
    assert record(history, "version = 1\n") == 2
    assert history.revisions()[1].author == UTE


def test_an_unknown_revision_is_refused_with_those_there_are(tmp_path: Path) -> None:
    history = History(tmp_path)
    with pytest.raises(Refused, match="there is no revision 7") as none:
        history.read(7)
    record(history, "version = 1\n")
    record(history, "version = 1\n")
    with pytest.raises(Refused) as some:
        history.read(7)

    assert (none.value.hint, some.value.hint) == ("revisions kept: none", "revisions kept: 1 to 2")
    assert some.value.problem is Problem.BAD_REQUEST
