# SPDX-License-Identifier: Apache-2.0
"""What vfioap-lab cannot do, it says in one sentence that names the cause and the fix."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from vfioapd.lab.harness import VFIOAP_LAB, Result

if TYPE_CHECKING:
    from pathlib import Path

HOST = "rdbkvm4"

NOBODY = 65534


def refused(*arguments: str, path: str | None = None, user: int | None = None) -> Result:
    """Run vfioap-lab outside of any lab; it must refuse in one line."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VFIOAP_")}
    result = subprocess.run(
        [*VFIOAP_LAB, *arguments],
        env=environment | ({"PATH": path} if path else {}),
        user=user,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout == ""
    assert result.stderr.startswith("vfioap-lab: ")
    assert result.stderr.count("\n") == 1
    return result


def test_without_root_it_asks_for_sudo() -> None:
    result = refused("run", HOST, "--", "true", user=NOBODY)
    assert result.returncode == 4
    assert "needs root" in result.stderr
    assert "sudo" in result.stderr


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    for name in ("virsh", "udevadm"):
        (tmp_path / name).symlink_to("/bin/true")
    result = refused("run", HOST, "--", "true", path=str(tmp_path))
    assert result.returncode == 5
    assert "mdevctl, qemu-system-s390x" in result.stderr
    assert "apt-get install --no-install-recommends mdevctl qemu-system-misc\n" in result.stderr


def test_a_lab_without_libvirt_needs_fewer_packages(tmp_path: Path) -> None:
    result = refused("run", HOST, "--no-libvirt", "--", "true", path=str(tmp_path))
    assert "apt-get install --no-install-recommends udev\n" in result.stderr


def test_an_unknown_host_names_the_shipped_ones() -> None:
    result = refused("run", "nosuchhost", "--", "true")
    assert result.returncode == 2
    assert "nosuchhost" in result.stderr
    assert HOST in result.stderr


@pytest.mark.parametrize("text", ["nokey = 1\n", "kernel = \n", 'kernel = "2.4"\n'])
def test_a_faulty_host_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "faulty.toml"
    path.write_text(text)
    result = refused("run", str(path), "--", "true")
    assert result.returncode == 2
    assert "faulty.toml" in result.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--root", "debian13"], "from its package: --deb FILE (make deb)"),
        (["--root", "debian13", "--deb", "nosuch.deb"], "nosuch.deb does not exist; make it with: make deb"),
        (["--deb", "nosuch.rpm"], "nosuch.rpm does not exist; make it with: make rpm"),
        (["--deb", "nosuch.txt"], "nosuch.txt is neither a .deb nor an .rpm"),
    ],
)
def test_a_package_that_cannot_be_installed_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], sentence: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = refused("boot", *options, HOST)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_does_not_exist_is_named() -> None:
    result = refused("run", HOST, "--no-libvirt", "--", "/nosuchprogram")
    assert result.returncode == 2
    assert "/nosuchprogram" in result.stderr


@pytest.mark.parametrize(
    "words",
    [["reboot"], ["state"], ["guest", "x"], ["play", "scan"], ["service", "stop", "udevd"]],
    ids=lambda words: words[0],
)
def test_outside_of_a_lab_the_inner_commands_say_so(words: list[str]) -> None:
    result = refused(*words)
    assert result.returncode == 3
    assert "inside a lab only" in result.stderr


def test_entering_a_process_that_is_no_lab_is_refused() -> None:
    result = refused("enter", "--lab", str(os.getpid()), "--", "true")
    assert result.returncode == 3
