# SPDX-License-Identifier: Apache-2.0
"""vfioapctl from end to end: a command line, the real server, and what stands on both outputs."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from doubles import RunningServer, uuid_of

from vfioapd.cli import exits, main
from vfioapd.domain.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from doubles import Rig

VAULT = ("define", "vault", "--queues", "00.000d,02.000d", "--uuid", str(uuid_of("vault")))


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)


Cli = "Callable[..., Result]"


@pytest.fixture
def cli(
    rig: Rig, server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Run one command against the server."""
    monkeypatch.setenv("VFIOAPD_SOCKET", server.rw)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return runner(capsys)


def runner(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run(*words: str) -> Result:
        capsys.readouterr()
        status = main.main(list(words))
        taken = capsys.readouterr()
        return Result(status, taken.out, taken.err)

    return run


@pytest.fixture
def alone(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run one command without a server."""
    return runner(capsys)


def test_every_verb_works_and_says_what_was_done(rig: Rig, cli: Callable[..., Result]) -> None:
    rig.guests.add("bastion", running=True)
    for words, expected in (
        (VAULT, "create mdev"),
        (("status",), "vault"),
        (("queues",), "02.000d"),
        (("show", "vault"), "0 (0x00), 2 (0x02)"),
        (("xml", "nodedev", "vault"), "<device>"),
        (("xml", "hostdev", "vault"), "<hostdev"),
        (("attach", "vault", "bastion"), "attach"),
        (("detach", "vault", "bastion", "--live"), "(live)"),
        (("detach", "vault", "bastion", "--config"), "(config)"),
        (("edit", "vault", "--domains", "13,17"), "02.0011"),
        (("edit", "vault", "--queues", "00.000d,02.000d"), "set matrix"),
        (("stop", "vault"), "remove mdev"),
        (("start", "vault"), "set matrix"),
        (("plan",), "nothing to do"),
        (("apply",), "nothing to do"),
        (("history",), "define vault"),
        (("diff", "1"), ""),
        (("restore", "1"), ""),
        (("undefine", "vault"), "remove mdev"),
        (("confirm",), ""),
    ):
        done = cli(*words)
        assert done.status == exits.OK, (words, done)
        assert expected in done.out, words
        assert done.err == "", "results alone on standard output, nothing else anywhere"
        assert "\033" not in done.out, "no colour when it is not a terminal"
    assert rig.guests.rooms["bastion"].config == set()


def test_a_script_learns_from_the_exit_status_whether_the_host_is_as_defined(
    rig: Rig, cli: Callable[..., Result]
) -> None:
    assert cli(*VAULT).status == exits.OK
    assert cli("status", "--check").status == exits.OK
    device = f"devices/vfio_ap/matrix/{rig.service.show('vault').uuid}"
    rig.kernel.sysfs.write(f"{device}/unassign_adapter", "2\n")
    checked = cli("status", "--check")
    assert checked.status == exits.UNHEALTHY
    assert "problem: matrix vault: " in checked.out
    assert cli("status", "--check", "--json").status == exits.UNHEALTHY
    assert cli("status").status == exits.OK, "the question was answered"


def test_every_verb_that_changes_something_is_tried_here() -> None:
    tried = {"define", "edit", "undefine", "start", "stop", "attach", "detach", "apply", "restore", "confirm"}
    assert set(main.VERBS) - set(main.READS) == tried


def test_doing_it_twice_is_success_with_nothing_to_do(rig: Rig, cli: Callable[..., Result]) -> None:
    rig.guests.add("bastion", running=True)
    cli(*VAULT)
    for words in (("attach", "vault", "bastion"), ("detach", "vault", "bastion"), ("stop", "vault")):
        assert "nothing to do" not in cli(*words).out
        again = cli(*words)
        assert again.status == exits.OK
        assert "nothing to do" in again.out


KEYS = {
    "status": """version host_file libvirt vfio_ap ap_config complete apmask aqmask keep queues_total
        queues_host queues_free queues_guests matrices foreign problems""",
    "show vault": """name uuid adapters domains control_domains queues start require state guest live config
        guest_matrix problem""",
    "stop vault": """name made steps guests handed_over collateral returned victims least confirm_within""",
    "plan": """name made steps guests handed_over collateral returned victims least confirm_within""",
}


def test_a_diff_against_what_is_in_force_prints_nothing_at_all(cli: Callable[..., Result]) -> None:
    assert cli(*VAULT).status == exits.OK
    assert cli("diff", "1") == Result(exits.OK, "", "")
    assert cli("diff", "1", "--json").out == '""\n'


@pytest.mark.parametrize("words", KEYS)
def test_the_keys_of_json_are_those_that_are_documented(
    rig: Rig, cli: Callable[..., Result], words: str
) -> None:
    rig.define("vault", queues="00.000d,02.000d")
    done = cli(*words.split(), "--json")
    assert done.status == exits.OK
    assert set(done.json) == set(KEYS[words].split())  # type: ignore[arg-type]


def test_lists_in_json_have_documented_keys_too(rig: Rig, cli: Callable[..., Result]) -> None:
    rig.define("vault", queues="00.000d,02.000d")
    rows = cli("queues", "--json").json
    history = cli("history", "--json").json
    assert isinstance(rows, list)
    assert isinstance(history, list)
    for found, keys in (
        (rows, "queue adapter domain type mode state driver owner guest keep"),
        (history, "number time user program reason steps"),
    ):
        assert {" ".join(row) for row in found} == {keys}


def test_xml_in_json_is_a_text(rig: Rig, cli: Callable[..., Result]) -> None:
    rig.define("vault", queues="00.000d")
    assert "<hostdev" in str(cli("xml", "hostdev", "vault", "--json").json)


REFUSED = [
    ("define x --queues 5.17", "bad-queue"),
    ("define x --adapters 5 --domains 0011", "bad-number"),
    ("define x --adapters 071 --domains 17", "bad-number"),
    ("define x", "incomplete-matrix"),
    ("define x --adapters 5", "incomplete-matrix"),
    ("define x --queues 05.0011 --adapters 5", "bad-request"),
    ("define x --queues 05.0011,07.000d", "not-a-matrix"),
    ("define -- -x --queues 05.0011", None),
    ("define x/y --queues 05.0011", "bad-name"),
    ("define x --queues 05.0011 --uuid 5", "bad-uuid"),
    ("define x --adapters 0 --domains 11", "queue-not-on-host"),
    ("define x --queues 00.000d", "queue-taken"),
    ("define vault --queues 05.0011", "name-taken"),
    ("define x --queues 05.0011 --guest ghost", "unknown-guest"),
    ("undefine ghost", "unknown-matrix"),
    ("start ghost", "unknown-matrix"),
    ("stop ghost", "unknown-matrix"),
    ("show ghost", "unknown-matrix"),
    ("xml hostdev ghost", "unknown-matrix"),
    ("attach vault ghost", "unknown-guest"),
    ("detach vault ghost", "unknown-guest"),
    ("attach vault idle --live", "guest-not-running"),
    ("restore 99", "bad-request"),
    ("diff 99", "bad-request"),
]


@pytest.mark.parametrize(
    ("line", "problem"), [case for case in REFUSED if case[1]], ids=lambda case: str(case)
)
def test_a_refusal_is_one_sentence_with_its_hint_below_and_its_own_exit_status(
    rig: Rig, cli: Callable[..., Result], line: str, problem: str
) -> None:
    rig.guests.add("idle")
    rig.define("vault", queues="00.000d,02.000d")
    before = rig.state()
    done = cli(*line.split())
    assert (done.status, done.out) == (exits.REFUSED, "")
    first, *hint = done.err.splitlines()
    assert first.startswith("vfioapctl: ")
    assert first.endswith(f" [{problem}]")
    assert len(hint) == 1
    assert hint[0][0] + hint[0][-1] == "()"
    told = cli(*line.split(), "--json")
    assert told.status == exits.REFUSED
    assert isinstance(told.json, dict)
    assert told.json["problem"] == problem
    assert told.json["sentence"] in first
    assert f"({told.json['hint']})" == hint[0]
    assert rig.state() == before


STATUS = {
    exits.FAILED: ("step-failed", "verify-failed", "internal-error", "write-hangs"),
    exits.UNAVAILABLE: (
        "not-running",
        "ap-bus-missing",
        "vfio-ap-missing",
        "libvirt-unavailable",
        "lock-held",
    ),
    exits.PERMISSION: ("no-permission", "read-only"),
}


@pytest.mark.parametrize("problem", [problem.value for problem in Problem])
def test_every_problem_has_its_exit_status(problem: str) -> None:
    expected = next((status for status, problems in STATUS.items() if problem in problems), exits.REFUSED)
    assert exits.exit_for(problem) == expected


@pytest.mark.parametrize(
    "line", ["", "explode", "status --what", "define", "xml picture vault", "restore one"]
)
def test_a_command_line_that_cannot_be_read_is_status_2(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(line.split())
    assert ended.value.code == exits.USAGE
    taken = capsys.readouterr()
    assert taken.out == ""
    assert "usage: vfioapctl" in taken.err


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([verb, "--help"] for verb in main.VERBS)])
def test_help_needs_no_daemon(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(words)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(("usage: vfioapctl", "vfioapctl "))


def test_a_daemon_that_does_not_run_is_said_with_what_starts_it(
    alone: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VFIOAPD_SOCKET", str(tmp_path / "socket"))
    for words in (("status",), VAULT, ("queues", "--json")):
        done = alone(*words)
        assert done.status == exits.UNAVAILABLE
        assert "[not-running]" in done.err
        assert "systemctl start vfioapd" in done.err


def test_a_caller_without_permission_is_told_who_has_it(
    alone: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(self: object, path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("VFIOAPD_SOCKET", str(tmp_path / "socket"))
    monkeypatch.setattr("vfioapd.rpc.client.socket.socket.connect", refuse)
    done = alone("stop", "vault")
    assert done.status == exits.PERMISSION
    assert "group libvirt" in done.err


def test_a_daemon_that_dies_under_a_change_is_never_taken_for_success(
    alone: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")
    monkeypatch.setenv("VFIOAPD_SOCKET", path)
    for large in (False, True):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            killer = threading.Thread(target=lambda one=listener: one.accept()[0].close())
            killer.start()
            done = alone("define", "vault", "--queues", "00.000d" * (200_000 if large else 1))
            killer.join()
        os.unlink(path)
        assert done.status == exits.UNAVAILABLE
        assert "ended before it answered" in done.err
        assert done.out == ""


def test_reads_go_to_the_read_only_socket_and_changes_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, str]] = []

    def note(path: str, method: str, **parameters: object) -> dict[str, object]:
        called.append((path.rpartition("/")[2], method))
        return dict.fromkeys(("status", "queues", "matrix", "xml", "change", "revisions", "diff"), "")

    monkeypatch.delenv("VFIOAPD_SOCKET", raising=False)
    monkeypatch.setattr(main, "call", note)
    lines = (
        "status",
        "queues",
        "show a",
        "xml hostdev a",
        "history",
        "diff 1",
        "plan",
        "stop a",
        "attach a b",
    )
    for line in lines:
        main.main(line.split())
    changes = {method for path, method in called if path == "vfioapd.sock"}
    assert changes == {"Stop", "Attach"}
    assert {path for path, _ in called} == {"vfioapd.sock", "vfioapd-ro.sock"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colour_unless_it_asks_for_none(
    rig: Rig, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.define("vault", queues="00.000d")
    for no_colour in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_colour)
        screen = Terminal()
        monkeypatch.setattr(sys, "stdout", screen)
        main.main(["status"])
        assert ("\033[" in screen.getvalue()) is not bool(no_colour)


def test_a_file_is_planned_and_applied_from_a_path_and_from_standard_input(
    rig: Rig, cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.define("vault", queues="00.000d")
    text = rig.places.host_file.read_text().replace("[0x000d]", "[0x0011]")
    (tmp_path / "new.toml").write_text(text)
    before = rig.state()
    planned = cli("plan", str(tmp_path / "new.toml"))
    assert "00.0011" in planned.out
    assert rig.state() == before
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert cli("apply", "-", "--dry-run").status == exits.OK
    assert rig.state() == before
    assert cli("apply", str(tmp_path / "new.toml"), "--reason", "night shift").status == exits.OK
    assert rig.places.host_file.read_text() == text
    assert "night shift" in cli("history").out
    missing = cli("plan", str(tmp_path / "missing.toml"))
    assert missing.status == exits.REFUSED
    assert "missing.toml cannot be read: No such file or directory [" in missing.err


def test_a_mistake_is_told_to_be_in_the_file_that_was_named(
    cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in the host.toml that it would become."""
    draft = tmp_path / "draft.toml"
    draft.write_text("version = 1\n[hosts]\n")
    for verb in ("plan", "apply"):
        assert cli(verb, str(draft)).err.startswith(f"vfioapctl: {draft}:2: ")
    monkeypatch.setattr(sys, "stdin", io.StringIO("version = 2\n"))
    assert cli("plan", "-").err.startswith("vfioapctl: standard input:1: version: must be 1")


# --- a process of its own


def command(server: RunningServer, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vfioapd.cli.main", *words],
        env={**os.environ, "VFIOAPD_SOCKET": server.rw, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


FORBIDDEN = {
    "asyncio",
    "dataclasses",
    "inspect",
    "lxml",
    "libvirt",
    "pyudev",
    "ssl",
    "typing_extensions",
    "vfioapd.domain",
    "tomlkit",
}


@pytest.mark.parametrize("words", ["status", "queues", "history", "plan"])
def test_a_read_imports_next_to_nothing(server: RunningServer, words: str) -> None:
    script = (
        "import sys; from vfioapd.cli.main import main; status = main(sys.argv[1:]);"
        "print(*sys.modules, sep='\\n', file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, words],
        env={**os.environ, "VFIOAPD_SOCKET": server.rw},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == exits.OK, done.stderr
    assert not FORBIDDEN & set(done.stderr.split())
    assert len(done.stderr.split()) < 110


def test_a_reader_that_has_seen_enough_is_no_error(server: RunningServer) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vfioapd.cli.main", "queues"],
        env={**os.environ, "VFIOAPD_SOCKET": server.rw},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(10) == exits.OK


def test_an_answer_that_cannot_be_printed_is_told_in_one_sentence(rig: Rig, server: RunningServer) -> None:
    """A change is made all the same, and whoever asked must not take it for one that failed."""
    program = [sys.executable, "-m", "vfioapd.cli.main", *VAULT]
    environment = {**os.environ, "VFIOAPD_SOCKET": server.rw}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            program, env=environment, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )
    assert done.returncode == exits.FAILED
    assert done.stderr == (
        "vfioapctl: the daemon has answered, but its answer cannot be printed: No space left on device;"
        " vfioapctl history shows whether something was changed\n"
    )
    assert rig.service.show("vault").state == "started"


def test_a_terminal_without_unicode_gets_a_readable_answer(rig: Rig, server: RunningServer) -> None:
    rig.define("wide", adapters="0-2", domains="13,17", start="manual", guest=add_guest(rig, "Bücher"))
    done = command(server, "status", PYTHONIOENCODING="ascii")
    assert done.returncode == exits.OK, done.stderr
    assert "wide" in done.stdout
    told = command(server, "show", "wide", "--json", PYTHONIOENCODING="latin-1")
    assert json.loads(told.stdout)["guest"] == "Bücher"


def add_guest(rig: Rig, name: str) -> str:
    rig.guests.add(name)
    return name


def test_an_impatient_admin_is_told_that_the_daemon_goes_on(
    alone: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "call", interrupt)
    done = alone("stop", "vault")
    assert (done.status, done.out) == (exits.INTERRUPTED, "")
    assert "the daemon finishes" in done.err
