# SPDX-License-Identifier: Apache-2.0
"""Recorded sessions of the real kernel: reading them, and what of them need not match."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .generation import GENERATIONS
from .hostfile import BootParameters, Card, Host
from .machine import DEFAULT_FUNCTIONS, FUNCTION_FILTER, FUNCTION_FULL, Adapter, Answer, Machine, Mode, Status
from .numbers import mask_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Trace lines are JSON from outside; their shapes are looked at where each is used.
Line = dict[str, Any]
Event = tuple[str, str, tuple[tuple[str, str], ...]]

# Allowance: uevents of /devices/virtual/vfio, /devices/virtual/misc/kvm, /module and /class.
# The rest of /devices/virtual are devices of the recorded machine that `udevadm trigger` touched.
_IGNORED = ("/devices/virtual/", "/module/", "/class/")
_OURS = ("/devices/ap", "/devices/vfio_ap", "/bus/ap", "/bus/matrix", "/bus/mdev")
# Allowance: SEQNUM, minor, group and module numbers, PIDs, STATS_PATH.
_IGNORED_KEYS = ("ACTION", "DEVPATH", "SEQNUM", "PID", "STATS_PATH")
# Allowance: counters (request_count, load, scans), serialnr.
_COUNTERS = ("request_count", "load", "scans", "serialnr")
# What the recorded machine's cards answered: with the filter, without the mark of a full function set.
RECORDED_FUNCTIONS = {
    mode: functions & ~FUNCTION_FULL | FUNCTION_FILTER for mode, functions in DEFAULT_FUNCTIONS.items()
}


@dataclass(frozen=True, slots=True)
class Session:
    name: str
    kernel: str
    host: Host
    state: Line
    lines: tuple[Line, ...]


def load_session(path: Path, kernel: str | None = None) -> Session:
    """One trace file. `kernel` overrides the generation that it was recorded on."""
    with path.open(encoding="utf-8") as file:
        head, *lines = [json.loads(line) for line in file]
    generation = kernel or ".".join(head["kernel"].split("-")[0].split(".")[:2])
    return Session(head["session"], generation, _host(head, generation), head["state"], tuple(lines))


def _host(head: Line, kernel: str) -> Host:
    config = head["ap_config"]
    state = head["state"]
    modules = []
    if any("driver" in card for card in state["cards"].values()):
        modules.append("zcrypt_cex4")
    if "vfio_ap" not in state:
        modules.append("vfio_ap")
    return Host(
        name=head["session"],
        kernel=GENERATIONS[kernel],
        max_adapter=config["max_adapter"],
        max_domain=config["max_domain"],
        flags=frozenset(config["flags"]),
        qci=state["ap_adapter_mask"] != "not supported",
        usage_domains=tuple(config["usage_domains"]),
        control_domains=tuple(config["control_domains"]),
        cards=tuple(_card(int(number), adapter) for number, adapter in config["adapters"].items()),
        modules=tuple(modules),
        boot=_boot_parameters(head["cmdline"]),
        # Limits of the recorded machine: no SCLP AP configuration, no answers to key queries.
        sclp=False,
        answers=False,
    )


def _boot_parameters(command_line: str) -> BootParameters:
    words = dict(word.partition("=")[::2] for word in shlex.split(command_line) if word.startswith("ap."))
    domain = words.get("ap.domain", "")
    number = int(domain, 0) if domain.removeprefix("0x").isalnum() and domain[:1].isdigit() else None
    return BootParameters(words.get("ap.apmask"), words.get("ap.aqmask"), number)


def _card(number: int, adapter: Mapping[str, Any]) -> Card:
    mode = Mode(adapter["mode"])
    status = adapter.get("status", "ok")
    return Card(
        adapter=number,
        type=f"CEX{adapter['hwtype'] - 6}{mode.letter}",
        functions=adapter.get("functions", RECORDED_FUNCTIONS[mode]),
        standby=status == Status.DECONFIGURED,
        checkstop=status == Status.CHECKSTOPPED,
    )


def change_machine(machine: Machine, config: Mapping[str, Any]) -> None:
    """A `play` line: the machine has another AP configuration from now on."""
    machine.max_adapter = config["max_adapter"]
    machine.max_domain = config["max_domain"]
    machine.flags = frozenset(config["flags"])
    machine.usage = mask_of(config["usage_domains"])
    machine.control = mask_of(config["control_domains"])
    machine.adapters = {int(number): _plug(int(number), a) for number, a in config["adapters"].items()}
    machine.queue_answers = {}
    for name, code in config.get("queue_rc", {}).items():
        adapter, domain = (int(part, 16) for part in name.split("."))
        machine.queue_answers[adapter, domain] = Answer(code)


def _plug(number: int, adapter: Mapping[str, Any]) -> Adapter:
    return _card(number, adapter).plug()


def comparable_event(action: str, devpath: str, env: Mapping[str, str]) -> Event | None:
    """What has to agree of one uevent; None for those that need not."""
    if devpath.startswith(_IGNORED) or not devpath.startswith(_OURS):
        return None
    return action, devpath, tuple((key, value) for key, value in env.items() if key not in _IGNORED_KEYS)


def is_asynchronous(event: Event) -> bool:
    """Allowance: BINDINGS=complete and SYNTH_UUID events may move to the neighbouring operation."""
    return any(key in ("BINDINGS", "SYNTH_UUID") for key, _ in event[2])


def comparable_text(path: str, text: str) -> str:
    """Text of a read, with counters and values that the machine did not answer taken out."""
    name = path.rpartition("/")[2]
    if name in _COUNTERS and text.strip().isdigit():
        return "NUMBER\n"
    return text


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> Line:
    """What differs between two snapshots, nested like them; None is gone."""
    changed: Line = {}
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            below = difference(old, new)
            if below:
                changed[key] = below
        elif old != new:
            changed[key] = new
    return changed
