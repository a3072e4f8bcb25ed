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
from typing import TYPE_CHECKING

from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from vfioapd import VERSION
from vfioapd.rpc.interface import HostInterface, Peer

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from vfioapd.rpc.interface import Service

logger = logging.getLogger(__name__)

GROUP = "libvirt"  # who may change things; the group that may use libvirt's own socket
WRITABLE_MODE, READ_ONLY_MODE = 0o660, 0o666
BACKLOG = 64
ACCEPT_PAUSE = 0.1  # seconds until the next try after a failure

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

    def serve(self, sock: socket.socket, *, writable: bool) -> None:
        """Accept clients on a listening socket until close()."""
        sock.settimeout(0)
        self._tasks.append(asyncio.create_task(self._accept(sock, writable=writable)))

    async def close(self) -> None:
        """Accept no further client. Calls that are under way are not cut off here."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

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
            VarlinkTransport(loop, client, client, registry.protocol_factory())

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
