# SPDX-License-Identifier: Apache-2.0
"""Files of cards and queues: /sys/devices/ap/cardXX and /sys/devices/ap/cardXX/XX.YYYY."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .machine import Answer, Mode, Status
from .numbers import refuse, scan_int
from .tree import Attribute, Directory, Entry, Folder, Folders, Symlink, Wait
from .uevent_files import synthetic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .devices import Card, Queue
    from .state import State

PAGE = 4096
OP_MODES = (
    "FIPS2009 BSI2009 FIPS2011 BSI2011 SIGG-IMPORT SIGG BSICC2017 FIPS2021 FIPS2024".split()  # noqa: SIM905
)
OP_MODES_6_1 = ("FIPS2009", "BSI2009", "FIPS2011", "BSI2011", "BSICC2017")
_CCA_KEYS = {"AES": 16, "APKA": 16, "ASYM": 32}


class DeviceFiles:
    """The tables of attributes. Shows and stores run under the kernel's lock."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._bus = state.bus
        self._generation = state.generation
        self._machine = state.machine
        self.card_table: Mapping[str, Entry[Card]] = self._card_table()
        self.queue_table: Mapping[str, Entry[Queue]] = self._queue_table()

    def card_folder(self, card: Card) -> Directory:
        queues = Folders(lambda: card.queue_names, self.queue_folder)
        return Folder(card, self.card_table, (queues,))

    def queue_folder(self, queue: Queue) -> Directory:
        return Folder(queue, self.queue_table)

    # --- cards

    def _card_table(self) -> dict[str, Entry[Card]]:
        return {
            "hwtype": Attribute(0o444, lambda card: f"{card.hwtype}\n"),
            "raw_hwtype": Attribute(0o444, lambda card: f"{card.raw_hwtype}\n"),
            "depth": Attribute(0o444, lambda card: f"{card.depth}\n"),
            "ap_functions": Attribute(0o444, lambda card: f"0x{card.functions:08X}\n"),
            "request_count": Attribute(0o644, lambda card: f"{card.request_count}\n", _clear_card_count),
            "requestq_count": Attribute(0o444, _zero),
            "pendingq_count": Attribute(0o444, _zero),
            "modalias": Attribute(0o444, lambda card: f"ap:t{card.hwtype:02X}\n"),
            "config": Attribute(0o644, lambda card: f"{card.config:d}\n", self._store_card_config),
            "chkstop": Attribute(0o444, lambda card: f"{card.chkstop:d}\n"),
            "max_msg_size": Attribute(0o444, self._show_max_msg_size),
            "uevent": Attribute(0o644, _uevent_text, self._synthesize),
            "subsystem": Symlink(lambda _card: "../../../bus/ap"),
            "driver": Symlink(lambda card: _driver_link(card, 3)),
            "type": Attribute(0o444, _card_type, when=_is_zcrypt_card),
            "online": Attribute(0o644, self._show_card_online, self._store_card_online, _is_zcrypt_card),
            "load": Attribute(0o444, _zero, when=_is_zcrypt_card),
            "serialnr": Attribute(0o444, self._show_serial, when=_has_serial),
            "API_ordinalnr": Attribute(0o444, self._show_api_ordinal, when=_is_ep11_card),
            "FW_version": Attribute(0o444, self._show_firmware, when=_is_ep11_card),
            "op_modes": Attribute(0o444, self._show_card_op_modes, when=_is_ep11_card),
        }

    def _show_max_msg_size(self, card: Card) -> str:
        # From 6.12 on a count that means less than the architecture's 12288 bytes does not count.
        least = 4 if self._generation.scan_starts_queues else 1
        return f"{card.message_units * PAGE if card.message_units >= least else 3 * PAGE}\n"

    def _is_online(self, device: Card | Queue, *, software: bool) -> bool:
        stopped = device.chkstop and self._generation.online_minds_checkstop
        return device.config and not stopped and software

    def _show_card_online(self, card: Card) -> str:
        return f"{self._is_online(card, software=bool(card.zcrypt and card.zcrypt.online)):d}\n"

    def _store_card_online(self, card: Card, text: str) -> None:
        online = _switch(text)
        if online and not self._is_online(card, software=True):
            raise refuse(errno.ENODEV)
        assert card.zcrypt is not None
        card.zcrypt.online = online
        self._bus.device_event("change", card, ("ONLINE", f"{online:d}"))
        for queue in list(card.zcrypt.queues.values()):
            if queue.zcrypt and queue.zcrypt.online != online:
                queue.zcrypt.online = online
                self._bus.device_event("change", queue, ("ONLINE", f"{online:d}"))

    def _store_card_config(self, card: Card, text: str) -> None:
        config = _switch(text)
        if config != card.config:
            self._machine.configure(card.adapter, on=config)
        card.config = config
        self._bus.device_event("change", card, ("CONFIG", f"{config:d}"))

    def _answers(self, card: Card) -> bool:
        """Values are fetched through a queue that the host may use."""
        return self._machine.answers and any(
            queue.zcrypt and self._is_online(queue, software=queue.zcrypt.online)
            for queue in card.queues.values()
        )

    def _fetched(self, card: Card, field: str) -> str:
        adapter = self._machine.adapters.get(card.adapter)
        if adapter is None or not self._answers(card):
            return "\n"
        return f"{getattr(adapter, field)}\n"

    def _show_serial(self, card: Card) -> str:
        return self._fetched(card, "serial")

    def _show_api_ordinal(self, card: Card) -> str:
        return self._fetched(card, "api_ordinal")

    def _show_firmware(self, card: Card) -> str:
        return self._fetched(card, "firmware")

    def _show_card_op_modes(self, card: Card) -> str:
        adapter = self._machine.adapters.get(card.adapter)
        if adapter is None or not self._answers(card):
            return "\n"
        known = OP_MODES if self._generation.knows_all_op_modes else OP_MODES_6_1
        return " ".join(mode for mode in known if mode in adapter.op_modes) + "\n"

    # --- queues

    def _queue_table(self) -> dict[str, Entry[Queue]]:
        return {
            "request_count": Attribute(0o644, _queue_count, _clear_queue_count),
            "requestq_count": Attribute(0o444, _zero),
            "pendingq_count": Attribute(0o444, _zero),
            "reset": Attribute(0o644, lambda _queue: "No Reset Timer set.\n", self._store_reset),
            "interrupt": Attribute(0o444, self._show_interrupt),
            "config": Attribute(0o444, lambda queue: f"{queue.config:d}\n"),
            "chkstop": Attribute(0o444, lambda queue: f"{queue.chkstop:d}\n"),
            "ap_functions": Attribute(
                0o444, self._show_functions, when=lambda _queue: self._generation.has_queue_functions
            ),
            "driver_override": Attribute(
                0o644,
                lambda queue: f"{queue.override or ''}\n",
                self._bus.write_override,
                lambda _queue: self._generation.has_driver_override,
            ),
            "uevent": Attribute(0o644, _uevent_text, self._synthesize),
            "subsystem": Symlink(lambda _queue: "../../../../bus/ap"),
            "driver": Symlink(lambda queue: _driver_link(queue, 4)),
            "online": Attribute(0o644, self._show_online, self._store_online, _is_zcrypt_queue),
            "load": Attribute(0o444, _zero, when=_is_zcrypt_queue),
            "mkvps": Attribute(0o444, self._show_mkvps, when=_has_mkvps),
            "op_modes": Attribute(0o444, self._show_op_modes, when=_is_ep11_queue),
            "status": Attribute(0o444, self._show_status, when=self._is_vfio_queue),
        }

    def _is_vfio_queue(self, queue: Queue) -> bool:
        return queue.driver is not None and not queue.driver.is_default

    def _show_status(self, queue: Queue) -> str:
        vfio_ap = self._state.modules.vfio_ap
        return f"{vfio_ap.status_of(queue) if vfio_ap else 'unassigned'}\n"

    def _show_interrupt(self, queue: Queue) -> str:
        enabled = queue.interrupt and self._machine.has_interrupts
        return f"Interrupts {'enabled' if enabled else 'disabled'}.\n"

    def _store_reset(self, queue: Queue, _text: str) -> None:
        if queue.operating:
            self._machine.reset_queue(queue.adapter, queue.domain)

    def _show_functions(self, queue: Queue) -> str:
        adapter = self._machine.adapters.get(queue.adapter)
        answer = self._machine.test_queue(queue.adapter, queue.domain)
        # EIO is for response codes above "busy" alone: an APQN that has gone answers, with nothing.
        known = adapter is not None and answer is not Answer.NOT_AVAILABLE
        functions = adapter.functions if adapter and known else 0
        return f"0x{functions & self._generation.functions_mask:08X}\n"

    def _show_online(self, queue: Queue) -> str:
        return f"{self._is_online(queue, software=bool(queue.zcrypt and queue.zcrypt.online)):d}\n"

    def _store_online(self, queue: Queue, text: str) -> None:
        online = _switch(text)
        usable = self._is_online(queue, software=True) and self._is_online(queue.card, software=True)
        if online and not usable:
            raise refuse(errno.ENODEV)
        assert queue.zcrypt is not None
        if online and not queue.zcrypt.card.online:
            raise refuse(errno.EINVAL)
        queue.zcrypt.online = online
        self._bus.device_event("change", queue, ("ONLINE", f"{online:d}"))

    def _show_mkvps(self, queue: Queue) -> str:
        adapter = self._machine.adapters.get(queue.adapter)
        online = queue.zcrypt is not None and queue.zcrypt.online
        known = self._machine.answers and online and adapter is not None and adapter.status is Status.OK
        given = adapter.mkvps.get(queue.domain, {}) if adapter else {}
        lines = _ep11_registers(given) if queue.card.mode is Mode.EP11 else _cca_registers(given)
        return "".join(f"{name}: {value if known else '- -'}\n" for name, value in lines.items())

    def _show_op_modes(self, queue: Queue) -> str:
        online = queue.zcrypt is not None and queue.zcrypt.online
        return self._show_card_op_modes(queue.card) if online else "\n"

    def _synthesize(self, device: Card | Queue, text: str) -> Wait | None:
        action, keys = synthetic(text)
        self._bus.device_event(action, device, *keys)
        return None


def _cca_registers(given: Mapping[str, str]) -> dict[str, str]:
    registers = {}
    for kind, digits in _CCA_KEYS.items():
        for age, state in (("NEW", "empty"), ("CUR", "invalid"), ("OLD", "invalid")):
            name = f"{kind} {age}"
            registers[name] = given.get(name, f"{state} 0x{0:0{digits}x}")
    return registers


def _ep11_registers(given: Mapping[str, str]) -> dict[str, str]:
    return {"WK CUR": given.get("WK CUR", "invalid -"), "WK NEW": given.get("WK NEW", "empty -")}


def _switch(text: str) -> bool:
    value = scan_int(text)
    if value not in (0, 1):
        raise refuse(errno.EINVAL)
    return bool(value)


def _zero(_device: Card | Queue) -> str:
    return "0\n"


def _clear_card_count(card: Card, _text: str) -> None:
    card.request_count = 0
    for queue in card.queues.values():
        queue.request_count = 0


def _clear_queue_count(queue: Queue, _text: str) -> None:
    queue.request_count = 0


def _queue_count(queue: Queue) -> str:
    return f"{queue.request_count}\n" if queue.operating else "-\n"


def _uevent_text(device: Card | Queue) -> str:
    return "".join(f"{key}={value}\n" for key, value in device.event_keys("change"))


def _driver_link(device: Card | Queue, depth: int) -> str | None:
    return f"{'../' * depth}bus/ap/drivers/{device.driver.name}" if device.driver else None


def _card_type(card: Card) -> str:
    return f"CEX{card.hwtype - 6}{card.mode.letter if card.mode else ''}\n"


def _is_zcrypt_card(card: Card) -> bool:
    return card.zcrypt is not None


def _is_ep11_card(card: Card) -> bool:
    return card.zcrypt is not None and card.mode is Mode.EP11


def _has_serial(card: Card) -> bool:
    return card.zcrypt is not None and card.mode is not Mode.ACCEL


def _is_zcrypt_queue(queue: Queue) -> bool:
    return queue.zcrypt is not None


def _has_mkvps(queue: Queue) -> bool:
    return queue.zcrypt is not None and queue.card.mode is not Mode.ACCEL


def _is_ep11_queue(queue: Queue) -> bool:
    return queue.zcrypt is not None and queue.card.mode is Mode.EP11
