# SPDX-License-Identifier: Apache-2.0
"""One JSON object per line over a unix socket: how the parts of a lab talk to each other."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

from vfioapd.lab.errors import LabError

if TYPE_CHECKING:
    from pathlib import Path

Message = dict[str, object]


def request(path: Path, message: Message, seconds: float = 60.0) -> Message:
    """Send one message, return the answer; blocks at most `seconds`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(seconds)
        try:
            peer.connect(str(path))
            peer.sendall(encode(message))
            return decode(receive_line(peer))
        except OSError as error:
            raise LabError(f"{path} did not answer {message.get('command')}: {error}") from error


def encode(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise LabError(f"not a JSON object: {line!r}") from error
    if not isinstance(message, dict):
        raise LabError(f"not a JSON object: {line!r}")
    return message


def receive_line(peer: socket.socket) -> bytes:
    """Without the line's end; an answer may be longer than one packet."""
    received = b""
    while not received.endswith(b"\n"):
        chunk = peer.recv(65536)
        if not chunk:
            break
        received += chunk
    return received.rstrip(b"\n")
