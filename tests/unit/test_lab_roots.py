# SPDX-License-Identifier: Apache-2.0
"""Another system's root folder: made by the machine's own mirror, whole or not at all."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vfioapd.lab import modular, peers, roots
from vfioapd.lab.errors import Exit, LabError
from vfioapd.lab.programs import ProgramFailed

MIRROR = "http://mirror.test/debian"
LACKS = """E: Failed to fetch {mirror}/pool/main/x/{package}/{package}_2.12_amd64.deb  404  Not Found
E: Unable to fetch some archives, maybe run apt-get update or try with --fix-missing?"""


@dataclass
class Programs:
    """Stands in for debootstrap, and for apt and the build of libvirt in a container."""

    root: Path = Path()
    lacking: set[str] = field(default_factory=set)  # words of a command that then fails
    lost: str = "libxml2"  # the package that the pool lacks then
    has_qemu: bool = True
    makes: str = modular.DAEMON  # what the build puts where it was told to
    made: list[list[str]] = field(default_factory=list)

    def run(self, command: list[str]) -> None:
        words = command[command.index("apt-get") :] if "apt-get" in command else command
        self.made.append(words)
        if command[0] == "debootstrap":
            self.root = Path(words[-2])
            (self.root / "etc/apt/apt.conf.d").mkdir(parents=True)
            (self.root / "etc/apt/sources.list.d").mkdir()
            (self.root / "etc/apt/sources.list").write_text(f"deb {words[-1]} {words[-3]} main\n")
        if self.lacking and self.lacking <= set(words) and not any("/" in word for word in words):
            said = LACKS.format(mirror=MIRROR, package=self.lost)
            raise ProgramFailed("apt-get has failed", Exit.MISSING, said)
        if command[0] == "cp":
            subprocess.run(command, check=True)
        elif "sh" in words:
            self.build(words)
        elif self.has_qemu and "install" in words:
            (self.root / "usr/bin").mkdir(parents=True, exist_ok=True)
            (self.root / roots.QEMU_PROGRAM).touch()

    def build(self, words: list[str]) -> None:
        (copy,) = (Path(word.partition("=")[2]) for word in words if word.startswith("--directory="))
        assert (
            copy / "etc/apt/sources.list.d/source.list"
        ).read_text() == f"deb-src {MIRROR} bookworm main\n"
        made = copy / modular.RESULT / self.makes
        made.parent.mkdir(parents=True)
        made.touch()


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Programs:
    made = Programs()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(roots, "_run", made.run)
    monkeypatch.setattr(roots, "_check_machine", lambda: None)
    monkeypatch.setattr(peers, "mirror", lambda: MIRROR)
    return made


def test_a_root_is_made_once_and_from_the_machines_own_mirror(programs: Programs) -> None:
    root = roots.fetch("debian13")
    assert root == roots.find("debian13")
    assert programs.made[0][-3] == "trixie"
    assert programs.made[0][-1] == MIRROR
    count = len(programs.made)
    assert roots.fetch("debian13") == root
    assert len(programs.made) == count


@pytest.mark.parametrize("name", ["debian13", "debian12-modular"])
def test_a_root_made_of_other_packages_is_made_anew_and_the_old_one_left_to_who_uses_it(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    old = roots.fetch(name)
    monkeypatch.setattr(roots, "PACKAGES", (*roots.PACKAGES, "jq"))
    assert roots.find(name) is None
    new = roots.fetch(name)
    assert new != old
    assert old.is_dir()
    assert [words for words in programs.made if "jq" in words]


def test_only_a_modular_root_depends_on_how_the_daemons_are_built(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, built = roots.fetch("debian13"), roots.fetch("debian12-modular")
    monkeypatch.setattr(modular, "RECIPE", (*modular.RECIPE, "another"))
    assert roots.find("debian13") == plain
    assert roots.find("debian12-modular") is None
    assert built.is_dir()


def test_a_package_that_the_pool_lacks_is_lent_by_the_next_release(programs: Programs) -> None:
    programs.lacking = {"install", "mdevctl"}
    root = roots.fetch("debian13")
    again = next(words for words in programs.made if "libxml2/forky" in words)
    assert set(roots.PACKAGES) <= set(again)
    assert [word for word in again if "/" in word] == ["libxml2/forky"]
    assert f"deb {MIRROR} forky main" in (root / "etc/apt/sources.list").read_text()
    assert (root / "etc/apt/apt.conf.d/lab").read_text() == 'APT::Default-Release "trixie";\n'


def test_a_program_under_test_is_not_lent(programs: Programs) -> None:
    programs.lacking, programs.lost = {"install", "mdevctl"}, "mdevctl"
    with pytest.raises(ProgramFailed, match="apt-get has failed"):
        roots.fetch("debian13")
    assert roots.find("debian13") is None


def test_a_root_that_could_not_be_made_leaves_nothing(programs: Programs, tmp_path: Path) -> None:
    programs.lacking, programs.lost = {"install"}, "kmod"
    with pytest.raises(LabError):
        roots.fetch("debian13")
    assert roots.find("debian13") is None
    assert [path.name for path in (tmp_path / "vfioap-lab").iterdir()] == ["lock"]


def test_qemu_for_s390x_is_found_in_either_package(programs: Programs) -> None:
    programs.has_qemu = False
    roots.fetch("debian13")
    assert [words for words in programs.made if roots.QEMU[1] in words]


def test_modular_daemons_are_built_beside_the_system_and_put_over_its_packages(programs: Programs) -> None:
    root = roots.fetch("debian12-modular")
    assert modular.is_modular(root)
    assert not (root / "etc/apt/sources.list.d/source.list").exists(), "nothing of the build stays in it"
    tools, packages, laid = (
        next(number for number, words in enumerate(programs.made) if set(some) <= set(words))
        for some in (modular.TOOLS, roots.PACKAGES, ["cp", str(programs.root)])
    )
    assert tools < packages < laid


def test_a_source_that_makes_no_modular_daemon_is_told(programs: Programs) -> None:
    programs.makes = "usr/sbin/libvirtd"
    with pytest.raises(LabError, match="makes no usr/sbin/virtqemud"):
        roots.fetch("debian12-modular")
    assert roots.find("debian12-modular") is None


def test_a_system_is_modular_only_where_that_was_asked_for(programs: Programs) -> None:
    assert not modular.is_modular(roots.fetch("debian13"))
