# SPDX-License-Identifier: Apache-2.0
"""The bus scan: what the machine has now against what the kernel knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .devices import Card, Queue
from .machine import Adapter, Answer
from .numbers import bits

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .bus import Bus


@dataclass(frozen=True, slots=True)
class Qci:
    """One answer to "query configuration information"."""

    adapters: int = 0
    usage: int = 0
    control: int = 0


class ConfigListener(Protocol):
    """vfio_ap's two callbacks."""

    def on_config_changed(self, new: Qci, old: Qci) -> None: ...

    def on_scan_complete(self) -> None: ...


class Scanner:
    """ap_scan_bus. All methods need the kernel's lock."""

    def __init__(self, bus: Bus, domain: int | None) -> None:
        self._bus = bus
        self._machine = bus.machine
        self.qci = Qci()
        self.listener: ConfigListener | None = None
        self.default_domain = self._boot_domain(domain)

    def _boot_domain(self, domain: int | None) -> int:
        if domain is None or domain > self._machine.domain_limit or not self._bus.aqmask >> domain & 1:
            return -1
        return domain

    def scan(self) -> None:
        """One complete scan."""
        old, self.qci = self.qci, self.query()
        changed = self.qci != old and self._bus.scans > 0
        if changed:
            self._config_changed(old)
        self._select_domain()
        for adapter in self._adapters():
            self._scan_adapter(adapter)
        if changed and self.listener:
            self.listener.on_scan_complete()
        self._bus.scan_finished()

    def query(self) -> Qci:
        """What the machine says at this moment."""
        machine = self._machine
        if not machine.has_qci:
            return Qci()
        return Qci(machine.adapter_mask, machine.usage, machine.control)

    def _config_changed(self, old: Qci) -> None:
        if self.qci.adapters & ~old.adapters or self.qci.usage & ~old.usage:
            self._bus.rearm_bindings()
        if self.listener:
            self.listener.on_config_changed(self.qci, old)

    def _select_domain(self) -> None:
        """Without ap.domain= the lowest host-owned domain that answers becomes the default, once."""
        if self.default_domain >= 0:
            return
        host_adapters = self._machine.adapter_mask & self._bus.apmask
        for domain in bits(self._machine.usage & self._bus.aqmask):
            for adapter in bits(host_adapters):
                if self._machine.test_queue(adapter, domain) is Answer.NORMAL:
                    self.default_domain = domain
                    return

    def _adapters(self) -> Iterable[int]:
        limit = (2 << self._machine.adapter_limit) - 1
        return sorted({*bits(self._machine.adapter_mask & limit), *self._bus.cards})

    def _scan_adapter(self, number: int) -> None:
        card = self._bus.cards.get(number)
        adapter = self._machine.adapters.get(number)
        answer = self._machine.first_answering(number) if adapter else None
        if adapter is None or answer is None:
            if card:
                self._remove_card(card)
            return
        functions = adapter.functions & self._bus.generation.functions_mask
        if card and (card.raw_hwtype != adapter.hwtype or card.functions != functions):
            self._remove_card(card)
            card = None
        if card:
            self._update_card(card, answer)
        else:
            card = self._create_card(number, adapter, functions, answer)
        self._scan_domains(card)

    def _remove_card(self, card: Card) -> None:
        for queue in sorted(card.queues.values(), key=lambda queue: queue.order):
            self._bus.remove(queue)
        self._bus.remove(card)

    def _create_card(self, number: int, adapter: Adapter, functions: int, answer: Answer) -> Card:
        depth = adapter.depth + self._bus.generation.depth_offset
        card = Card(number, adapter.hwtype, functions, depth, adapter.message_units)
        card.config = answer is not Answer.DECONFIGURED
        card.chkstop = answer is Answer.CHECKSTOPPED
        self._bus.add(card)
        return card

    def _update_card(self, card: Card, answer: Answer) -> None:
        card.chkstop = answer is Answer.CHECKSTOPPED
        config = answer is not Answer.DECONFIGURED
        if config != card.config:
            card.config = config
            self._bus.device_event("change", card, ("CONFIG", str(int(config))))

    def _scan_domains(self, card: Card) -> None:
        limit = (2 << self._machine.domain_limit) - 1
        for domain in sorted({*bits(self._machine.usage & limit), *card.queues}):
            queue = card.queues.get(domain)
            answer = self._machine.test_queue(card.adapter, domain)
            if answer is Answer.NOT_AVAILABLE:
                if queue:
                    self._bus.remove(queue)
            elif queue:
                self._update_queue(queue, answer)
            else:
                self._create_queue(card, domain, answer)

    def _create_queue(self, card: Card, domain: int, answer: Answer) -> None:
        queue = Queue(card, domain)
        queue.config = answer is not Answer.DECONFIGURED
        queue.chkstop = answer is Answer.CHECKSTOPPED
        self._bus.add(queue)
        if self._bus.generation.scan_starts_queues and answer is Answer.NORMAL:
            queue.start()

    def _update_queue(self, queue: Queue, answer: Answer) -> None:
        """One change per scan, checkstop before configuration."""
        chkstop = answer is Answer.CHECKSTOPPED
        config = answer is not Answer.DECONFIGURED
        if chkstop != queue.chkstop:
            queue.chkstop = chkstop
        elif config != queue.config:
            queue.config = config
            self._bus.device_event("change", queue, ("CONFIG", str(int(config))))
