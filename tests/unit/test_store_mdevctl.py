# SPDX-License-Identifier: Apache-2.0
"""mdevctl's folder: ours is what mdevctl would write, everybody's is read by the kernel's rules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfioapd.domain.definition import Definition
from vfioapd.domain.matrix import EMPTY_MATRIX, Matrix
from vfioapd.domain.numbers import AdapterId, DomainId
from vfioapd.domain.snapshot import ForeignDefinition
from vfioapd.store.mdevctl import (
    DefinitionFolder,
    format_definition,
    parse_definition,
    parse_kernel_number,
    read_folder,
)

if TYPE_CHECKING:
    from pathlib import Path

U = UUID("825b3872-0001-0003-0011-28a403f8b357")
V = UUID("825b3872-0001-0003-0011-28a403f8b358")


def matrix(adapters: set[int], domains: set[int], control: set[int]) -> Matrix:
    return Matrix(
        frozenset(map(AdapterId, adapters)),
        frozenset(map(DomainId, domains)),
        frozenset(map(DomainId, control)),
    )


def text(*attrs: dict[str, object], start: str = "manual", mdev_type: str = "vfio_ap-passthrough") -> str:
    return json.dumps({"mdev_type": mdev_type, "start": start, "attrs": attrs})


OURS = Definition("bastion", U, matrix({7, 5}, {17}, {17, 171}))


def test_ours_is_written_as_mdevctl_writes_it() -> None:
    assert (
        format_definition(OURS)
        == """\
{
  "mdev_type": "vfio_ap-passthrough",
  "start": "manual",
  "attrs": [
    {
      "assign_adapter": "0x05"
    },
    {
      "assign_adapter": "0x07"
    },
    {
      "assign_domain": "0x0011"
    },
    {
      "assign_control_domain": "0x0011"
    },
    {
      "assign_control_domain": "0x00ab"
    }
  ]
}"""
    )


numbers = st.sets(st.integers(0, 255), max_size=8)


@given(st.builds(matrix, numbers, numbers, numbers))
def test_what_is_written_is_read_back(wanted: Matrix) -> None:
    written = format_definition(Definition("x", U, wanted))

    assert parse_definition(written, U) == ForeignDefinition(U, wanted, starts_itself=False)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("5", 5),
        ("0x05", 5),
        ("0X1f", 31),
        ("021", 17),
        ("0", 0),
        ("00", 0),
        ("+7", 7),
        ("+021\n", 17),
        ("0" * 80 + "21", 17),
        ("256", 256),
    ],
)
def test_numbers_are_read_as_the_kernel_reads_them(value: str, number: int) -> None:
    assert parse_kernel_number(value) == number


@pytest.mark.parametrize(
    "value", ["", "08", "0x", "x", "-1", "++1", " 5", "5 ", "5\n\n", "5,6", "0b1", "0o7", "٥", "5_0"]
)
def test_what_the_kernel_refuses_is_no_number(value: str) -> None:
    with pytest.raises(ValueError, match="kernel"):
        parse_kernel_number(value)


def test_attributes_are_played_in_their_order() -> None:
    found = parse_definition(
        text(
            {"assign_adapter": "5"},
            {"assign_adapter": "021"},
            {"assign_domain": "0x11"},
            {"something_new": "whatever"},
            {"unassign_adapter": "5"},
            {"assign_control_domain": "171"},
            start="auto",
        ),
        U,
    )

    assert found == ForeignDefinition(U, matrix({17}, {17}, {171}), starts_itself=True)


@pytest.mark.parametrize("value", ["0x04,0x08,0x08\n", "04,08,08,garbage\n", "0x04,0x0800,08"])
def test_a_whole_matrix_in_one_attribute_is_read(value: str) -> None:
    found = parse_definition(text({"assign_adapter": "9"}, {"ap_config": value}), U)

    assert found == ForeignDefinition(U, matrix({5}, {4}, {4}), starts_itself=False)


def test_attrs_and_start_are_read_as_mdevctl_reads_them() -> None:
    plain = '{"mdev_type": "vfio_ap-passthrough", "start": "sometimes", "extra": 1}'

    assert parse_definition(plain, U) == ForeignDefinition(U, EMPTY_MATRIX, starts_itself=False)
    assert parse_definition(text({"assign_adapter": "x"}, mdev_type="vfio_ccw-io"), U) is None


TORN = {
    "": "is empty",
    '{"mdev_type": "vfio_ap-pass': "is not JSON",
    "\x00": "is not JSON",
    "[" * 5000: "is not JSON",
    "[]": "is not a JSON object",
    '{"mdev_type": "vfio_ap-passthrough"}': "lacks the text mdev_type or start",
    '{"start": "auto"}': "lacks the text mdev_type or start",
    text({"assign_adapter": 5}): "a value of assign_adapter that is not a text",
    text({"assign_adapter": "08"}): "a value '08' that the kernel does not take",
    text({"assign_domain": "300"}): "names an impossible number: domain 300",
    text({"ap_config": "0x04"}): "is not three masks",
    text({"assign_adapter": "5", "assign_domain": "6"}): "not objects of one key each",
    '{"mdev_type": "vfio_ap-passthrough", "start": "auto", "attrs": {"a": "b"}}': "attrs that are not a list",
}


@pytest.mark.parametrize("content", TORN)
def test_one_torn_file_is_reported_and_hides_no_other(tmp_path: Path, content: str) -> None:
    (tmp_path / str(U)).write_text(content)
    (tmp_path / str(V)).write_text(text({"assign_adapter": "5"}))

    found = read_folder(tmp_path)

    assert found.definitions == {V: ForeignDefinition(V, matrix({5}, set(), set()), starts_itself=False)}
    assert [one.path for one in found.torn] == [tmp_path / str(U)]
    assert TORN[content] in found.torn[0].reason
    passes_mdevctl = any(word in TORN[content] for word in ("kernel", "impossible", "masks"))
    assert found.torn[0].stops_mdevctl is not passes_mdevctl


def test_ours_are_not_even_opened_and_hide_no_other(tmp_path: Path) -> None:
    (tmp_path / str(U)).mkdir()  # whoever opened it would find it torn
    (tmp_path / str(V)).write_text(text({"assign_adapter": "5"}))

    found = read_folder(tmp_path, ours={str(U)})

    assert list(found.definitions) == [V]
    assert found.torn == ()
    assert [one.path.name for one in read_folder(tmp_path).torn] == [str(U)]


def test_a_torn_file_named_as_ours_but_in_capitals_is_told(tmp_path: Path) -> None:
    """We neither wrote it nor mend it, and it stops mdevctl as any other."""
    capitals = UUID("abcdefab-0001-0003-0011-28a403f8b357")
    (tmp_path / str(capitals).upper()).write_text("{")

    found = read_folder(tmp_path, ours={str(capitals)})

    assert [one.path.name for one in found.torn] == [str(capitals).upper()]


def test_other_names_and_missing_folders_are_passed_over(tmp_path: Path) -> None:
    for name in (".hidden.new", "README", "825b3872", f"{U}~"):
        (tmp_path / name).write_text("{")
    (tmp_path / str(V)).mkdir()
    (tmp_path / str(U)).symlink_to(tmp_path / "gone")  # vanished between the listing and the read

    assert read_folder(tmp_path / "none") == DefinitionFolder()
    assert [one.path.name for one in read_folder(tmp_path).torn] == [str(V)]
    assert read_folder(tmp_path).definitions == {}


FOLDER = """
mount -t tmpfs tmpfs /etc/mdevctl.d
mkdir -p /etc/mdevctl.d/scripts.d/callouts /etc/mdevctl.d/scripts.d/notifiers /etc/mdevctl.d/matrix
cp "$1"/* /etc/mdevctl.d/matrix/
mdevctl list -d --dumpjson
"""
WRITE_BACK = f"""
mdevctl modify -u {U} --auto
mdevctl modify -u {U} --manual
cp /etc/mdevctl.d/matrix/* "$1"/
"""


def with_mdevctl(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a mount namespace in which mdevctl's folder holds these files."""
    command = ["unshare", "-m", "sh", "-euc", script, "sh", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


needs_mdevctl = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mdevctl") is None, reason="needs mdevctl, and root for a namespace"
)


@pytest.mark.lab
@needs_mdevctl
def test_the_real_mdevctl_reads_ours_and_would_write_the_same(tmp_path: Path) -> None:
    (tmp_path / str(U)).write_text(format_definition(OURS))

    run = with_mdevctl(tmp_path, FOLDER + WRITE_BACK)

    assert run.returncode == 0, run.stderr
    expected = {"mdev_type": "vfio_ap-passthrough", "start": "manual"}
    attrs = json.loads(format_definition(OURS))["attrs"]
    assert json.loads(run.stdout) == [{"matrix": [{str(U): {**expected, "attrs": attrs}}]}]
    # modify made it write the file anew: byte for byte what we write.
    assert (tmp_path / str(U)).read_text() == format_definition(OURS)


@pytest.mark.lab
@needs_mdevctl
@pytest.mark.parametrize("content", TORN)
def test_the_real_mdevctl_agrees_which_torn_file_stops_it(tmp_path: Path, content: str) -> None:
    (tmp_path / str(U)).write_text(content)

    run = with_mdevctl(tmp_path, FOLDER)

    assert (run.returncode != 0) is read_folder(tmp_path).torn[0].stops_mdevctl
