# SPDX-License-Identifier: Apache-2.0
"""Every file of mdevctl's that bears a UUID is found, in whichever folder and spelling."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from messy_hosts import defined

from vfioapd.store.definition_files import read_definition_files

if TYPE_CHECKING:
    from pathlib import Path

U = "dddddddd-0000-4000-8000-0000000000dd"
AP = defined("5,7 x 13")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("name", "in_place"),
    [
        (f"matrix/{U}", True),
        (f"matrix/{U.upper()}", False),
        (f"matrix/{U.replace('-', '')}", False),
        (f"ap_matrix/{U}", False),
        (f"0000:3b:00.0/{U}", False),
    ],
)
def test_a_file_is_found_wherever_mdevctl_would_see_it(tmp_path: Path, name: str, in_place: bool) -> None:
    put(tmp_path / name, AP)
    (found,) = read_definition_files(tmp_path / "matrix")
    assert (found.uuid, found.path, found.in_place) == (UUID(U), str(tmp_path / name), in_place)
    assert found.definition is not None
    assert sorted(found.definition.matrix.adapters) == [5, 7]


@pytest.mark.parametrize(
    "name", ["matrix/README", f"matrix/.{U}.new", f"matrix/{U}~", f"{U}", f"matrix/{U}/x"]
)
def test_other_names_and_places_are_passed_over(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, AP)
    assert read_definition_files(tmp_path / "matrix") == ()


def test_a_torn_file_is_told_from_one_of_another_type(tmp_path: Path) -> None:
    put(tmp_path / "a" / U, AP[:-10])
    put(tmp_path / "b" / U, defined("", mdev_type="nvidia-468"))
    torn, other = read_definition_files(tmp_path / "matrix")
    assert torn.torn is not None
    assert torn.torn.startswith("is not JSON")
    assert (other.torn, other.definition) == (None, None)


def test_without_mdevctl_there_is_nothing(tmp_path: Path) -> None:
    assert read_definition_files(tmp_path / "mdevctl.d" / "matrix") == ()
