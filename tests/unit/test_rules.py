# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, each of them a test: layers, sizes, headers, linters, types."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vfioapd"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL_PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "bench").rglob("*.py"))]

# Which rooms a room may import from. docs/architecture.md draws the same.
MAY_IMPORT = {
    "domain": set(),
    "plan": {"domain"},
    "engine": {"domain", "plan"},
    "backend": {"domain", "plan", "engine"},
    "store": {"domain", "plan", "engine"},
    "virt": {"domain", "plan", "engine"},
    "udev": {"domain"},
    "rpc": {"domain"},
    "daemon": {"domain", "plan", "engine", "backend", "store", "virt", "udev", "rpc"},
    "cli": {"rpc"},
    "emulator": set(),  # a mistake in shared code would hide itself from the tests
    "lab": {"emulator"},
}

# Packages that stay in one room (or file) each.
HOMES = {
    "libvirt": {"virt"},
    "lxml": {"virt"},
    "tomlkit": {"store"},
    "systemd": {"daemon"},
    "pyudev": {"udev"},
    "asyncvarlink": {"rpc", "daemon"},
}

PURE = ("domain", "plan")
NOT_PURE = {
    "os",
    "io",
    "sys",
    "pathlib",
    "logging",
    "subprocess",
    "socket",
    "time",
    "datetime",
    "random",
    "asyncio",
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent != PACKAGE], ids=named)
def test_a_room_imports_only_rooms_it_may(path: Path) -> None:
    rooms = {
        name.split(".")[1] for name in imports(path) if name.startswith("vfioapd.") and name.count(".") >= 1
    }
    strangers = {name for name in rooms if (PACKAGE / name).is_dir()} - MAY_IMPORT[room(path)] - {room(path)}
    assert not strangers


@pytest.mark.parametrize("path", [p for p in SOURCES if room(p) == "cli"], ids=named)
def test_the_command_line_imports_the_client_and_nothing_else_of_rpc(path: Path) -> None:
    assert not {
        n for n in imports(path) if n.startswith("vfioapd.rpc.") and not n.startswith("vfioapd.rpc.client")
    }


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent != PACKAGE], ids=named)
def test_untyped_and_foreign_packages_stay_in_their_rooms(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imports(path)}
    assert not {top for top in tops & set(HOMES) if room(path) not in HOMES[top]}


@pytest.mark.parametrize("path", [p for p in SOURCES if room(p) in PURE], ids=named)
def test_pure_rooms_touch_neither_files_nor_clock(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(path)} & NOT_PURE


@pytest.mark.parametrize("path", ALL_PYTHON, ids=named)
def test_every_file_says_its_licence_first(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert "# SPDX-License-Identifier: Apache-2.0" in lines[:2]


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_functions_are_short() -> None:
    lengths = {
        f"{named(path)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: length for name, length in lengths.items() if length > 60}
    assert statistics.median(lengths.values()) < 10
    assert statistics.quantiles(lengths.values(), n=10)[-1] < 35


def test_nothing_names_a_machine_or_a_registry() -> None:
    words = ("/wo" + "rk/", "deb.deb" + "ian.org", "py" + "pi.org", "file:///o" + "pt")
    tracked = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(tracked, cwd=ROOT, capture_output=True, text=True, check=True)
    found = [
        f"{name}: {word}"
        for name in files.stdout.split()
        for word in words
        if (ROOT / name).is_file() and word in (ROOT / name).read_bytes().decode(errors="replace")
    ]
    assert not found


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy", "vfioapd"],
        ["codespell", "vfioapd", "tests", "docs", "bench", "README.md"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_the_linters_are_content(command: list[str]) -> None:
    tool = Path(sys.executable).with_name(command[0])
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
