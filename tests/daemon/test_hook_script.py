# SPDX-License-Identifier: Apache-2.0
"""The hook as libvirt runs it: a program with four arguments and a guest's XML on standard input.

VFIOAPD_TEST_HOOKS sets how many runs are made beside a daemon that is of no use (1,000 for a release).
"""

from __future__ import annotations

import ast
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from doubles import RunningServer, uuid_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import Rig

HOOK = Path(__file__).parents[2] / "etc/libvirt/hooks/qemu.d/vfioapd"
RUNS = int(os.environ.get("VFIOAPD_TEST_HOOKS", "72"))
VAULT = uuid_of("vault")

# Every call that libvirt makes or that its documentation names, and some that it may make one day.
OTHERS = [
    ("start", "begin"),
    ("started", "begin"),
    ("stopped", "end"),
    ("reconnect", "begin"),
    ("migrate", "begin"),
    ("restore", "begin"),
    ("attach", "begin"),
    ("prepare", "end"),
    ("release", "begin"),
    ("nonsense", "begin"),
    ("", ""),
]

STATES = ["hung", "dead", "missing", "hangs up", "talks nonsense", "old"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="libvirt runs the hook as root")


def guest_xml(*uuids: object) -> str:
    devices = "".join(
        f"<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-ap'>"
        f"<source><address uuid='{uuid}'/></source></hostdev>"
        for uuid in uuids
    )
    return f"<domain type='kvm' id='1'><name>bastion</name><devices>{devices}</devices></domain>"


def run(
    *words: str, xml: str | bytes = "", sock: str = "/nonexistent/sock", timeout: float = 20
) -> tuple[subprocess.CompletedProcess[bytes], float]:
    """As libvirt does: root, a bare environment. With the seconds it took."""
    started = time.monotonic()
    done = subprocess.run(
        [str(HOOK), *words],
        input=xml if isinstance(xml, bytes) else xml.encode(),
        capture_output=True,
        env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin", "VFIOAPD_SOCKET": sock},
        timeout=timeout,
        check=False,
    )
    return done, time.monotonic() - started


@contextmanager
def hung_daemon(path: Path) -> Iterator[str]:
    """A process that listens and is stopped, so that connections are taken and nothing is answered."""
    script = (
        "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen(4096)\n"
        "print('up', flush=True)\ns.accept()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGSTOP)
    try:
        yield str(path)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def deaf_daemon(path: Path, answer: bytes | None) -> Iterator[str]:
    """A socket whose owner hangs up, or says something that is no varlink, as a daemon that ends would."""
    import threading

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.recv(1 << 16)
                    if answer:
                        client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield str(path)
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("operation", "stage"), OTHERS)
def test_all_but_prepare_ends_well_at_once_whatever_the_daemon_does(
    fast_path: Path, operation: str, stage: str
) -> None:
    with hung_daemon(fast_path / "sock") as sock:
        for where in (sock, "/nonexistent/sock"):
            done, seconds = run("bastion", operation, stage, "-", xml=guest_xml(VAULT), sock=where)
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
            assert seconds < 1


@pytest.mark.parametrize("words", [(), ("bastion",), ("bastion", "prepare"), ("bastion", "reconnect")])
def test_missing_arguments_end_well(words: tuple[str, ...]) -> None:
    done, _ = run(*words, xml=guest_xml(VAULT))
    assert (done.returncode, done.stdout) == (0, b"")


def test_no_call_but_prepare_ever_fails_or_takes_a_second_in_any_state_of_the_daemon(fast_path: Path) -> None:
    """Every call with every state, round after round, until so many runs were made."""
    calls = itertools.product(STATES, [*OTHERS, ("release", "end")])
    with ExitStack() as stack:
        socks = {state: stack.enter_context(daemon_in(state, fast_path / state)) for state in STATES}
        for state, call in itertools.islice(itertools.cycle(calls), RUNS):
            done, seconds = run("bastion", *call, "-", xml=guest_xml(VAULT), sock=socks[state])
            assert (done.returncode, done.stdout) == (0, b""), f"{call}, daemon {state}"
            assert seconds < 1, f"{call}, daemon {state}"


@pytest.mark.parametrize("state", STATES)
def test_release_never_fails_and_takes_less_than_a_second(fast_path: Path, state: str) -> None:
    with daemon_in(state, fast_path / "sock") as sock:
        done, seconds = run("bastion", "release", "end", "-", xml=guest_xml(VAULT), sock=sock)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert seconds < 1


@pytest.mark.parametrize("state", STATES)
def test_prepare_refuses_in_one_sentence_when_the_device_is_missing_and_nobody_can_make_it(
    fast_path: Path, state: str
) -> None:
    with daemon_in(state, fast_path / "sock") as sock:
        done, seconds = run("bastion", "prepare", "begin", "-", xml=guest_xml(VAULT), sock=sock)
    assert done.returncode == 1
    assert done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1
    assert str(VAULT) in lines[0]
    assert "systemctl start vfioapd" in lines[0]
    assert seconds < 7


@contextmanager
def daemon_in(state: str, path: Path) -> Iterator[str]:
    if state == "hung":
        with hung_daemon(path) as sock:
            yield sock
    elif state == "missing":
        yield "/nonexistent/sock"
    elif state == "dead":
        with socket.socket(socket.AF_UNIX) as server:  # bound, and nobody listens
            server.bind(str(path))
            yield str(path)
    else:
        unknown = b'{"error": "org.varlink.service.MethodNotFound", "parameters": {}}\0'
        answer = {"hangs up": None, "talks nonsense": b"HTTP/1.1 200 OK\0", "old": unknown}[state]
        with deaf_daemon(path, answer) as sock:
            yield sock


def test_prepare_passes_with_a_dead_daemon_when_the_device_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = load_hook()
    (tmp_path / str(VAULT)).mkdir()
    hook["DEVICES"] = str(tmp_path)
    monkeypatch.setenv("VFIOAPD_SOCKET", "/nonexistent/sock")
    hook["_document"] = lambda: guest_xml(VAULT).encode()
    assert hook["_prepare"]("bastion") == 0
    hook["_document"] = lambda: guest_xml(VAULT, uuid_of("other")).encode()
    assert hook["_prepare"]("bastion") == 1


def load_hook() -> dict[str, Callable[..., object] | str | object]:
    found: dict[str, object] = {"__name__": "hook"}
    exec(compile(HOOK.read_text(), str(HOOK), "exec"), found)
    return found


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"not XML at all",
        b"<domain type='kvm'><devices/></domain>",
        b"<domain><devices><hostdev type='mdev' model='vfio-pci'><source><address uuid='x'/></source>"
        b"</hostdev></devices></domain>",
        b"<domain>vfio-ap",
        b"<domain><description>vfio-ap</description><devices/></domain>",
        b"\xff\xfe vfio-ap",
    ],
)
def test_a_guest_without_vfio_ap_never_reaches_the_daemon(fast_path: Path, xml: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(fast_path / "sock"))
        server.listen()
        server.setblocking(False)  # noqa: FBT003 (socket's own signature)
        for words in (("prepare", "begin"), ("release", "end")):
            done, seconds = run("plain", *words, "-", xml=xml, sock=str(fast_path / "sock"))
            assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
            assert seconds < 1
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_standard_input_that_never_ends_does_not_hold_up_a_release(fast_path: Path) -> None:
    reader, writer = os.pipe()
    started = time.monotonic()
    try:
        done = subprocess.run([str(HOOK), "g", "release", "end", "-"], stdin=reader, timeout=10, check=False)
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 0
    assert time.monotonic() - started < 1


def test_somebody_who_is_not_root_passes(fast_path: Path) -> None:
    script = fast_path / "hook"
    script.write_bytes(HOOK.read_bytes())
    script.chmod(0o755)
    fast_path.chmod(0o755)
    done = subprocess.run(
        [str(script), "g", "prepare", "begin", "-"],
        input=guest_xml(VAULT).encode(),
        capture_output=True,
        user=65534,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_hook_is_an_executable_program_of_the_standard_library_alone() -> None:
    assert HOOK.stat().st_mode & 0o111 == 0o111
    tree = ast.parse(HOOK.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)
    assert not names & {"subprocess", "multiprocessing", "libvirt"}, "no children, no libvirt"
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert top == {"os", "sys"}, "what every start of every guest pays for"


@pytest.mark.parametrize(
    "command",
    [
        ["mypy", "--strict", "--scripts-are-modules", str(HOOK)],
        ["ruff", "check", "--stdin-filename", "hook.py", "-"],
        ["ruff", "format", "--check", "--stdin-filename", "hook.py", "-"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_the_linters_see_the_hook_too(command: list[str]) -> None:
    tool = Path(sys.executable).with_name(command[0])
    with HOOK.open() as source:
        done = subprocess.run(
            [tool, *command[1:]],
            stdin=source,
            capture_output=True,
            text=True,
            check=False,
            cwd=HOOK.parents[4],
        )
    assert done.returncode == 0, done.stdout + done.stderr


# --- with the real server


@pytest.fixture
def asked(rig: Rig) -> Iterator[Callable[..., subprocess.CompletedProcess[bytes]]]:
    """Run the hook against the real server."""
    rig.restore()
    with RunningServer(rig) as server:

        def ask(guest: str, operation: str, *uuids: object) -> subprocess.CompletedProcess[bytes]:
            stage = {"prepare": "begin", "release": "end"}[operation]
            return run(guest, operation, stage, "-", xml=guest_xml(*uuids), sock=server.rw)[0]

        yield ask


def test_the_matrix_of_a_guest_is_started_before_it(rig: Rig, asked: Callable[..., object]) -> None:
    rig.define("vault", queues="00.000d,02.000d")
    rig.stop("vault")
    done = asked("bastion", "prepare", VAULT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")  # type: ignore[attr-defined]
    assert rig.service.show("vault").state == "started"


def test_a_refusal_is_one_line_that_names_guest_queues_and_what_to_ask_next(
    rig: Rig, asked: Callable[..., object]
) -> None:
    rig.define("vault", queues="00.000d,02.000d")
    rig.kernel.play({"action": "remove-adapter", "adapter": 2})
    done = asked("bastion", "prepare", VAULT)
    assert done.returncode == 1  # type: ignore[attr-defined]
    assert done.stdout == b""  # type: ignore[attr-defined]
    assert done.stderr.decode() == (  # type: ignore[attr-defined]
        "vfioapd: guest bastion is not started: it requires all of the queues of matrix vault, and 02.000d"
        " cannot be had (vfioapctl why vault)\n"
    )


def test_devices_of_others_are_none_of_our_business(rig: Rig, asked: Callable[..., object]) -> None:
    before = rig.state()
    done = asked("bastion", "prepare", uuid_of("stranger"))
    assert (done.returncode, done.stderr) == (0, b"")  # type: ignore[attr-defined]
    assert rig.state() == before
