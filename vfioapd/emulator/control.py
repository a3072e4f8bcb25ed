# SPDX-License-Identifier: Apache-2.0
"""Control at run time: a unix socket that takes one JSON object per line and answers with one.

Commands are listed in docs/emulator.md. Errors are `{"error": NAME, "message": TEXT}`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import queue
import socketserver
import threading
from typing import TYPE_CHECKING

from .plays import PlayError
from .snapshot import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .guests import Guest, Notice
    from .kernel import Kernel

Reply = dict[str, object]
Request = dict[str, object]


class ControlError(Exception):
    """A request that makes no sense. The text names what is missing."""


class Control:
    """The commands, without the socket."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._commands: dict[str, Callable[[Request], Reply]] = {
            "guest_open": self._guest_open,
            "guest_close": self._guest_close,
            "guests": self._guests,
            "reboot": self._reboot,
            "play": self._play,
            "scan": self._scan,
            "state": self._state,
            "writes": self._writes,
            "load_module": self._load_module,
            "unload_module": self._unload_module,
        }

    def answer(self, line: str) -> Reply:
        """Carry out one request. Never raises for what a client sent."""
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ControlError("a request is a JSON object with the key 'command'")
            command = self._commands.get(str(request.get("command")))
            if command is None:
                known = ", ".join([*self._commands, "watch"])
                raise ControlError(f"command {request.get('command')!r} is not known; known are {known}")
            return {"ok": True, **command(request)}
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "EIO")
            return {"error": name, "message": str(error)}
        except (ControlError, PlayError, json.JSONDecodeError) as error:
            return {"error": "EINVAL", "message": str(error)}

    def _guest_open(self, request: Request) -> Reply:
        self._kernel.guest_open(_text(request, "uuid").lower(), _text(request, "guest"))
        return {}

    def _guest_close(self, request: Request) -> Reply:
        self._kernel.guest_close(_text(request, "guest"))
        return {}

    def _guests(self, _request: Request) -> Reply:
        return {"guests": self._kernel.guests()}

    def _reboot(self, _request: Request) -> Reply:
        self._kernel.reboot()
        return {}

    def _play(self, request: Request) -> Reply:
        self._kernel.play({key: value for key, value in request.items() if key != "command"})
        return {}

    def _scan(self, _request: Request) -> Reply:
        self._kernel.scan()
        return {}

    def _state(self, _request: Request) -> Reply:
        with self._kernel.lock:
            return {"state": snapshot(self._kernel.sysfs)}

    def _writes(self, request: Request) -> Reply:
        with self._kernel.lock:
            writes = self._kernel.write_count
            if request.get("reset"):
                self._kernel.write_count = 0
        return {"writes": writes}

    def _load_module(self, request: Request) -> Reply:
        self._kernel.load_module(_text(request, "name"))
        return {}

    def _unload_module(self, request: Request) -> Reply:
        self._kernel.unload_module(_text(request, "name"))
        return {}


def _text(request: Request, key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise ControlError(f"command {request.get('command')!r} needs the key {key!r} with a text")
    return value


class _Handler(socketserver.StreamRequestHandler):
    server: ControlServer

    def handle(self) -> None:
        for line in self.rfile:
            text = line.decode(errors="replace")
            if _is_watch(text):
                self._watch()
                return
            self._send(self.server.control.answer(text))

    def _send(self, reply: Reply) -> None:
        self.wfile.write(json.dumps(reply).encode() + b"\n")

    def _watch(self) -> None:
        """Stream what guests are told until the client hangs up."""
        notices: queue.SimpleQueue[Reply] = queue.SimpleQueue()

        def note(guest: Guest, notice: Notice) -> None:
            uuid = guest.mdev.uuid if guest.mdev else ""
            notices.put({"event": notice.value, "guest": guest.name, "uuid": uuid})

        kernel = self.server.kernel
        kernel.watch_guests(note)
        try:
            self._send({"ok": True})
            while True:
                self._send(notices.get())
        except OSError:
            return  # the client is gone
        finally:
            kernel.unwatch_guests(note)


def _is_watch(line: str) -> bool:
    with contextlib.suppress(json.JSONDecodeError):
        request = json.loads(line)
        return isinstance(request, dict) and request.get("command") == "watch"
    return False


class ControlServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on a unix socket; one thread per client."""

    daemon_threads = True

    def __init__(self, kernel: Kernel, path: Path) -> None:
        path.unlink(missing_ok=True)
        super().__init__(str(path), _Handler)
        self.kernel = kernel
        self.control = Control(kernel)

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, name="control", daemon=True).start()
