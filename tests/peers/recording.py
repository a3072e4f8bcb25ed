# SPDX-License-Identifier: Apache-2.0
"""The recorded session of real tools on a real kernel (6.12): its machine as a host file, and its lines.

What is normalised is what the recordings' description lets differ: counters, group numbers, devices of the
recorded machine that have nothing to do with AP.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vfioapd.emulator.machine import Mode
from vfioapd.emulator.traces import RECORDED_FUNCTIONS

ORACLE = Path(__file__).resolve().parents[2].parent / "shared" / "oracle"
SESSION = ORACLE / "6.12" / "s20-tools.jsonl"
Line = dict[str, Any]

_COUNTED = re.compile(r"^([0-9a-f]{2}(?:\.[0-9a-f]{4})? .*(?:online|offline) +)\d+( +\d+ |$)", re.MULTILINE)
_GROUP = re.compile(r"(iommuGroup number=)'\d+'")
_FOREIGN = re.compile(r"^(?:block|ccw|css|net|pci|scsi|usb|drm|acpi)_\S*\n", re.MULTILINE)


def read_session() -> list[Line]:
    if not SESSION.exists():
        pytest.skip(f"the recordings of real kernels are not at hand ({ORACLE})")
    return [json.loads(line) for line in SESSION.read_text().splitlines()]


def host_file(session: Line) -> str:
    """The recorded machine, with the limits of the one that was recorded."""
    config = session["ap_config"]
    domains = {key: config[key] for key in ("max_adapter", "max_domain", "usage_domains", "control_domains")}
    machine = "".join(f"{key} = {value}\n" for key, value in domains.items())
    cards = "".join(_card(int(number), card) for number, card in config["adapters"].items())
    head = f'name = "recorded"\nkernel = "6.12"\n\n[machine]\n{machine}flags = {config["flags"]}\n'
    return f"{head}\n[limits]\nsclp = false\nanswers = false\n{cards}"


def _card(number: int, card: Line) -> str:
    mode = Mode(card["mode"])
    kind = f"CEX{card['hwtype'] - 6}{mode.letter}"
    return f'\n[[card]]\nadapter = {number}\ntype = "{kind}"\nfunctions = {RECORDED_FUNCTIONS[mode]}\n'


def normalised(text: str) -> str:
    for pattern, replacement in ((_COUNTED, r"\1N\2"), (_GROUP, r"\1'N'"), (_FOREIGN, "")):
        text = pattern.sub(replacement, text)
    return text.strip("\n")
