# SPDX-License-Identifier: Apache-2.0
"""Between libvirt and QEMU on the QMP monitor; answers what concerns vfio-ap, passes on everything else.

Each connection of libvirt gets its own connection to QEMU, so that a restarted libvirtd is greeted
anew. Lives exactly as long as QEMU does, and then closes the device for it, whatever QEMU died of.
Not supported: file descriptors sent over the monitor (libvirt does that for network and disk hot plug).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from typing import TYPE_CHECKING

from vfioapd.lab import wire
from vfioapd.lab.guest import Behaviour
from vfioapd.lab.layout import current_lab
from vfioapd.lab.shim_bus import DRIVER, ApBus, Device, PlugError

if TYPE_CHECKING:
    from collections.abc import Coroutine

Message = wire.Message
LINE_LIMIT = 64 * 1024 * 1024  # query-qmp-schema answers with one long line
PERIPHERALS = "/machine/peripheral"

logger = logging.getLogger(__name__)


def run(bus: ApBus, monitor: int, qemu_address: bytes | str, qemu: int) -> None:
    """Until process `qemu` ends. `monitor` is the listening socket that libvirt connects to."""
    logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.INFO)
    asyncio.run(_Proxy(bus, qemu_address).run(monitor, qemu))


class _Proxy:
    def __init__(self, bus: ApBus, qemu_address: bytes | str) -> None:
        self._bus = bus
        self._qemu_address = qemu_address
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[str] = set()

    async def run(self, monitor: int, qemu: int) -> None:
        server = await asyncio.start_unix_server(
            self._serve, sock=socket.socket(fileno=monitor), limit=LINE_LIMIT
        )
        self._spawn(self._heed_kernel())
        await _end_of(qemu)
        logger.debug("QEMU has ended")
        self._bus.close()  # before libvirt hears of it, as the kernel would
        for client in self._clients:
            client.close()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.connect(self._qemu_address)  # it has been listening since before QEMU was started
        qemu_reader, qemu = await asyncio.open_unix_connection(sock=link, limit=LINE_LIMIT)
        connection = _Connection(self, client, qemu)
        self._clients.add(client)
        answers = asyncio.create_task(connection.pass_down(qemu_reader))
        try:
            await connection.pass_up(reader)
        finally:
            self._clients.discard(client)
            answers.cancel()
            qemu.close()
            client.close()

    def device_add(self, device: Device) -> Message:
        try:
            self._bus.plug(device)
        except PlugError as error:
            return {"error": {"class": "GenericError", "desc": str(error)}}
        return {"return": {}}

    def device_del(self, device: Device) -> Message:
        """As in QEMU the answer comes first and the event follows."""
        behaviour = Behaviour.read(current_lab(), self._bus.guest)
        if behaviour.refuse_unplug:
            self._spawn(self._refuse(device))
        elif device.id not in self._leaving:
            self._leaving.add(device.id)
            self._spawn(self._remove(device, behaviour.delay_unplug))
        return {"return": {}}

    def device(self, name: object) -> Device | None:
        return self._bus.devices.get(str(name))

    def peripherals(self) -> list[Message]:
        return [{"name": name, "type": f"child<{DRIVER}>"} for name in self._bus.devices]

    async def _remove(self, device: Device, delay: float) -> None:
        await asyncio.sleep(delay)
        self._leaving.discard(device.id)
        self._bus.unplug(device)
        self._emit("DEVICE_DELETED", device)

    async def _heed_kernel(self) -> None:
        """QEMU 8 and newer unplugs the device when the kernel wants it back; QEMU 7.2 does not hear it."""
        reader, writer = await asyncio.open_unix_connection(self._bus.kernel)
        writer.write(wire.encode({"command": "watch"}))
        while line := await reader.readline():
            notice = wire.decode(line)
            if (notice.get("event"), notice.get("guest")) != ("request", self._bus.guest):
                continue
            if Behaviour.read(current_lab(), self._bus.guest).release_on_request:
                for device in list(self._bus.devices.values()):
                    await self._remove(device, 0)

    async def _refuse(self, device: Device) -> None:
        self._emit("DEVICE_UNPLUG_GUEST_ERROR", device)

    def _emit(self, event: str, device: Device) -> None:
        now = time.time()
        message: Message = {
            "timestamp": {"seconds": int(now), "microseconds": int(now % 1 * 1_000_000)},
            "event": event,
            "data": {"device": device.id, "path": device.qom_path},
        }
        for client in self._clients:
            _send(client, message)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)


class _Connection:
    """One libvirt, one QEMU."""

    def __init__(self, proxy: _Proxy, client: asyncio.StreamWriter, qemu: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._client = client
        self._qemu = qemu
        self._lists: set[object] = set()  # ids of requests whose answer gets our devices added

    async def pass_up(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message = json.loads(line)
            answer = self._answer(message.get("execute"), message.get("arguments", {}))
            if answer is not None:
                logger.debug("%s -> %s", line, answer)
                _send(self._client, {**answer, "id": message.get("id")})
                continue
            if _asks_for_peripherals(message):
                self._lists.add(message.get("id"))
            self._qemu.write(line)
            await self._qemu.drain()

    async def pass_down(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message = json.loads(line) if self._lists else {}
            if message.get("id") in self._lists and "return" in message:
                self._lists.discard(message["id"])
                _send(self._client, {**message, "return": message["return"] + self._proxy.peripherals()})
            else:
                self._client.write(line)
            await self._client.drain()

    def _answer(self, command: object, arguments: Message) -> Message | None:
        """None: this is QEMU's to answer."""
        if command == "device_add" and (added := Device.from_properties(arguments)):
            return self._proxy.device_add(added)
        if command == "device_del" and (removed := self._proxy.device(arguments.get("id"))):
            return self._proxy.device_del(removed)
        if command in ("qom-get", "qom-list"):
            return self._answer_qom(command, arguments)
        return None

    def _answer_qom(self, command: object, arguments: Message) -> Message | None:
        folder, _, name = str(arguments.get("path")).rpartition("/")
        device = self._proxy.device(name) if folder == PERIPHERALS else None
        if device is None:
            return None
        properties = {"type": DRIVER, "id": device.id, "sysfsdev": device.sysfsdev, "realized": True}
        if command == "qom-list":
            kinds = {str: "string", bool: "bool"}
            listed = [{"name": key, "type": kinds[type(value)]} for key, value in properties.items()]
            return {"return": listed}
        asked = str(arguments.get("property"))
        if asked in properties:
            return {"return": properties[asked]}
        return {"error": {"class": "GenericError", "desc": f"Property 'vfio-ap.{asked}' not found"}}


def _asks_for_peripherals(message: Message) -> bool:
    match message:
        case {"execute": "qom-list", "arguments": {"path": str(path)}}:
            return path.rstrip("/") == PERIPHERALS
    return False


def _send(writer: asyncio.StreamWriter, message: Message) -> None:
    writer.write(json.dumps(message).encode() + b"\r\n")


async def _end_of(process: int) -> None:
    descriptor = os.pidfd_open(process)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ended.set)
    await ended.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)
