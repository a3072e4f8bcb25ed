# SPDX-License-Identifier: Apache-2.0
"""Files of the AP bus and its drivers: /sys/bus/ap."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .numbers import (
    format_mask,
    parse_bool,
    parse_unsigned,
    refuse,
    scan_int,
    scan_int_any_base,
    scan_unsigned,
)
from .tree import Attribute, Below, Directory, Entry, Folder, Folders, Links, Symlink
from .uevent_files import synthetic

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .devices import Driver
    from .state import State

_FEATURES = ("apsc", "apxa", "qact", "rc8a", "apsb")  # in the order in which they are printed
_MAX_POLL_TIMEOUT = 120_000_000_000


class BusFiles:
    """The tables of attributes. Shows and stores run under the kernel's lock."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._bus = state.bus
        self._generation = state.generation
        self._machine = state.machine
        self.table: Mapping[str, Entry[State]] = {**self._read_only(), **self._writable(), **self._below()}
        self._driver_table: Mapping[str, Entry[Driver]] = {
            "bind": Attribute(0o200, None, self._bus.bind_by_name),
            "unbind": Attribute(0o200, None, self._bus.unbind_by_name),
            "uevent": Attribute(0o200, None, self._driver_uevent),
            "module": Symlink(lambda driver: f"../../../../module/{driver.module}"),
        }

    def folder(self) -> Directory:
        return Folder(self._state, self.table)

    def _below(self) -> dict[str, Entry[State]]:
        devices = Links(lambda: self._bus.devices, lambda name: f"../../..{self._bus.devices[name].devpath}")
        drivers = Folders(lambda: self._bus.drivers, self._driver_folder)
        return {
            "devices": Below(lambda state: Folder(state, {}, (devices,))),
            "drivers": Below(lambda state: Folder(state, {}, (drivers,))),
        }

    def _driver_folder(self, driver: Driver) -> Directory:
        links = Links(lambda: driver.devices, lambda name: f"../../../..{driver.devices[name].devpath}")
        return Folder(driver, self._driver_table, (links,))

    def _read_only(self) -> dict[str, Entry[State]]:
        machine, scanner, bus = self._machine, self._state.scanner, self._bus
        return {
            "ap_control_domain_mask": Attribute(0o444, self._qci_mask(lambda: scanner.qci.control)),
            "ap_usage_domain_mask": Attribute(0o444, self._qci_mask(lambda: scanner.qci.usage)),
            "ap_adapter_mask": Attribute(0o444, self._qci_mask(lambda: scanner.qci.adapters)),
            "ap_interrupts": Attribute(0o444, lambda _state: f"{machine.has_interrupts:d}\n"),
            "ap_max_domain_id": Attribute(0o444, lambda _state: f"{machine.domain_limit}\n"),
            "ap_max_adapter_id": Attribute(0o444, lambda _state: f"{machine.adapter_limit}\n"),
            "bindings": Attribute(0o444, self._show_bindings),
            "bindings_complete_count": Attribute(
                0o444,
                lambda _state: f"{bus.complete_count}\n",
                when=lambda _state: self._generation.has_complete_count,
            ),
            "features": Attribute(
                0o444, self._show_features, when=lambda _state: self._generation.has_features
            ),
        }

    def _writable(self) -> dict[str, Entry[State]]:
        bus = self._bus
        return {
            "ap_domain": Attribute(0o644, self._show_domain, self._store_domain),
            "config_time": Attribute(0o644, lambda state: f"{state.config_time}\n", _store_config_time),
            "poll_thread": Attribute(
                0o644, lambda state: f"{state.poll_thread:d}\n", self._store_poll_thread
            ),
            "poll_timeout": Attribute(
                0o644, lambda state: f"{state.poll_timeout}\n", self._store_poll_timeout
            ),
            "apmask": Attribute(
                0o644,
                lambda _state: format_mask(bus.apmask) + "\n",
                lambda _state, text: bus.write_apmask(text),
            ),
            "aqmask": Attribute(
                0o644,
                lambda _state: format_mask(bus.aqmask) + "\n",
                lambda _state, text: bus.write_aqmask(text),
            ),
            "scans": Attribute(0o644, lambda _state: f"{bus.scans}\n", self._store_scans),
            "uevent": Attribute(0o200, None, self._bus_uevent),
            "drivers_probe": Attribute(0o200, None, lambda _state, text: bus.probe_by_name(text)),
            "drivers_autoprobe": Attribute(
                0o644, lambda _state: f"{bus.autoprobe:d}\n", self._store_autoprobe
            ),
        }

    def _qci_mask(self, mask: Callable[[], int]) -> Callable[[State], str]:
        def show(_state: State) -> str:
            return f"{format_mask(mask())}\n" if self._machine.has_qci else "not supported\n"

        return show

    def _show_bindings(self, _state: State) -> str:
        bus = self._bus
        complete = bus.scans > 0 and bus.bound_count == bus.queue_count
        return f"{bus.bound_count}/{bus.queue_count}{' (complete)' if complete else ''}\n"

    def _show_features(self, _state: State) -> str:
        if not self._machine.has_qci:
            return "-\n"
        words = [word.upper() for word in _FEATURES if word in self._machine.flags]
        return " ".join(words) + "\n" if words else ""

    def _show_domain(self, state: State) -> str:
        return f"{state.scanner.default_domain}\n"

    def _store_domain(self, state: State, text: str) -> None:
        domain = scan_int_any_base(text)
        if not 0 <= domain <= self._machine.domain_limit or not self._bus.aqmask >> domain & 1:
            raise refuse(errno.EINVAL)
        state.scanner.default_domain = domain

    def _store_poll_thread(self, state: State, text: str) -> None:
        generation = self._generation
        if generation.strict_switches:
            on = parse_bool(text, knows_enable=generation.knows_enable)
        else:
            on = bool(scan_int(text))
        # With interrupts the kernel has nothing to poll for and takes the write without effect.
        state.poll_thread = on and not self._machine.has_interrupts

    def _store_poll_timeout(self, state: State, text: str) -> None:
        if self._generation.strict_switches:
            value, least = parse_unsigned(text), 0
        else:
            value, least = scan_unsigned(text), 1
        if not least <= value <= _MAX_POLL_TIMEOUT:
            raise refuse(errno.EINVAL)
        state.poll_timeout = value

    def _store_scans(self, state: State, _text: str) -> None:
        state.scanner.scan()

    def _store_autoprobe(self, _state: State, text: str) -> None:
        self._bus.autoprobe = text[:1] != "0"

    def _bus_uevent(self, state: State, text: str) -> None:
        action, keys = synthetic(text)
        state.events.emit(action, "/bus/ap", "bus", keys)

    def _driver_uevent(self, driver: Driver, text: str) -> None:
        action, keys = synthetic(text)
        self._state.events.emit(action, f"/bus/ap/drivers/{driver.name}", "drivers", keys)


def _store_config_time(state: State, text: str) -> None:
    seconds = scan_int(text)
    if not 5 <= seconds <= 120:
        raise refuse(errno.EINVAL)
    state.config_time = seconds
