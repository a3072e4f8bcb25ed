# SPDX-License-Identifier: Apache-2.0
"""A varlink client: standard library only, since start-up time is its point."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator  # noqa: TC003 - typing takes longer to import than this

INTERFACE = "org.vfioapd.Host"
SOCKET = "/run/vfioapd/vfioapd.sock"
READ_ONLY_SOCKET = "/run/vfioapd/vfioapd-ro.sock"


class CallError(Exception):
    """The daemon's answer was a problem, or there was no answer."""

    def __init__(self, problem: str, sentence: str, hint: str | None = None, **details: object) -> None:
        super().__init__(sentence)
        self.problem = problem
        self.hint = hint
        self.details = details


def call(path: str, method: str, **parameters: object) -> dict[str, object]:
    """Call one method and return its reply. Blocks until the daemon answers, without a time limit:
    a change may wait for the kernel, for another admin or for a guest."""
    wanted = {name: value for name, value in parameters.items() if value is not None}
    request = json.dumps({"method": f"{INTERFACE}.{method}", "parameters": wanted}).encode() + b"\0"
    return _checked(_parse(_exchange(path, request)))


def check_alive(path: str, seconds: float) -> None:
    """Raise CallError unless the daemon says anything within this time; a living one does so at once."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        _connect(sock, path)
        try:
            sock.sendall(b'{"method": "org.varlink.service.GetInfo"}\0')
            _receive(sock)
        except OSError as error:
            raise CallError(
                "not-running", f"vfioapd does not answer on {path}", "systemctl restart vfioapd"
            ) from error


def stream(path: str, method: str) -> Iterator[dict[str, object]]:
    """Call one method that answers again and again; each answer as it comes. Ends when the daemon does,
    with CallError."""
    request = json.dumps({"method": f"{INTERFACE}.{method}", "parameters": {}, "more": True})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        _connect(sock, path)
        sock.sendall(request.encode() + b"\0")
        rest = b""
        while chunk := sock.recv(1 << 16):
            *answers, rest = (rest + chunk).split(b"\0")
            for answer in answers:
                yield _checked(_parse(answer))
    raise CallError("not-running", "vfioapd has ended", "systemctl status vfioapd")


def _exchange(path: str, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        _connect(sock, path)
        try:
            sock.sendall(request)
            return _receive(sock)
        except ConnectionError as error:
            raise CallError(
                "not-running",
                f"vfioapd ended before it answered on {path}",
                "look at its journal (journalctl -u vfioapd), then at vfioapctl status",
            ) from error


def _connect(sock: socket.socket, path: str) -> None:
    try:
        sock.connect(path)
    except PermissionError:
        raise CallError(
            "no-permission",
            f"you may not use {path}",
            "changes need root or membership in the group libvirt",
        ) from None
    except OSError as error:
        raise CallError(
            "not-running", f"vfioapd does not answer on {path}", "start it: systemctl start vfioapd"
        ) from error


def _receive(sock: socket.socket) -> bytes:
    chunks: list[bytes] = []
    while chunk := sock.recv(1 << 18):
        chunks.append(chunk)
        if chunk.endswith(b"\0"):
            return b"".join(chunks)[:-1]
    raise ConnectionResetError


def _parse(answer: bytes) -> dict[str, object]:
    try:
        return dict(json.loads(answer))
    except (ValueError, TypeError) as error:
        raise CallError(
            "internal-error", f"vfioapd answered {answer[:80]!r}, which is not varlink"
        ) from error


def _checked(reply: dict[str, object]) -> dict[str, object]:
    """What a reply holds; a problem is raised."""
    if error := reply.get("error"):
        raise _call_error(error, _record(reply.get("parameters")))
    return _record(reply.get("parameters"))


def _record(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, dict) else {}


def _call_error(error: object, parameters: dict[str, object]) -> CallError:
    if error != f"{INTERFACE}.Problem" or not {"problem", "sentence"} <= parameters.keys():
        return CallError("internal-error", f"vfioapd answered {error} {parameters or ''}".rstrip())
    known = dict(parameters)
    hint = known.pop("hint", None)
    return CallError(
        str(known.pop("problem")), str(known.pop("sentence")), None if hint is None else str(hint), **known
    )
