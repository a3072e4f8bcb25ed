# SPDX-License-Identifier: Apache-2.0
"""A snapshot of everything that operations change, taken by reading files through either face."""

from __future__ import annotations

import contextlib
from typing import Protocol

Snapshot = dict[str, object]

MATRIX = "devices/vfio_ap/matrix"
TYPE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough"

_BUS = (
    "apmask",
    "aqmask",
    "bindings",
    "ap_adapter_mask",
    "ap_usage_domain_mask",
    "ap_control_domain_mask",
)
_CARD = ("type", "config", "chkstop", "online", "depth", "ap_functions")
_QUEUE = ("config", "chkstop", "online", "status", "driver_override")
_MDEV = ("matrix", "guest_matrix", "control_domains", "ap_config")


class Face(Protocol):
    """What both faces have."""

    def read(self, path: str) -> str: ...

    def names(self, directory: str) -> list[str]: ...

    def readlink(self, path: str) -> str: ...


def snapshot(face: Face) -> Snapshot:
    """State by sysfs file: only files that exist appear."""
    state: Snapshot = {name: text.strip() for name, text in _texts(face, "bus/ap", _BUS).items()}
    cards = _cards(face)
    state["cards"] = {card: _device(face, f"devices/ap/{card}", _CARD) for card in cards}
    state["queues"] = {
        queue: _device(face, f"devices/ap/{card}/{queue}", _QUEUE)
        for card in cards
        for queue in face.names(f"devices/ap/{card}")
        if "." in queue
    }
    return state | _vfio_ap(face)


def _cards(face: Face) -> list[str]:
    try:
        return [name for name in face.names("devices/ap") if name.startswith("card")]
    except FileNotFoundError:
        return []


def _vfio_ap(face: Face) -> Snapshot:
    try:
        names = face.names(MATRIX)
    except FileNotFoundError:
        return {"vfio_ap": "not loaded"}
    uuids = [name for name in names if name.count("-") == 4]
    return {
        "available_instances": face.read(f"{TYPE}/available_instances").strip(),
        "mdevs": {uuid: _texts(face, f"{MATRIX}/{uuid}", _MDEV) for uuid in uuids},
    }


def _device(face: Face, path: str, names: tuple[str, ...]) -> dict[str, str]:
    found = {name: text.strip() for name, text in _texts(face, path, names).items()}
    with contextlib.suppress(FileNotFoundError):
        found["driver"] = face.readlink(f"{path}/driver").rpartition("/")[2]
    return found


def _texts(face: Face, path: str, names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found[name] = face.read(f"{path}/{name}")
    return found
