# SPDX-License-Identifier: Apache-2.0
"""The real server on real sockets, and the real client."""

from __future__ import annotations

import asyncio
import grp
import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from doubles import RunningServer, uuid_of

from vfioapd.cli.main import READS
from vfioapd.domain.problems import Problem, Refused
from vfioapd.rpc.client import CallError, call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from doubles import Rig

    from vfioapd.rpc.interface import Asked

VAULT = {"name": "vault", "queues": "00.000d,02.000d", "uuid": str(uuid_of("vault"))}

CHANGES: list[tuple[str, dict[str, object]]] = [
    ("Define", VAULT),
    ("Edit", {"name": "vault", "require": "any"}),
    ("Undefine", {"names": ["vault"]}),
    ("Start", {"names": ["vault"]}),
    ("Stop", {"names": ["vault"]}),
    ("Attach", {"name": "vault", "guest": "bastion"}),
    ("Detach", {"name": "vault", "guest": "bastion"}),
    ("Apply", {}),
    ("Restore", {"revision": 1}),
    ("Confirm", {}),
    ("HookPrepare", {"guest": "bastion", "uuids": [str(uuid_of("vault"))]}),
    ("HookRelease", {"guest": "bastion", "uuids": [str(uuid_of("vault"))]}),
    ("HookPrepare", {"guest": "bastion", "uuids": []}),
    ("HookRelease", {"guest": "bastion", "uuids": []}),
]


def exchange(path: str, *messages: bytes) -> bytes:
    """What a peer that speaks for itself is answered until the server hangs up or has answered once."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(path)
        for message in messages:
            sock.sendall(message)
        answer = b""
        while not answer.endswith(b"\0"):
            chunk = sock.recv(65536)
            if not chunk:
                break
            answer += chunk
        return answer


def test_a_matrix_goes_through_its_whole_life_over_the_socket(rig: Rig, server: RunningServer) -> None:
    rig.guests.add("bastion", running=True)
    for method, parameters, last in (
        ("Define", VAULT, "host.toml"),
        ("Attach", {"name": "vault", "guest": "bastion"}, "host.toml"),
        ("Detach", {"name": "vault", "guest": "bastion"}, "host.toml"),
        ("Stop", {"names": ["vault"]}, ""),
        ("Start", {"names": ["vault"]}, ""),
        ("Undefine", {"names": ["vault"]}, "host.toml"),
    ):
        change = call(server.rw, method, **parameters)["change"]
        assert isinstance(change, dict)
        assert change["steps"], method
        assert change["made"] is True
        assert last in change["steps"][-1]
    assert call(server.ro, "Status")["status"]["matrices"] == []


def test_reads_answer_on_both_sockets_alike(rig: Rig, server: RunningServer) -> None:
    rig.define(**VAULT)
    for method, parameters in (
        ("Status", {}),
        ("Queues", {}),
        ("Show", {"name": "vault"}),
        ("Xml", {"name": "vault", "kind": "nodedev"}),
        ("Xml", {"name": "vault", "kind": "hostdev"}),
        ("History", {}),
        ("Diff", {"revision": 1}),
        ("Plan", {}),
    ):
        answer = call(server.ro, method, **parameters)
        assert answer == call(server.rw, method, **parameters)
        assert len(answer) == 1
    rows = call(server.ro, "Queues")["queues"]
    assert isinstance(rows, list)
    assert len(rows) == 16
    assert str(uuid_of("vault")) in str(call(server.ro, "Xml", name="vault", kind="hostdev")["xml"])


@pytest.mark.parametrize(("method", "parameters"), CHANGES, ids=[method for method, _ in CHANGES])
def test_the_read_only_socket_refuses_every_change_and_nothing_is_changed(
    rig: Rig, server: RunningServer, method: str, parameters: dict[str, object]
) -> None:
    before = rig.state()
    with pytest.raises(CallError) as error:
        call(server.ro, method, **parameters)
    assert error.value.problem == Problem.READ_ONLY
    assert "vfioapd.sock" in str(error.value.hint)
    assert rig.state() == before


def test_every_change_of_the_interface_is_tried_on_the_read_only_socket(server: RunningServer) -> None:
    description = json.dumps(
        json.loads(
            exchange(
                server.ro,
                b'{"method":"org.varlink.service.GetInterfaceDescription",'
                b'"parameters":{"interface":"org.vfioapd.Host"}}\0',
            )[:-1]
        )
    )
    methods = {word.split("(")[0] for word in description.replace("\\n", "\n").split("method ")[1:]}
    reads = {*(verb.capitalize() for verb in READS), "Follow"}
    assert methods - reads == {method for method, _ in CHANGES}


def test_a_refusal_carries_code_sentence_hint_queues_and_owners(rig: Rig, server: RunningServer) -> None:
    rig.define(**VAULT)
    with pytest.raises(CallError) as error:
        call(server.rw, "Define", name="thief", queues="00.000d")
    assert error.value.problem == Problem.QUEUE_TAKEN
    assert "matrix vault" in str(error.value)
    assert error.value.hint
    assert error.value.details == {"queues": ["00.000d"], "owners": ["matrix vault"]}


class Recorder:
    """A service that keeps who asked."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def undefine(self, names: list[str], asked: Asked) -> object:
        self.asked.append(asked)
        raise Refused(Problem.UNKNOWN_MATRIX, "no matrix")


def test_the_peers_credentials_and_options_arrive_with_the_change(rig: Rig) -> None:
    recorder = Recorder()
    options = {"reason": "night shift", "disrupt": True, "dry_run": True}
    with RunningServer(rig, recorder) as server, pytest.raises(CallError):
        call(server.rw, "Undefine", names=["x"], options=options)
    (asked,) = recorder.asked
    assert (asked.peer.pid, asked.peer.uid, asked.peer.gid) == (os.getpid(), os.getuid(), os.getgid())
    assert (asked.reason, asked.disrupt, asked.dry_run) == ("night shift", True, True)
    assert asked.confirm_within is None


class Slow:
    """A service whose changes wait to be let on, and whose reads do not."""

    def __init__(self) -> None:
        self.begun, self.let_on = threading.Semaphore(0), threading.Event()
        self.at_once = self.most = 0

    def status(self) -> object:
        raise Refused(Problem.BAD_HOST_FILE, "read while a change is made")

    def undefine(self, names: list[str], asked: object) -> object:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        self.begun.release()
        assert self.let_on.wait(10)
        self.at_once -= 1
        raise Refused(Problem.UNKNOWN_MATRIX, f"{names[0]} is not there")


def test_a_read_does_not_wait_for_a_change_and_two_changes_never_run_at_once(rig: Rig) -> None:
    slow = Slow()
    with RunningServer(rig, slow) as server, ThreadPoolExecutor(2) as clients:
        calls = [clients.submit(call, server.rw, "Undefine", names=[name]) for name in ("a", "b")]
        assert slow.begun.acquire(timeout=10)
        with pytest.raises(CallError, match="read while a change"):
            call(server.ro, "Status")
        slow.let_on.set()
        errors = [str(one.exception(10)) for one in calls]
    assert sorted(errors) == ["a is not there", "b is not there"], "each client gets its own answer"
    assert slow.most == 1


def test_two_admins_who_want_the_same_queue_at_once_do_not_both_get_it(
    rig: Rig, server: RunningServer
) -> None:
    with ThreadPoolExecutor(2) as clients:
        calls = [
            clients.submit(call, server.rw, "Define", name=name, queues="05.000d") for name in ("a", "b")
        ]
        errors = [one.exception(10) for one in calls]
    (failed,) = filter(None, errors)
    assert isinstance(failed, CallError)
    assert failed.problem == Problem.QUEUE_TAKEN
    assert len(rig.service.status().matrices) == 1


BAD = [
    ("unknown method", b'{"method":"org.vfioapd.Host.Explode","parameters":{}}\0', "MethodNotFound"),
    ("unknown interface", b'{"method":"org.example.Status"}\0', "InterfaceNotFound"),
    ("missing parameter", b'{"method":"org.vfioapd.Host.Show","parameters":{}}\0', "InvalidParameter"),
    ("wrong type", b'{"method":"org.vfioapd.Host.Show","parameters":{"name":7}}\0', "InvalidParameter"),
    ("unknown parameter", b'{"method":"org.vfioapd.Host.Status","parameters":{"x":7}}\0', "InvalidParameter"),
]


@pytest.mark.parametrize(("message", "error"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_call_that_makes_no_sense_gets_varlinks_own_error(
    server: RunningServer, message: bytes, error: str
) -> None:
    assert json.loads(exchange(server.rw, message)[:-1])["error"] == f"org.varlink.service.{error}"


@pytest.mark.parametrize(
    "message", [b"GET / HTTP/1.1\r\n\r\n\0", b"\0\0\0", b"[]\0", b'{"method":7}\0', b"\xff\0"]
)
def test_a_peer_that_talks_nonsense_harms_nobody_else(server: RunningServer, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as idle, socket.socket(socket.AF_UNIX) as noisy:
        idle.connect(server.rw)
        noisy.connect(server.rw)
        noisy.sendall(message)
        assert call(server.rw, "Status")["status"]


def test_peers_that_hang_up_at_once_or_in_the_middle_harm_nobody_else(server: RunningServer) -> None:
    for message in (b"", b'{"method":"org.vfioapd.Host.Sta', b'{"method":"org.vfioapd.Host.Queues"}\0'):
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(server.rw)
                sock.sendall(message)
    assert call(server.rw, "Status")["status"]


def test_a_peer_may_send_its_call_in_pieces(server: RunningServer) -> None:
    message = b'{"method":"org.vfioapd.Host.Status","parameters":{}}\0'
    answer = json.loads(exchange(server.ro, *(message[i : i + 1] for i in range(len(message))))[:-1])
    assert "status" in answer["parameters"]


def test_a_host_out_of_file_descriptors_for_a_while_serves_again_afterwards(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = asyncio.selector_events.BaseSelectorEventLoop.sock_accept
    failures = iter([OSError(24, "Too many open files")] * 2)

    async def fails_at_first(self: object, sock: socket.socket) -> object:
        for failure in failures:
            raise failure
        return await accept(self, sock)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio.selector_events.BaseSelectorEventLoop, "sock_accept", fails_at_first)
    for _ in range(3):  # the accepts that wait already are used up first
        assert call(server.rw, "Status")["status"]
        assert call(server.ro, "Status")["status"]


def test_a_bug_in_the_service_is_an_internal_error_and_the_server_goes_on(rig: Rig) -> None:
    class Broken:
        def status(self) -> object:
            raise ZeroDivisionError("a bug")

    with RunningServer(rig, Broken()) as server:
        for _ in range(2):
            with pytest.raises(CallError, match="a bug") as error:
                call(server.rw, "Status")
            assert error.value.problem == Problem.INTERNAL


def test_the_sockets_have_the_modes_and_the_group_of_libvirts(rig: Rig, server: RunningServer) -> None:
    assert rig.places.socket.stat().st_mode & 0o777 == 0o660
    assert rig.places.read_only_socket.stat().st_mode & 0o777 == 0o666
    groups = {one.gr_name: one.gr_gid for one in grp.getgrall()}
    if os.getuid() == 0 and "libvirt" in groups:
        assert rig.places.socket.stat().st_gid == groups["libvirt"]


def test_varlinkctl_finds_a_description(server: RunningServer) -> None:
    answer = json.loads(exchange(server.ro, b'{"method":"org.varlink.service.GetInfo"}\0')[:-1])
    assert "org.vfioapd.Host" in answer["parameters"]["interfaces"]


# --- the client alone


@pytest.fixture
def peer(tmp_path: Path) -> Callable[..., str]:
    """A server that answers as it is told and ends."""

    def make(answer: bytes, *, reads: bool = True) -> str:
        path = str(tmp_path / "socket")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            with listener, listener.accept()[0] as client:
                if reads:
                    client.recv(65536)
                client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return path

    return make


@pytest.mark.parametrize("answer", [b"", b'{"parameters":{"sta'])
@pytest.mark.parametrize("reads", [True, False])
def test_a_daemon_that_dies_in_the_middle_of_a_call_is_told_as_that(
    peer: Callable[..., str], answer: bytes, *, reads: bool
) -> None:
    with pytest.raises(CallError, match="ended before it answered") as error:
        call(peer(answer, reads=reads), "Define", name="x" * 300_000)
    assert error.value.problem == "not-running"


@pytest.mark.parametrize(
    "answer", [b"no JSON\0", b"7\0", b'{"error":7}\0', b'{"error":"org.vfioapd.Host.Problem"}\0']
)
def test_an_answer_that_makes_no_sense_is_an_internal_error(peer: Callable[..., str], answer: bytes) -> None:
    with pytest.raises(CallError) as error:
        call(peer(answer), "Status")
    assert error.value.problem == "internal-error"


def test_a_large_answer_arrives_whole(peer: Callable[..., str]) -> None:
    text = "q" * 3_000_000
    assert call(peer(json.dumps({"parameters": {"xml": text}}).encode() + b"\0"), "Xml") == {"xml": text}


@pytest.mark.parametrize("place", ["absent", "file", "below a file", "too long"])
def test_no_daemon_at_that_place_is_told_with_what_helps(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    path = {
        "absent": tmp_path / "absent",
        "file": tmp_path / "file",
        "below a file": tmp_path / "file" / "socket",
        "too long": tmp_path / ("long" * 40),
    }[place]
    with pytest.raises(CallError, match="does not answer") as error:
        call(str(path), "Status")
    assert error.value.problem == "not-running"
    assert "systemctl start vfioapd" in str(error.value.hint)
