# SPDX-License-Identifier: Apache-2.0
"""What happens to the machine from outside: actions of an HMC operator, and faults."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from .hostfile import Card, HostFileError, parse_host
from .machine import Answer, Machine, Status
from .numbers import refuse
from .tree import Wait

Action = Mapping[str, object]


class PlayError(Exception):
    """An action that cannot be played. The text names action, key and fix."""


@dataclass(slots=True)
class Faults:
    """Files that misbehave: an errno per access, or a hang until it is mended."""

    errors: dict[tuple[str, str], int] = field(default_factory=dict)
    hangs: dict[str, threading.Event] = field(default_factory=dict)

    def check(self, path: str, access: str) -> Wait | None:
        """Raise the errno that was put on this file, or say that a write to it hangs."""
        if not self.errors and not self.hangs:
            return None
        code = self.errors.get((path, access))
        if code is not None:
            raise refuse(code)
        hang = self.hangs.get(path) if access == "write" else None
        return Wait(hang) if hang else None

    def mend(self, path: str) -> None:
        """The file behaves again; hanging writers go on."""
        for access in ("read", "write"):
            self.errors.pop((path, access), None)
        hang = self.hangs.pop(path, None)
        if hang:
            hang.set()


def play(machine: Machine, faults: Faults, action: Action) -> None:
    """Change the machine or its files. The kernel sees hardware changes at its next scan."""
    check(action)
    name = _text(action, "action")
    if name in _MACHINE_ACTIONS:
        _MACHINE_ACTIONS[name](machine, action)
    else:
        _FAULT_ACTIONS[name](faults, action)


def check(action: Action) -> None:
    """Whether an action can be played at all. PlayError naming the action or key that is not known."""
    name = _text(action, "action")
    if name not in _KEYS:
        raise PlayError(f"play action {name!r} is not known; known are {', '.join(sorted(_KEYS))}")
    for key in action:
        if key not in (*_ALWAYS, *_KEYS[name]):
            raise PlayError(f"play {name!r} has no key {key!r}; its keys are {', '.join(_KEYS[name])}")


def _text(action: Action, key: str) -> str:
    value = action.get(key)
    if not isinstance(value, str):
        raise PlayError(f"play needs the key {key!r} with a text")
    return value


def _number(action: Action, key: str) -> int:
    value = action.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 256:
        raise PlayError(f"play {action.get('action')!r} needs the key {key!r} with a number from 0 to 255")
    return value


def _seconds(action: Action) -> float:
    value = action.get("seconds")
    if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
        raise PlayError(f"play {action.get('action')!r} needs the key 'seconds' with a number from 0 up")
    return float(value)


def _add_adapter(machine: Machine, action: Action) -> None:
    card = {key: value for key, value in action.items() if key not in _ALWAYS}
    try:
        host = parse_host({"card": [card]}, "play add-adapter")
    except HostFileError as error:
        raise PlayError(str(error)) from error
    machine.adapters[host.cards[0].adapter] = host.cards[0].plug()


def _remove_adapter(machine: Machine, action: Action) -> None:
    machine.adapters.pop(_number(action, "adapter"), None)


def _set_domain(attribute: str, *, present: bool) -> Callable[[Machine, Action], None]:
    def change(machine: Machine, action: Action) -> None:
        bit = 1 << _number(action, "domain")
        mask: int = getattr(machine, attribute)
        setattr(machine, attribute, mask | bit if present else mask & ~bit)

    return change


def _set_status(status: Status) -> Callable[[Machine, Action], None]:
    def change(machine: Machine, action: Action) -> None:
        adapter = machine.adapters.get(_number(action, "adapter"))
        if adapter is None:
            raise PlayError(f"play {action['action']!r}: the machine has no adapter {action['adapter']}")
        adapter.status = status

    return change


def _set_queue(machine: Machine, action: Action) -> None:
    answers = {answer.name.lower().replace("_", "-"): answer for answer in Answer}
    word = _text(action, "state")
    if word not in answers:
        raise PlayError(f"play 'set-queue' needs the key 'state' with one of {', '.join(answers)}")
    machine.queue_answers[_number(action, "adapter"), _number(action, "domain")] = answers[word]


def _set_mkvp(machine: Machine, action: Action) -> None:
    adapter = machine.adapters.get(_number(action, "adapter"))
    if adapter is None:
        raise PlayError(f"play 'set-mkvp': the machine has no adapter {action['adapter']}")
    registers = adapter.mkvps.setdefault(_number(action, "domain"), {})
    registers[_text(action, "register")] = _text(action, "value")


def _slow_reset(machine: Machine, action: Action) -> None:
    machine.reset_seconds = _seconds(action)


def _late_bindings(machine: Machine, action: Action) -> None:
    machine.late_bindings = _seconds(action)


def _fail(faults: Faults, action: Action) -> None:
    name = str(action.get("errno", "EIO"))
    code = getattr(errno, name, None)
    if not isinstance(code, int):
        raise PlayError(f"play 'fail': {name!r} is no errno")
    faults.errors[_text(action, "path"), str(action.get("access", "read"))] = code


def _hang(faults: Faults, action: Action) -> None:
    faults.hangs.setdefault(_text(action, "path"), threading.Event())


def _mend(faults: Faults, action: Action) -> None:
    faults.mend(_text(action, "path"))


_MACHINE_ACTIONS: dict[str, Callable[[Machine, Action], None]] = {
    "add-adapter": _add_adapter,
    "remove-adapter": _remove_adapter,
    "add-domain": _set_domain("usage", present=True),
    "remove-domain": _set_domain("usage", present=False),
    "add-control-domain": _set_domain("control", present=True),
    "remove-control-domain": _set_domain("control", present=False),
    "configure": _set_status(Status.OK),
    "deconfigure": _set_status(Status.DECONFIGURED),
    "checkstop": _set_status(Status.CHECKSTOPPED),
    "set-queue": _set_queue,
    "set-mkvp": _set_mkvp,
    "slow-reset": _slow_reset,
    "late-bindings": _late_bindings,
}

_FAULT_ACTIONS: dict[str, Callable[[Faults, Action], None]] = {"fail": _fail, "hang": _hang, "mend": _mend}

_ALWAYS = ("action", "after", "scan")
_CARD_KEYS = tuple(field.name for field in fields(Card))
_KEYS: dict[str, tuple[str, ...]] = {
    "add-adapter": _CARD_KEYS,
    **dict.fromkeys(("remove-adapter", "configure", "deconfigure", "checkstop"), ("adapter",)),
    **dict.fromkeys(
        ("add-domain", "remove-domain", "add-control-domain", "remove-control-domain"), ("domain",)
    ),
    "set-queue": ("adapter", "domain", "state"),
    "set-mkvp": ("adapter", "domain", "register", "value"),
    **dict.fromkeys(("slow-reset", "late-bindings"), ("seconds",)),
    "fail": ("path", "access", "errno"),
    **dict.fromkeys(("hang", "mend"), ("path",)),
}
