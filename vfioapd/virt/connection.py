# SPDX-License-Identifier: Apache-2.0
"""One connection to libvirt: opened when needed, opened again after it was lost, its events passed on.

libvirt's own event loop runs in a thread of its own, as all that it calls must return at once: a call to
libvirt from there that waits for an event would wait for itself.

Keepalive stays on: without it a libvirtd that hangs would hang every command of ours for good. It costs a
few wake-ups a minute, as do libvirtd's own pings (keepalive_interval in libvirtd.conf, 5 s by default)
to every client that has an event loop. It cannot be on during calls alone: libvirt 9.0 takes the interval
once for each connection ("keepalive interval already set").
"""

from __future__ import annotations

import contextlib
import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import libvirt

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds, and how often: a libvirtd that has said nothing for about 20 s is given up.
KEEPALIVE = (5, 3)

OPEN_SECONDS = 10.0  # for libvirt to answer a new connection; systemd may have to start it first
AGAIN_SECONDS = 0.5  # the same for whoever comes while that is still waited for

_CLOSED = {0: "an error", 1: "its end", 2: "its silence", 3: "us"}  # virConnectCloseReason
_LIFECYCLE = (  # virDomainEventType
    "defined",
    "undefined",
    "started",
    "suspended",
    "resumed",
    "stopped",
    "shutdown",
    "pmsuspended",
    "crashed",
)
_DEFINED = ("defined", "changed", "renamed", "reverted")  # virDomainEventDefinedDetailType
_UNDEFINED = ("undefined", "unnamed")  # virDomainEventUndefinedDetailType; the old name of a renamed one
_DETAILS = {libvirt.VIR_DOMAIN_EVENT_DEFINED: _DEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED: _UNDEFINED}


HOSTDEV_ALIASES = ("ua-vfioap", "hostdev")  # of xml-templates/hostdev.xml, and libvirt's own


@dataclass(frozen=True, slots=True)
class GuestEvent:
    """What libvirt says has happened to a guest."""

    guest: str
    what: str  # a word of libvirt's lifecycle; device-added, device-removed, device-removal-failed
    device: str = ""  # the alias of the device

    @property
    def is_new(self) -> bool:
        """Whether the guest has now, in one of its documents, what somebody else put there and not we."""
        return self.what in ("defined", "reverted", "started")

    @property
    def is_loss(self) -> bool:
        """Whether a device was unplugged that can be a matrix, by the alias that we or libvirt gave it."""
        return self.what == "device-removed" and self.device.startswith(HOSTDEV_ALIASES)

    def __str__(self) -> str:
        return f"guest {self.guest} {self.what} {self.device}".rstrip()


class Connection:
    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._open: libvirt.virConnect | None = None
        self._opening: Future[libvirt.virConnect] | None = None
        self.on_event: list[Callable[[GuestEvent], None]] = []
        self.on_lost: list[Callable[[], None]] = []
        _run_event_loop()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that is not known to be dead."""
        return self._open is not None

    def call(self, act: Callable[[libvirt.virConnect], T]) -> T:
        """Make a call. Blocks; raises libvirtError, also when there is no libvirt."""
        return act(self._living())

    def _living(self) -> libvirt.virConnect:
        """Asked first for something harmless: that the other end has gone shows at a call only, and the
        call that finds out must not be one that might have been carried out."""
        with self._lock:
            if self._open is not None and not _answers(self._open):
                self._drop(self._open)
            if self._open is not None:
                return self._open
            self._open = opened = self._opened()
            self._listen(opened)
        logger.info("connected to libvirt %s at %s", _version(opened), self._uri)
        return opened

    def _opened(self) -> libvirt.virConnect:
        """Opened in a thread that can be left behind: a libvirtd that hangs takes the connection and never
        answers, and keepalive begins only after that."""
        patience = OPEN_SECONDS if self._opening is None else AGAIN_SECONDS
        opening = self._opening = self._opening or _in_thread(lambda: libvirt.open(self._uri))
        try:
            opened = opening.result(patience)
        except TimeoutError:
            raise libvirt.libvirtError("libvirt takes the connection and does not answer") from None
        except libvirt.libvirtError:
            self._opening = None
            raise
        self._opening = None
        return opened

    def _listen(self, connection: libvirt.virConnect) -> None:
        """Once for each event: a second registration of the same kind is refused (libvirt-python)."""
        connection.registerCloseCallback(self._closed, None)
        with contextlib.suppress(libvirt.libvirtError):  # the test driver has no keepalive
            connection.setKeepAlive(*KEEPALIVE)
        for number, callback in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lived),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, self._added),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._removed),
            (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, self._kept),
        ):
            connection.domainEventRegisterAny(None, number, callback, None)

    def _drop(self, connection: libvirt.virConnect) -> None:
        if self._open is connection:
            self._open = None

    # --- called by libvirt's event loop

    def _closed(self, connection: libvirt.virConnect, reason: int, _opaque: object) -> None:
        logger.info("the connection to libvirt was ended by %s", _CLOSED.get(reason, str(reason)))
        self._drop(connection)
        for tell in self.on_lost:
            tell()

    def _lived(self, _c: object, domain: libvirt.virDomain, event: int, detail: int, _o: object) -> None:
        self._tell(domain, _word(event, detail))

    def _added(self, _c: object, domain: libvirt.virDomain, alias: str, _o: object) -> None:
        self._tell(domain, "device-added", alias)

    def _removed(self, _c: object, domain: libvirt.virDomain, alias: str, _o: object) -> None:
        self._tell(domain, "device-removed", alias)

    def _kept(self, _c: object, domain: libvirt.virDomain, alias: str, _o: object) -> None:
        self._tell(domain, "device-removal-failed", alias)

    def _tell(self, domain: libvirt.virDomain, what: str, alias: str = "") -> None:
        event = GuestEvent(domain.name(), what, alias)
        logger.debug("%s", event)
        for tell in self.on_event:
            tell(event)


def _word(event: int, detail: int) -> str:
    words, number = (_DETAILS[event], detail) if event in _DETAILS else (_LIFECYCLE, event)
    return words[number] if number < len(words) else f"event-{event}-{detail}"


def _answers(connection: libvirt.virConnect) -> bool:
    try:
        if not connection.isAlive():
            return False
        connection.getLibVersion()
    except libvirt.libvirtError:
        return False
    return True


def _version(connection: libvirt.virConnect) -> str:
    number = int(connection.getLibVersion())
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _in_thread(act: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except libvirt.libvirtError as error:
            future.set_exception(error)

    threading.Thread(target=run, name="libvirt-open", daemon=True).start()
    return future


_loop_lock = threading.Lock()
_loops: list[threading.Thread] = []  # at most one: libvirt has one event loop for the whole process


def _run_event_loop() -> None:
    """Before the first connection is opened, or it would have no events and no keepalive."""
    with _loop_lock:
        if _loops:
            return
        # Without a handler of ours libvirt prints each error on stderr besides raising it.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        thread = threading.Thread(target=_turn, name="libvirt", daemon=True)
        thread.start()
        _loops.append(thread)


def _turn() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()
