# SPDX-License-Identifier: Apache-2.0
"""The first process of a lab: builds it, runs the command, collects orphans, serves requests, ends it all.

One thread, one loop. A request (reboot, stop or start a service) is carried out to its end before the
next event is looked at; children that end meanwhile are collected afterwards.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

from vfioapd.lab import reboot, syscalls, wire, world
from vfioapd.lab.errors import Exit, LabError
from vfioapd.lab.host import Host, lab_environment
from vfioapd.lab.namespaces import FORWARDED, LEFT_TO_COMMAND, exit_status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import FrameType

    from vfioapd.lab.layout import Layout

COMMAND_SECONDS = 5.0
REQUEST_SECONDS = 5.0


class Ended(Exception):
    """The outer process passed on a signal: the lab is to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(layout: Layout, host_file: Path, command: Sequence[str], *, with_libvirt: bool) -> int:
    """Body of the lab's first process; returns the command's exit status."""
    _set_up_process()
    try:
        _build_world(layout)
        return Init(layout, Host(layout, host_file, with_libvirt=with_libvirt)).run(command)
    except Ended as ended:
        return 128 + ended.number


def _build_world(layout: Layout) -> None:
    try:
        world.build(layout)
    except OSError as error:
        raise LabError(f"the lab's private file system cannot be made: {error}") from error


def _set_up_process() -> None:
    os.umask(0o022)
    syscalls.set_process_name("vfioap-lab-init")
    for number in FORWARDED:
        signal.signal(number, _end)
    for number in LEFT_TO_COMMAND:
        signal.signal(number, _nothing)  # not SIG_IGN, which the command would inherit


def _end(number: int, _frame: FrameType | None) -> None:
    raise Ended(number)


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass


class Init:
    def __init__(self, layout: Layout, host: Host) -> None:
        self._layout = layout
        self._host = host
        self._command: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str]) -> int:
        try:
            self._host.power_on()
            with self._listen() as listener:
                self._command = _start_command(command, lab_environment(self._layout))
                return self._serve(listener, self._command)
        finally:
            for number in FORWARDED:
                signal.signal(number, _nothing)  # a second request to end must not cut this short
            self._end_command()
            self._host.power_off()

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._layout.init_socket))
        listener.listen()
        return listener

    def _serve(self, listener: socket.socket, command: subprocess.Popen[bytes]) -> int:
        """Until the command ends."""
        with selectors.DefaultSelector() as selector, _child_signals() as wakeup:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(wakeup, selectors.EVENT_READ)
            while command.poll() is None:
                for key, _ in selector.select():
                    if key.fileobj is listener:
                        self._answer(listener.accept()[0])
                    else:
                        wakeup.recv(4096)
                self._collect_orphans(command)
        return exit_status(command.returncode)

    def _collect_orphans(self, command: subprocess.Popen[bytes]) -> None:
        """Whoever loses its parent becomes our child; the status of our own children is for their objects."""
        while pid := _any_zombie():
            if pid == command.pid:
                return  # the loop asks for its status
            if not self._host.collect(pid):
                os.waitpid(pid, os.WNOHANG)

    def _answer(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):  # a caller that went away needs no answer
            peer.settimeout(REQUEST_SECONDS)
            try:
                answer = self._handle(wire.decode(wire.receive_line(peer)), _pid_of(peer))
            except LabError as error:
                answer = {"error": "EINVAL", "message": str(error)}
            peer.sendall(wire.encode(answer))

    def _handle(self, message: wire.Message, caller: int) -> wire.Message:
        match message:
            case {"command": "reboot"}:
                # The command is the lab's console: with its end the lab would end, too.
                spared = [self._host.kernel, self._command]
                reboot.reboot(self._layout, self._host, caller, [each.pid for each in spared if each])
            case {"command": "service", "action": str(action), "name": str(name)}:
                self._control_service(action, name)
            case _:
                raise LabError(f"unknown request {message}")
        return {}

    def _control_service(self, action: str, name: str) -> None:
        if name not in self._host.services:
            raise LabError(f"this lab has no service {name} (it has: {', '.join(self._host.services)})")
        if action in ("stop", "restart"):
            self._host.stop(name)
        if action == "kill":
            self._host.stop(name, signal.SIGKILL)
        if action in ("start", "restart"):
            self._host.start(name)

    def _end_command(self) -> None:
        if self._command is None:
            return
        for request in (self._command.terminate, self._command.kill):
            request()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._command.wait(COMMAND_SECONDS)
                return


def _start_command(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(list(command), env=environment)
    except OSError as error:
        raise LabError(f"cannot start {command[0]}: {error.strerror}", Exit.USAGE) from error


@contextlib.contextmanager
def _child_signals() -> Iterator[socket.socket]:
    reader, writer = socket.socketpair()
    writer.settimeout(0)  # as signal.set_wakeup_fd demands
    signal.signal(signal.SIGCHLD, _nothing)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        with reader, writer:
            yield reader
    finally:
        signal.set_wakeup_fd(-1)


def _any_zombie() -> int | None:
    with contextlib.suppress(ChildProcessError):
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found.si_pid if found else None
    return None


def _pid_of(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])
