# SPDX-License-Identifier: Apache-2.0
"""The recorder's guest process, played on the emulator: each call of KVM and VFIO with its errno."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from .numbers import refuse

if TYPE_CHECKING:
    from .guests import Guest
    from .kernel import Kernel

Line = dict[str, Any]

_BEFORE_GROUP = ("open /dev/kvm", "KVM_CREATE_VM", "open /dev/vfio/vfio")
_CONTAINER = ("SET_CONTAINER", "SET_IOMMU")
_KVM = ("KVM_CREATE_DEVICE vfio", "VFIO_GROUP_ADD")
_INTERRUPTS = {"req": "SET_IRQS req", "cfg": "SET_IRQS cfg_chg"}
_DEVICE_FLAGS = 1 | 1 << 5  # VFIO_DEVICE_FLAGS_RESET, VFIO_DEVICE_FLAGS_AP


class GuestPlayer:
    """Keeps what a recorded process keeps: its steps, its device, its eventfds."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._guests: dict[str, Guest | None] = {}
        self._opened: dict[str, list[Guest]] = {}  # groups stay open until the process ends
        self._listening: dict[str, list[str]] = {}
        self._read: dict[str, tuple[int, int]] = {}

    def open(self, line: Line) -> Line:
        steps: list[list[object]] = [[step, 0] for step in _BEFORE_GROUP]
        try:
            self._open(line, steps)
        except OSError as error:
            return _failed(error) | {"more": {"steps": steps}}
        return {"more": {"steps": steps}}

    def _open(self, line: Line, steps: list[list[object]]) -> None:
        name, options = line["name"], line["opts"]
        self._guests[name] = None
        self._listening[name] = []
        self._read[name] = (0, 0)
        guests = self._kernel.state.guests
        with self._kernel.lock:
            guest = _step(steps, "open /dev/vfio/GROUP", lambda: guests.open_group(name, line["uuid"]))
            self._opened.setdefault(name, []).append(guest)
            guest.listens_to_requests = guest.listens_to_changes = False
            has_kvm = "nokvm" not in options
            steps += [[step, 0] for step in (*_CONTAINER, *(_KVM if has_kvm else ()))]
            _step(steps, "GET_DEVICE_FD", lambda: guests.open_device(guest, has_kvm=has_kvm))
            self._guests[name] = guest
            for index, option in enumerate(_INTERRUPTS):
                if option in options:
                    _step(steps, _INTERRUPTS[option], lambda index=index: self._listen(guest, index))
                    self._listening[name].append(option)

    def _listen(self, guest: Guest, index: int) -> None:
        self._check_interrupt(index)
        if index == 0:
            guest.listens_to_requests = True
        else:
            guest.listens_to_changes = True

    def _check_interrupt(self, index: int) -> None:
        known = self._kernel.state.generation.interrupts
        if index >= known:
            # Without any interrupt the driver lacks the calls altogether.
            raise refuse(errno.EINVAL if known else errno.EOPNOTSUPP)

    def do(self, line: Line) -> Line:
        guest = self._guests[line["name"]]
        what = line["do"]
        if guest is None:
            # The recorder's process had no device to ask; all it recorded is its own exception.
            return {"errno": line.get("errno", 0), "more": {"exc": line.get("exc")}}
        if what == "info":
            irqs = self._kernel.state.generation.interrupts
            return {"more": {"flags": _DEVICE_FLAGS, "num_regions": 0, "num_irqs": irqs}}
        if what.startswith("irqinfo"):
            index = int(what.split()[1])
            self._check_interrupt(index)
            return {"more": {"flags": 1, "index": index, "count": 1}}
        if what == "reset":
            with self._kernel.lock:
                self._kernel.state.guests.reset_device(guest)
            return {}
        return {"more": {"eventfds": self._new_events(line["name"], guest)}}

    def _new_events(self, name: str, guest: Guest) -> dict[str, int]:
        requests, changes = self._read[name]
        self._read[name] = (guest.requests, guest.changes)
        new = {"req": guest.requests - requests, "cfg": guest.changes - changes}
        return {option: new[option] for option in self._listening[name]}

    def close(self, line: Line) -> Line:
        self._guests.pop(line["name"], None)
        with self._kernel.lock:
            for guest in self._opened.pop(line["name"], []):
                self._kernel.state.guests.close(guest)
        return {"errno": line.get("errno", 0), "rc": 0}


def _step(steps: list[list[object]], name: str, call: Any) -> Any:
    try:
        result = call()
    except OSError as error:
        steps.append([name, _failed(error)["err"]])
        raise
    steps.append([name, 0])
    return result


def _failed(error: OSError) -> Line:
    code = error.errno or 0
    return {"errno": code, "err": errno.errorcode.get(code, str(code))}
