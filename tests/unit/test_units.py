# SPDX-License-Identifier: Apache-2.0
"""The units: accepted by systemd, in an order without a cycle, and in a tight sandbox."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vfioapd.daemon.places import Places
from vfioapd.virt.awake import libvirt_runs, libvirt_to_start

UNITS = Path(__file__).parents[2] / "units"
SYSTEM_UNITS = Path("/usr/lib/systemd/system")
EXPOSURE = 2.0
# Stand-ins for the modular daemons, which Debian 12 does not have.
MODULAR = "[Unit]\nAfter=network.target\n[Service]\nType=notify\nExecStart=/bin/true\n"

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing")


class Unit(configparser.RawConfigParser):
    """A unit file in which each line of a setting that is given more than once counts."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, comment_prefixes=("#",), delimiters=("=",))
        self.text = path.read_text()
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.read_string(self.text)

    def words(self, name: str) -> list[str]:
        return [
            word for line in re.findall(rf"^{name}=(.*)$", self.text, re.MULTILINE) for word in line.split()
        ]


def unit(name: str) -> Unit:
    return Unit(UNITS / name)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Our units beside libvirt's, enabled; the daemon's program is one that exists here."""
    for path in UNITS.glob("vfioapd*"):
        text = path.read_text().replace("ExecStart=/usr/sbin/vfioapd", "ExecStart=/bin/true")
        (tmp_path / path.name).write_text(text)
    for daemon in ("virtqemud.service", "virtnodedevd.service"):
        (tmp_path / daemon).write_text(MODULAR)
    for wanting in unit("vfioapd-ready.target").words("WantedBy"):
        (tmp_path / f"{wanting}.wants").mkdir()
        (tmp_path / f"{wanting}.wants/vfioapd-ready.target").symlink_to("../vfioapd-ready.target")
    return tmp_path


def verify(folder: Path) -> subprocess.CompletedProcess[str]:
    names = [path.name for path in folder.iterdir() if path.is_file()]
    names += [
        name for name in ("libvirtd.service", "libvirt-guests.service") if (SYSTEM_UNITS / name).exists()
    ]
    return subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_systemd_finds_nothing_wrong_and_no_ordering_cycle(installed: Path) -> None:
    done = verify(installed)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_ordering_cycle_would_be_found(installed: Path) -> None:
    service = installed / "vfioapd.service"
    service.write_text(service.read_text().replace("[Unit]", "[Unit]\nAfter=virtqemud.service", 1))
    assert "ordering cycle" in verify(installed).stderr


@pytest.mark.parametrize("name", ["vfioapd.service"])
def test_the_sandbox_leaves_little_exposed(name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNITS / name],
        capture_output=True,
        text=True,
        check=False,
    )
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level, done.stderr
    assert float(level[1]) <= EXPOSURE


@pytest.mark.parametrize("who", ["libvirtd", "virtqemud", "virtnodedevd", "libvirt-guests"])
def test_libvirt_and_its_guests_wait_for_the_queues(who: str) -> None:
    assert f"{who}.service" in unit("vfioapd-ready.target").words("Before")


def test_a_daemon_that_fails_keeps_nobody_down() -> None:
    target = unit("vfioapd-ready.target")
    assert target.words("Wants") == ["vfioapd.service"]
    assert not {"Requires", "BindsTo", "Requisite"} & set(target["Unit"])
    assert not [word for word in unit("vfioapd.service").words("Before") if "libvirt" in word]


@pytest.mark.parametrize("place", ["socket", "read_only_socket"])
def test_the_daemon_finds_its_sockets_by_their_names(place: str) -> None:
    path: Path = getattr(Places(), place)
    sockets = [Unit(file)["Socket"] for file in UNITS.glob("*.socket")]
    ours = [socket for socket in sockets if socket["ListenStream"] == str(path)]
    assert [socket["FileDescriptorName"] for socket in ours] == [path.name]


def test_only_libvirts_group_can_change_things() -> None:
    writable, readable = unit("vfioapd.socket")["Socket"], unit("vfioapd-ro.socket")["Socket"]
    assert (writable["SocketMode"], writable["SocketGroup"]) == ("0660", "libvirt")
    assert (readable["SocketMode"], readable.get("SocketGroup")) == ("0666", None)


def test_what_the_daemon_writes_is_writable_in_its_sandbox() -> None:
    service, places = unit("vfioapd.service"), Places()
    named = {"RuntimeDirectory": "/run", "StateDirectory": "/var/lib"}
    writable = [Path(word.lstrip("-")) for word in service.words("ReadWritePaths")]
    writable += [Path(top, word) for key, top in named.items() for word in service.words(key)]
    for path in (places.host_file, places.definitions, places.state, places.runtime, places.lock):
        assert any(folder == path or folder in path.parents for folder in writable), path


def test_definitions_reach_their_folder_by_a_rename() -> None:
    """Two writable paths would be two mounts, and rename(2) does not cross them."""
    places = Places()
    tops = [
        next(
            folder
            for folder in unit("vfioapd.service").words("ReadWritePaths")
            if str(path).startswith(folder)
        )
        for path in (places.host_file, places.definitions)
    ]
    assert tops[0] == tops[1]
    assert "ConfigurationDirectory" not in unit("vfioapd.service")["Service"]  # a third


def test_run_vfioapd_outlives_the_daemon() -> None:
    assert unit("vfioapd.service")["Service"]["RuntimeDirectoryPreserve"] == "yes"


def test_a_change_under_way_has_time_to_end() -> None:
    from vfioapd.backend.guarded_sysfs import PATIENCE

    assert float(unit("vfioapd.service")["Service"]["TimeoutStopSec"]) > PATIENCE


def a_host(tmp_path: Path, daemon: str, *, pid: str, comm: str) -> tuple[Path, Path]:
    (tmp_path / f"{daemon}.pid").write_text(f"{pid}\n")
    (tmp_path / "7").mkdir()
    (tmp_path / "7/comm").write_text(f"{comm}\n")
    return tmp_path, tmp_path


@pytest.mark.parametrize("daemon", ["libvirtd", "virtqemud"])
def test_a_libvirt_that_runs_is_seen_without_waking_it(tmp_path: Path, daemon: str) -> None:
    assert libvirt_runs(*a_host(tmp_path, daemon, pid="7", comm=daemon))


@pytest.mark.parametrize(("pid", "comm"), [("8", "libvirtd"), ("7", "bash"), ("", "libvirtd")])
def test_a_pid_file_left_behind_is_no_running_libvirt(tmp_path: Path, pid: str, comm: str) -> None:
    assert not libvirt_runs(*a_host(tmp_path, "libvirtd", pid=pid, comm=comm))


def test_without_a_pid_file_no_libvirt_runs(tmp_path: Path) -> None:
    assert not libvirt_runs(tmp_path, tmp_path)


def set_up(root: Path, *, installed: tuple[str, ...], enabled: str | None) -> Path:
    for daemon in installed:
        program = root / "usr/sbin" / daemon
        program.parent.mkdir(parents=True, exist_ok=True)
        program.touch(mode=0o755)
    if enabled:
        link = root / "etc/systemd/system" / enabled
        link.parent.mkdir(parents=True)
        link.symlink_to(f"/usr/lib/systemd/system/{link.name}")
    return root


BOTH = ("libvirtd", "virtqemud")


@pytest.mark.parametrize(
    ("installed", "enabled", "daemon"),
    [
        (("libvirtd",), None, "libvirtd"),
        (("virtqemud",), None, "virtqemud"),
        (BOTH, "multi-user.target.wants/virtqemud.service", "virtqemud"),
        (BOTH, "sockets.target.wants/virtqemud.socket", "virtqemud"),
        (BOTH, "multi-user.target.wants/libvirtd.service", "libvirtd"),
        ((), None, None),
    ],
)
def test_the_libvirt_that_is_enabled_is_the_one_to_start(
    tmp_path: Path, installed: tuple[str, ...], enabled: str | None, daemon: str | None
) -> None:
    assert libvirt_to_start(set_up(tmp_path, installed=installed, enabled=enabled)) == daemon
