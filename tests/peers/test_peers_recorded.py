# SPDX-License-Identifier: Apache-2.0
"""What real tools printed on a real kernel, they print on the emulated one with the same machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from newer_stack import NewerStack
from recording import host_file, normalised, read_session

from vfioapd.lab.harness import running_lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from recording import Line

    from vfioapd.lab.harness import Result

# Starts its own udevd, which the lab has already.
STARTS_UDEVD = "systemd-udevd --daemon"
SNAPSHOT = """
import json
from pathlib import Path
from vfioapd.emulator.faces import Mounted
from vfioapd.emulator.snapshot import snapshot
print(json.dumps(snapshot(Mounted(Path("/run/vfioap-lab/kernel")))))
"""


@pytest.fixture(scope="module")
def session() -> list[Line]:
    return read_session()


@pytest.fixture
def recorded(session: list[Line], ibm_tools: Path, newer_root: Path, tmp_path: Path) -> Iterator[NewerStack]:
    """The recorded machine with the recorded versions of the tools."""
    file = tmp_path / "recorded.toml"
    file.write_text(host_file(session[0]))
    with running_lab(str(file), "--no-libvirt") as lab:
        yield NewerStack(lab, newer_root)


def test_every_line_of_every_tool_is_as_recorded(session: list[Line], recorded: NewerStack) -> None:
    compared = 0
    for line in session:
        if line["op"] == "shell" and STARTS_UDEVD not in line["command"]:
            result = recorded.shell(f"set +e\n{line['command']}", check=False)
            assert _said(result) == _recorded(line), f"{line['seq']}: {line['command']}"
            compared += 1
        elif line["op"] == "write":
            _write(recorded, line)
        elif line["op"] == "state":
            assert _state(recorded) == line["state"], f"{line['seq']}: state"
    assert compared == 78


def _said(result: Result) -> tuple[int, str, str]:
    return result.returncode, normalised(result.stdout), normalised(result.stderr)


def _recorded(line: Line) -> tuple[int, str, str]:
    return line["rc"], normalised(line["stdout"]), normalised(line["stderr"])


def _write(recorded: NewerStack, line: Line) -> None:
    script = f"import os\nos.write(os.open({line['path']!r}, os.O_WRONLY), {line['data']!r}.encode())"
    result = recorded.python(script)
    error = result.stderr.splitlines()[-1] if result.returncode else "[Errno 0]"
    assert f"[Errno {line['errno']}]" in error, f"{line['seq']}: {error}"


def _state(recorded: NewerStack) -> Line:
    state = json.loads(recorded.python(SNAPSHOT).stdout)
    assert isinstance(state, dict)
    return state
