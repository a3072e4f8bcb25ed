# SPDX-License-Identifier: Apache-2.0
"""Two unix sockets with one varlink interface behind them: one to change things, one to read."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from asyncvarlink import VarlinkInterfaceRegistry, VarlinkInterfaceServerProtocol, VarlinkTransport
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from vfioapd import VERSION
from vfioapd.rpc.interface import HostInterface, Peer

if TYPE_CHECKING:
    from collections.abc import Collection
    from concurrent.futures import Executor
    from pathlib import Path

    from asyncvarlink import FileDescriptorArray, VarlinkMethodCall, VarlinkMethodReply

    from vfioapd.rpc.interface import Service

logger = logging.getLogger(__name__)

GROUP = "libvirt"  # who may change things; the group that may use libvirt's own socket
WRITABLE_MODE, READ_ONLY_MODE = 0o660, 0o666
BACKLOG = 64
ACCEPT_PAUSE = 0.1  # seconds until the next try after a failure
REPLY_SECONDS = 1.0  # for a client to take its last answer, when the daemon ends

_PEERCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid


def listen(path: Path, *, mode: int) -> socket.socket:
    """A listening socket at this path, taking the place of a dead one.

    Nobody can connect between bind and chmod: the socket does not listen yet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.bind(str(path))
    if mode == WRITABLE_MODE:
        with contextlib.suppress(KeyError):  # no such group: root alone
            os.chown(path, 0, grp.getgrnam(GROUP).gr_gid)
    path.chmod(mode)
    sock.listen(BACKLOG)
    return sock


class Server:
    """Serves one interface to every client of both sockets."""

    def __init__(self, service: Service, reads: Executor, changes: Executor) -> None:
        self._service = service
        self._reads = reads
        self._changes = changes
        self._tasks: list[asyncio.Task[None]] = []
        self._under_way = _UnderWay()

    def serve(self, sock: socket.socket, *, writable: bool) -> None:
        """Accept clients on a listening socket until close()."""
        sock.settimeout(0)
        self._tasks.append(asyncio.create_task(self._accept(sock, writable=writable)))

    async def close(self) -> None:
        """Accept no client and no call any more. Calls under way are answered, streams are cut off."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._under_way.end()

    async def _accept(self, sock: socket.socket, *, writable: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(sock)
            except OSError as error:  # out of file descriptors, or the client has gone again
                logger.error("cannot take a client: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            peer = Peer(
                *_PEERCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
            )
            logger.debug("client: %s", peer)
            registry = self._registry(peer, writable=writable)
            VarlinkTransport(loop, client, client, _Client(registry, self._under_way))

    def _registry(self, peer: Peer, *, writable: bool) -> VarlinkInterfaceRegistry:
        """A registry of its own for each client, so that each call knows its caller."""
        registry = VarlinkInterfaceRegistry()
        registry.register_interface(
            VarlinkServiceInterface("vfioapd", "vfioapd", VERSION, "man:vfioapd(8)", registry)
        )
        registry.register_interface(
            HostInterface(self._service, peer, self._reads, self._changes, writable=writable)
        )
        return registry


class _Client(VarlinkInterfaceServerProtocol):
    """One connection. Its calls and answers are among those that are under way."""

    def __init__(self, registry: VarlinkInterfaceRegistry, under_way: _UnderWay) -> None:
        super().__init__(registry)
        self._under_way = under_way

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._under_way.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._under_way.clients.discard(self)
        super().connection_lost(exc)

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        if self._under_way.is_over:
            return None
        made = super().call_received(call, fds)
        if made is None:
            return None
        made = asyncio.ensure_future(_until_cut_off(made))
        _keep(made, self._under_way.streams if call.more else self._under_way.calls)
        return made

    def send_reply(self, reply: VarlinkMethodReply, *fds: Any, **options: Any) -> asyncio.Future[None]:
        sent = super().send_reply(reply, *fds, **options)
        _keep(sent, self._under_way.replies)
        return sent


class _UnderWay:
    """What the clients of both sockets wait for."""

    def __init__(self) -> None:
        self.clients: set[_Client] = set()
        self.calls: set[asyncio.Future[None]] = set()
        self.streams: set[asyncio.Future[None]] = set()
        self.replies: set[asyncio.Future[None]] = set()
        self.is_over = False

    async def end(self) -> None:
        """As long as the calls take: their threads would be waited for in any case."""
        self.is_over = True
        await _wait(self.calls)
        for stream in self.streams:
            stream.cancel()
        await _wait(self.streams)
        await _wait(self.replies, REPLY_SECONDS)
        for client in tuple(self.clients):
            client.close()


async def _until_cut_off(call: asyncio.Future[None]) -> None:
    """asyncvarlink (0.3) takes a call that is cancelled for a mistake and logs where; errors stay errors."""
    with contextlib.suppress(asyncio.CancelledError):
        await call


def _keep(future: asyncio.Future[None], among: set[asyncio.Future[None]]) -> None:
    among.add(future)
    future.add_done_callback(among.discard)


async def _wait(futures: Collection[asyncio.Future[None]], seconds: float | None = None) -> None:
    if futures:
        await asyncio.wait(tuple(futures), timeout=seconds)
