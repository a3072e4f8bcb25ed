# SPDX-License-Identifier: Apache-2.0
"""The emulated kernel as a whole: one lock, file access by path, guests, modules, reboot, plays."""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING

from .events import Events
from .fs_root import make_tree
from .numbers import refuse
from .plays import Faults, check, play
from .state import State
from .sysfs import Sysfs
from .tree import File, Kind, Link, Node, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .guests import Guest, GuestCallback, Notice
    from .hostfile import Host

PAGE = 4096
REQUEST_INTERVAL = 10.0  # seconds between two requests to a guest that does not let go
INTERRUPT_POLL = 0.05  # seconds; how soon a killed writer is let go


class Kernel:
    """One emulated machine, running. PlayError if the host file's plays make no sense.

    Safe to use from several threads; a blocked write holds no lock.
    """

    def __init__(self, host: Host) -> None:
        for action in host.plays:
            check(action)
        self.host = host
        self.machine = host.machine()
        self.events = Events()
        self.faults = Faults()
        self.lock = threading.RLock()
        self.write_count = 0
        self._is_down = False
        self._sleeping: list[Wait] = []
        self._guest_callbacks: list[GuestCallback] = []
        self.sysfs = Sysfs(self)
        self._boot()

    def _boot(self) -> None:
        self.state = State(self.host, self.machine, self.events)
        self.state.guests.subscribe(self._tell_guest)
        self.tree = make_tree(self.state)
        late = self.state.boot()
        if late:
            timer = threading.Timer(late, self._load_late, (self.state,))
            timer.daemon = True
            timer.start()

    def _load_late(self, state: State) -> None:
        with self.lock:
            if self.state is state:  # no other boot came between
                state.load_late()

    def reboot(self) -> None:
        """A fresh kernel on the same hardware: boot parameters apply, all mdevs and guests are gone."""
        with self.lock:
            vfio_ap = self.state.modules.vfio_ap
            for mdev in list(vfio_ap.mdevs.values()) if vfio_ap else []:
                mdev.gone.set()  # whoever was blocked died with the old kernel
            self._boot()

    def shut_down(self) -> None:
        """Wake every blocked writer with EINTR; for whoever serves this kernel and ends."""
        self._is_down = True

    def scan(self) -> None:
        """What the kernel does every config_time seconds."""
        with self.lock:
            self.state.scanner.scan()

    # --- files

    def lookup(self, path: str) -> Node:
        """The node at a path, links not followed. ENOENT, ENOTDIR."""
        with self.lock:
            return self.tree.lookup(path)

    def entries(self, path: str) -> list[tuple[str, Kind]]:
        """Names and kinds in a directory. ENOENT, ENOTDIR."""
        with self.lock:
            node = self.tree.lookup(path)
            if isinstance(node, File | Link):
                raise refuse(errno.ENOTDIR)
            return list(node.entries())

    def open_file(self, path: str, *, write: bool, read: bool, is_root: bool = True) -> File:
        """What open(2) finds at a path without links. EACCES when the mode lacks the bit, even for root."""
        return _check_open(self.lookup(path), write=write, read=read, is_root=is_root)

    def open_path(self, path: str, *, write: bool, read: bool) -> tuple[str, File]:
        """As open_file, links followed: the real path and the file."""
        with self.lock:
            real, node = self.tree.walk(path)
        return real, _check_open(node, write=write, read=read, is_root=True)

    def read_file(self, path: str, opened: File) -> bytes:
        """Content of an open file. ENODEV if the attribute has gone since."""
        with self.lock:
            return self.show(path, self._current(path, opened))

    def show(self, path: str, opened: File) -> bytes:
        """Content of a file that was opened under the lock that is still held."""
        self.faults.check(path, "read")
        if opened.show is None:
            raise refuse(errno.EIO)
        return opened.show().encode()

    def write_file(
        self, path: str, opened: File, data: bytes, interrupted: Callable[[], bool] | None = None
    ) -> int:
        """One write(2) to an open file: bytes taken. May block as the kernel does.

        `interrupted` is polled while it blocks; true ends the wait with EINTR, what was begun goes on.
        """
        written, wait = self.begin_write(path, opened, data)
        if wait is not None:
            self.sleep(wait, interrupted)
        return written

    def begin_write(self, path: str, opened: File, data: bytes) -> tuple[int, Wait | None]:
        """A write without its sleep: bytes taken, and what the writer has to wait for."""
        if not data:
            return 0, None  # never reaches the driver
        data = data[:PAGE]
        hang = self.faults.check(path, "write")
        if hang:
            hang.then = lambda: self._finish_hung(path, opened, data)
            return len(data), hang
        return len(data), self._store(path, opened, data)

    def _finish_hung(self, path: str, opened: File, data: bytes) -> None:
        wait = self._store(path, opened, data)
        if wait is not None:
            self.sleep(wait)

    def _store(self, path: str, opened: File, data: bytes) -> Wait | None:
        with self.lock:
            self.write_count += 1
            store = self._current(path, opened).store
            if store is None:
                raise refuse(errno.EIO)
            resets = self.machine.resets
            wait = store(data.decode("latin-1"))
            slow = (self.machine.resets - resets) * self.machine.reset_seconds
        return Wait(seconds=slow) if wait is None and slow else wait

    def _current(self, path: str, opened: File) -> File:
        try:
            node = self.tree.lookup(path)
        except OSError:
            raise refuse(errno.ENODEV) from None
        if not isinstance(node, File) or node.owner is not opened.owner:
            raise refuse(errno.ENODEV)
        return node

    @property
    def sleepers(self) -> int:
        """How many writers block at the moment."""
        return len(self._sleeping)

    def remind_guests(self) -> None:
        """Ten seconds of a blocked removal: vfio asks the guest again."""
        for wait in tuple(self._sleeping):
            self._poke(wait)

    def sleep(self, wait: Wait, interrupted: Callable[[], bool] | None = None) -> None:
        """Block the calling thread as a writer in the kernel. EINTR when `interrupted` says so."""
        self._sleeping.append(wait)
        try:
            self._await(wait, interrupted)
        finally:
            self._sleeping.remove(wait)
        if wait.then:
            wait.then()

    def _await(self, wait: Wait, interrupted: Callable[[], bool] | None) -> None:
        start = reminded = time.monotonic()
        while True:
            slept = time.monotonic() - start
            if wait.seconds is not None and slept >= wait.seconds:
                return
            left = INTERRUPT_POLL if wait.seconds is None else min(INTERRUPT_POLL, wait.seconds - slept)
            if wait.done.wait(left):
                return
            if self._is_down or (interrupted and interrupted()):
                self._poke(wait)
                raise refuse(errno.EINTR)
            if time.monotonic() - reminded >= REQUEST_INTERVAL:
                reminded += REQUEST_INTERVAL
                self._poke(wait)

    def _poke(self, wait: Wait) -> None:
        if wait.poke and not wait.done.is_set():
            with self.lock:
                wait.poke()

    # --- guests

    def guest_open(self, uuid: str, guest: str) -> None:
        """A guest takes an mdev. ENODEV unknown, EBUSY another has it, EPERM the guest has one already."""
        with self.lock:
            if guest in self.guests():
                raise refuse(errno.EPERM)
            opened = self.state.guests.open_group(guest, uuid)
            try:
                self.state.guests.open_device(opened)
            except OSError:
                self.state.guests.close(opened)
                raise

    def guest_close(self, guest: str) -> None:
        """A guest ends or lets its mdev go. ENOENT if it has none."""
        with self.lock:
            opened = [one for one in self.state.guests.opened if one.name == guest]
            if not opened:
                raise refuse(errno.ENOENT)
            for one in opened:
                self.state.guests.close(one)

    def guests(self) -> dict[str, str]:
        """UUID of the mdev that each guest has open."""
        with self.lock:
            return {guest.name: guest.mdev.uuid for guest in self.state.guests.opened if guest.mdev}

    def watch_guests(self, callback: GuestCallback) -> None:
        """Be told what guests are told, across reboots. The callback must not block."""
        self._guest_callbacks.append(callback)

    def unwatch_guests(self, callback: GuestCallback) -> None:
        self._guest_callbacks.remove(callback)

    def _tell_guest(self, guest: Guest, notice: Notice) -> None:
        for callback in tuple(self._guest_callbacks):
            callback(guest, notice)

    # --- modules and plays

    def load_module(self, name: str) -> None:
        """modprobe NAME. ENOENT unknown."""
        with self.lock:
            self.state.modules.load(name)

    def unload_module(self, name: str, *, with_unused: bool = True) -> None:
        """modprobe -r NAME, or rmmod without `with_unused`. EBUSY in use, ENOENT unknown."""
        with self.lock:
            self.state.modules.unload(name, with_unused=with_unused)

    def play(self, action: Mapping[str, object]) -> None:
        """What an HMC operator or a fault does; see docs/emulator.md. PlayError if it makes no sense."""
        with self.lock:
            play(self.machine, self.faults, action)
            if action.get("scan", True):
                self.state.scanner.scan()


def _check_open(node: Node, *, write: bool, read: bool, is_root: bool) -> File:
    if not isinstance(node, File):
        raise refuse(errno.ELOOP if isinstance(node, Link) else errno.EISDIR)
    allowed = node.mode if is_root else node.mode & 0o007
    if (read and not allowed & 0o444) or (write and not allowed & 0o222):
        raise refuse(errno.EACCES)
    if node.is_busy and node.is_busy():
        raise refuse(errno.EBUSY)
    return node
