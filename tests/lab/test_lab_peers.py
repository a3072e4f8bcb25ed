# SPDX-License-Identifier: Apache-2.0
"""IBM's own tools run in the lab, and whether they could be fetched is never in doubt."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from vfioapd.lab import peers
from vfioapd.lab.errors import LabError
from vfioapd.lab.harness import VFIOAP_LAB, Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOST = "rdbkvm4"


@pytest.fixture(scope="module")
def root_folder() -> Path:
    try:
        return peers.fetch()
    except LabError as error:
        pytest.skip(str(error))


def vfioap_lab(*words: str, cache: Path, path: str = "") -> Result:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment["PATH"] = f"{path}:{environment['PATH']}".lstrip(":")
    return subprocess.run([*VFIOAP_LAB, *words], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def no_mirror(tmp_path: Path) -> str:
    """A PATH entry with an apt-get that knows its sources but cannot reach them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "apt-get"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in *indextargets*) exec /usr/bin/apt-get "$@" ;; esac\n'
        "echo 'E: Temporary failure resolving the mirror' >&2\n"
        "exit 100\n"
    )
    program.chmod(0o755)
    return str(folder)


def test_a_second_fetch_needs_no_network(root_folder: Path, no_mirror: str) -> None:
    result = vfioap_lab("peers", cache=root_folder.parents[1], path=no_mirror)
    assert (result.returncode, result.stdout) == (0, f"{root_folder}\n")


def test_lszcrypt_and_its_family_believe_the_emulated_bus(
    root_folder: Path, lab_run: Callable[..., Result]
) -> None:
    lines = lab_run(HOST, ["lszcrypt", "-V"], "--no-libvirt").stdout.splitlines()
    assert [line.split()[0] for line in lines[2:] if "." in line.split()[0]] == [
        f"{card:02x}.{domain:04x}" for card in range(8) for domain in (13, 17)
    ]
    script = "chzcrypt --disable 3 && lszcrypt 3.d && cat /sys/devices/ap/card03/online"
    output = lab_run(HOST, ["bash", "-c", script], "--no-libvirt").stdout
    assert "offline" in output
    assert output.endswith("\n0\n")


def test_tools_that_were_not_fetched_say_so(tmp_path: Path) -> None:
    result = vfioap_lab("lszcrypt", "-V", cache=tmp_path)
    assert result.returncode == 5
    assert (
        result.stderr
        == "vfioap-lab: lszcrypt is not here yet; fetch it outside of the lab with: vfioap-lab peers\n"
    )


def test_a_lab_without_fetched_tools_has_no_empty_shells_of_them(tmp_path: Path) -> None:
    result = vfioap_lab("run", "--no-libvirt", HOST, "--", "sh", "-c", "ls $VFIOAP_LAB/bin", cache=tmp_path)
    assert (result.returncode, result.stdout) == (0, "")


def test_an_unreachable_mirror_is_one_sentence_and_leaves_nothing(tmp_path: Path, no_mirror: str) -> None:
    result = vfioap_lab("peers", cache=tmp_path, path=no_mirror)
    assert result.returncode == 5
    assert result.stdout == ""
    assert result.stderr.startswith("vfioap-lab: cannot fetch the peers: apt-get: E: Temporary failure")
    assert result.stderr.count("\n") == 1
    assert [entry.name for entry in (tmp_path / "vfioap-lab").iterdir()] == ["lock"]


def test_what_an_interrupted_fetch_left_is_cleared_away(tmp_path: Path, no_mirror: str) -> None:
    leftover = tmp_path / "vfioap-lab" / "new-interrupted"
    (leftover / "root" / "usr").mkdir(parents=True)
    vfioap_lab("peers", cache=tmp_path, path=no_mirror)
    assert not leftover.exists()


def test_the_machines_own_package_lists_stay_as_they_are(
    tmp_path: Path, root_folder: Path, no_mirror: str
) -> None:
    """All that apt-get is told to write lies in the cache folder."""
    configuration = peers.APT_CONFIGURATION.format(architecture="s390x", folder=tmp_path)
    (tmp_path / "apt.conf").write_text(configuration)
    settings = subprocess.run(
        ["apt-config", "-c", str(tmp_path / "apt.conf"), "shell", "S", "Dir::State/d", "C", "Dir::Cache/d"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert settings == f"S='{tmp_path}/state/'\nC='{tmp_path}/cache/'\n"
