# SPDX-License-Identifier: Apache-2.0
"""Manual pages and completions say all that the programs know, and nothing else."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vfioapd.daemon import main as daemon
from vfioapd.store import host_file

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
PAGES = ("man1/vfioapctl.1", "man1/vfioap-lab.1", "man5/host.toml.5", "man8/vfioapd.8")
PROGRAMS = ("vfioapctl", "vfioap-lab")
SHELLS = {"bash": "{}", "zsh": "_{}", "fish": "{}.fish"}
_COMMAND = re.compile(r"\bvfioapctl ([a-z]+)\b|\bvfioap-lab ([a-z]+)\b")


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/man/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def made() -> dict[str, str]:
    files: dict[str, str] = generator().files()
    return files


def plain(page: str) -> str:
    """A page's text without its formatting."""
    return re.sub(r"\\f[BIR]", "", made()[page]).replace("\\-", "-").replace("\\&", "")


def words_of(name: str) -> set[str]:
    """All commands and options of a program."""
    program = generator().PROGRAMS[name]()
    options = [*program.options, *(option for command in program.commands for option in command.options)]
    return {command.name for command in program.commands} | {flag for one in options for flag in one.flags}


def completion(name: str, shell: str) -> str:
    return made()[f"completions/{shell}/{SHELLS[shell].format(name)}"]


def completed_by_bash(line: str, tmp_path: Path) -> set[str]:
    """What bash offers for a line whose last word is begun."""
    script = tmp_path / "completion"
    script.write_text(completion(line.split()[0], "bash"))
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    function = f"_{words[0].replace('-', '_')}"
    state = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}"
    code = f'. {script}; {state}; {function}; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_there_is_a_page_for_each_program_and_for_the_file() -> None:
    assert tuple(name for name in sorted(made()) if name.startswith("man")) == tuple(sorted(PAGES))


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "docs/man/generate.py"]
    for seed, folder in (("1", tmp_path / "a"), ("2", tmp_path / "b")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "COLUMNS": seed * 2, "LANG": "C"}
        subprocess.run([*command, folder], env=environment, check=True)
    for name in made():
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_command_and_option_is_on_the_page(name: str) -> None:
    page = plain(f"man1/{name}.1")
    missing = {
        word for word in words_of(name) if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", page)
    }
    assert not missing


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_and_option_is_in_the_completions(name: str, shell: str) -> None:
    text = completion(name, shell)
    forms = {word: re.escape(word) for word in words_of(name)}
    if shell == "fish":
        forms = {word: re.sub(r"^--", "-l ", re.sub(r"^-(?=\w)", "-s ", word)) for word in forms}
    missing = {word for word, form in forms.items() if not re.search(rf"(?<![\w-]){form}(?![\w-])", text)}
    assert not missing


def test_every_option_of_the_daemon_is_on_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        daemon.main(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert "--debug" in options
    assert options == set(re.findall(r"--[a-z][a-z-]*", plain("man8/vfioapd.8")))


def test_every_key_of_host_toml_is_on_its_page_and_no_other() -> None:
    known = {"version", *host_file._HOST, *host_file._MATRIX}
    described = set(re.findall(r"^\.TP\n\\fB(\w+)\\fR$", made()["man5/host.toml.5"], re.MULTILINE))
    assert described == known


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / "docs/man" / f"{Path(page).name}.md").read_text()
    code = "\n".join(re.findall(r"`[^`\n]+`|^    .+$", text, re.MULTILINE))
    for ours, labs in _COMMAND.findall(code):
        assert ours in words_of("vfioapctl") if ours else labs in words_of("vfioap-lab")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "checker",
    [("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"), ("mandoc", "-Tlint", "-Wwarning")],
    ids=["man", "mandoc"],
)
def test_pages_are_well_formed(page: str, checker: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which(checker[0]) is None:
        pytest.skip(f"{checker[0]} is not installed")
    path = tmp_path / Path(page).name
    path.write_text(made()[page])
    done = subprocess.run([*checker, path], capture_output=True, text=True, check=False)
    complaints = done.stderr + (done.stdout if checker[0] == "mandoc" else "")
    assert (done.returncode, complaints) == (0, "")


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_can_read_its_completion(name: str, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    text = completion(name, shell)
    done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vfioapctl sta", {"status", "start"}),
        ("vfioapctl xml ", {"nodedev", "hostdev", "--help", "--json", "-h"}),
        ("vfioapctl define vault --require a", {"all", "any"}),
        ("vfioapctl apply --dr", {"--dry-run"}),
        ("vfioap-lab module l", {"load"}),
    ],
)
def test_bash_offers_what_can_follow(line: str, offered: set[str], tmp_path: Path) -> None:
    assert completed_by_bash(line, tmp_path) >= offered
    begun = line.rpartition(" ")[2]
    assert all(word.startswith(begun) for word in completed_by_bash(line, tmp_path))
