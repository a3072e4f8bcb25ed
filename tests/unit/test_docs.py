# SPDX-License-Identifier: Apache-2.0
"""What the documents say is there, and what is there is documented."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
from pathlib import Path

import pytest

from vfioapd.cli import exits, main
from vfioapd.domain.problems import Problem
from vfioapd.plan.adopt_facts import Trouble
from vfioapd.plan.doctor_finding import Code, Finding
from vfioapd.rpc import types

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")])
COMMAND_PAGE = ROOT / "docs/cli.md"

_PROBLEM_ROW = re.compile(r"^\| `([a-z-]+)` \| (\d) \| .+ \| .+ \|$", re.MULTILINE)
_EXIT_ROW = re.compile(r"^\| (\d+) \| ([A-Z]+) \| .+ \|$", re.MULTILINE)
_COMMAND = re.compile(r"vfioapctl ([a-z]+)\b([^\n`]*)")
_OPTION = re.compile(r"--[a-z][a-z-]*")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
# Words after the program's name in running text that are no command of it.
_PROSE = {"answers", "has", "itself", "prints", "asks", "takes", "and", "is"}


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, by its name."""
    for action in main._parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("vfioapctl has no commands")


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings if option[:2] == "--"}


def commands_in(path: Path) -> list[tuple[str, str]]:
    """Each `vfioapctl VERB …` in code of a document, and the rest of it."""
    fenced = re.findall(r"^```\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`([^`\n]+)`", path.read_text())
    return [match.groups() for code in (*fenced, *inline) for match in _COMMAND.finditer(code)]  # type: ignore[misc]


def problem_rows() -> dict[str, int]:
    return {code: int(status) for code, status in _PROBLEM_ROW.findall(text_of("docs/problems.md"))}


def test_every_problem_code_is_documented_and_no_other() -> None:
    assert set(problem_rows()) == {problem.value for problem in Problem}


def test_codes_of_the_client_are_documented_like_the_daemons() -> None:
    client = (ROOT / "vfioapd/rpc/client.py").read_text() + (ROOT / "vfioapd/cli/main.py").read_text()
    codes = set(re.findall(r"CallError\(\s*\"([a-z-]+)\"", client))
    assert codes
    assert codes <= set(problem_rows())


@pytest.mark.parametrize("problem", Problem, ids=str)
def test_a_problem_is_documented_with_the_exit_status_it_leads_to(problem: Problem) -> None:
    assert problem_rows()[problem] == exits.exit_for(problem)


def test_every_exit_status_is_documented_and_no_other() -> None:
    there = {name: value for name, value in vars(exits).items() if name.isupper() and name[0] != "_"}
    documented = {name: int(status) for status, name in _EXIT_ROW.findall(text_of("docs/problems.md"))}
    assert documented == there


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_commands_and_options_in_a_document_exist(path: Path) -> None:
    known = parsers()
    for verb, rest in commands_in(path):
        if verb in _PROSE:
            continue
        assert verb in known, f"vfioapctl {verb}{rest}"
        strangers = set(_OPTION.findall(rest)) - options_of(known[verb])
        assert not strangers, f"vfioapctl {verb}{rest}"


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_every_command_is_in_the_readme_and_on_the_command_page(page: str) -> None:
    shown = {verb for verb, _ in commands_in(ROOT / page)}
    assert not set(parsers()) - shown


def test_every_option_is_on_the_command_page() -> None:
    there = {option for parser in parsers().values() for option in options_of(parser)} - {"--help"}
    assert not there - set(_OPTION.findall(COMMAND_PAGE.read_text()))


def test_every_option_on_the_command_page_exists() -> None:
    there = {option for parser in parsers().values() for option in options_of(parser)}
    assert not set(_OPTION.findall(COMMAND_PAGE.read_text())) - there


@pytest.mark.parametrize(
    ("heading", "record"),
    [
        ("Status", types.HostStatus),
        ("Matrix", types.MatrixRow),
        ("Queue", types.QueueRow),
        ("Change", types.Change),
        ("Adoption", types.Adoption),
        ("Adopted", types.AdoptedRow),
        ("Misfit", types.MisfitRow),
        ("Revision", types.RevisionRow),
        ("Why", types.WhyAnswer),
        ("Doctor", types.DoctorAnswer),
        ("Subject", types.DoctorSubject),
        ("Finding", types.DoctorFinding),
    ],
)
def test_every_field_of_a_json_record_is_documented_and_no_other(heading: str, record: type) -> None:
    chapter = COMMAND_PAGE.read_text().partition(f"### {heading}\n")[2].partition("\n### ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", chapter, re.MULTILINE)
    documented = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert documented == {field.name for field in dataclasses.fields(record)}


def test_every_finding_of_adopt_is_documented_and_no_other() -> None:
    chapter = COMMAND_PAGE.read_text().partition("| code | left |")[2].partition("\n### ")[0]
    cells = re.findall(r"^\| (`[^|]+) \| (?:yes|no) \|", chapter, re.MULTILINE)
    assert {code for cell in cells for code in re.findall(r"`([a-z-]+)`", cell)} == set(Trouble)


def test_every_code_of_doctor_is_documented_below_its_severity_and_no_other() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (error|warning) \|", text_of("docs/doctor.md"), re.MULTILINE)
    known = {code.value: Finding(code, "", "").severity.value for code in Code}
    assert len(rows) == len(known)
    assert dict(rows) == known


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_relative_links_lead_somewhere(path: Path) -> None:
    links = [link for link in _LINK.findall(path.read_text()) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


def test_the_readme_names_the_packages_that_are_installed() -> None:
    readme, makefile, project = text_of("README.md"), text_of("Makefile"), text_of("pyproject.toml")
    debian = re.findall(r"^DEBIAN_(?:PRODUCT|LAB) = ((?:.*\\\n)*.+)", makefile, re.MULTILINE)
    packages = {name for line in debian for name in line.replace("\\", " ").split()}
    lists = re.findall(r"^(?:lab|test) = \[(.+)\]", project, re.MULTILINE)
    packages |= {re.split("[>=]", name)[0] for line in lists for name in re.findall(r'"([^"]+)"', line)}
    assert {"python3-libvirt", "mdevctl", "qemu-system-misc", "mypy"} <= packages
    assert not {name for name in packages if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", readme)}


def test_the_architecture_draws_the_rooms_as_they_are_enforced() -> None:
    rules = ast.parse((ROOT / "tests/unit/test_rules.py").read_text())
    table = next(
        ast.literal_eval(node.value)
        for node in rules.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MAY_IMPORT"
    )
    rows = dict(re.findall(r"^ ([a-z]+) {2,}(.+?)  ", text_of("docs/architecture.md"), re.MULTILINE))
    drawn = {room: set(re.sub(r"\(.*?\)", "", may).split()) for room, may in rows.items() if room in table}
    assert drawn == table
