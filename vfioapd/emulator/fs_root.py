# SPDX-License-Identifier: Apache-2.0
"""The root of the tree: where everything hangs under /sys, modules and the zcrypt class included."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .fs_bus import BusFiles
from .fs_devices import DeviceFiles
from .fs_mdev import MdevFiles
from .numbers import format_mask, refuse
from .tree import Attribute, Below, Directory, Entry, Folder, Folders, Tree
from .uevent_files import synthetic
from .zcrypt_nodes import MAJOR, MASKS, ZcryptNode

if TYPE_CHECKING:
    from collections.abc import Callable

    from .state import State

_BUILT_IN = ("ap", "zcrypt")


def make_tree(state: State) -> Tree:
    """The tree of one boot."""
    bus, devices, mdevs = BusFiles(state), DeviceFiles(state), MdevFiles(state)
    buses = _buses(state, bus, mdevs)
    cards = Folders(lambda: state.bus.card_names, devices.card_folder)
    root_device: dict[str, Entry[State]] = {"uevent": Attribute(0o644, lambda _state: "", _root_uevent)}
    return Tree(
        _folder(
            state,
            bus=Below(lambda _state: buses),
            devices=_below(
                state,
                ap=Below(
                    lambda state: Folder(state, root_device, (cards,)) if state.machine.has_ap else None
                ),
                vfio_ap=Below(mdevs.parent_folder),
            ),
            kernel=_below(state, iommu_groups=Below(mdevs.iommu_groups)),
            module=Below(lambda state: _modules(state)),
            dev=_below(state, vfio=Below(mdevs.dev_vfio)),
            **{"class": _classes(state, mdevs)},
        )
    )


def _folder(state: State, **entries: Entry[State]) -> Folder[State]:
    return Folder(state, entries)


def _below(state: State, **entries: Entry[State]) -> Below[State]:
    folder = Folder(state, entries)
    return Below(lambda _state: folder)


def _root_uevent(state: State, text: str) -> None:
    action, keys = synthetic(text)
    state.events.emit(action, "/devices/ap", "ap", keys)


def _buses(state: State, bus: BusFiles, mdevs: MdevFiles) -> Directory:
    # Buses of the machine that are not emulated exist by name only.
    table: dict[str, Entry[State]] = {name: _below(state) for name in state.generation.other_buses}
    table["ap"] = Below(lambda state: bus.folder() if state.machine.has_ap else None)
    table["matrix"] = Below(mdevs.matrix_bus)
    table["mdev"] = Below(mdevs.mdev_bus)
    return Folder(state, table)


# --- /sys/class


def _classes(state: State, mdevs: MdevFiles) -> Below[State]:
    nodes = Folders(lambda: state.zcrypt_nodes.by_name, lambda node: _node_folder(state, node))
    zcrypt: dict[str, Entry[State]] = {
        "create": Attribute(0o600, _unreadable, lambda state, text: state.zcrypt_nodes.create(text)),
        "destroy": Attribute(0o600, _unreadable, lambda state, text: state.zcrypt_nodes.destroy(text)),
    }
    return _below(
        state,
        mdev_bus=Below(mdevs.mdev_class),
        zcrypt=Below(lambda state: Folder(state, zcrypt, (nodes,))),
    )


def _unreadable(_state: State) -> str:
    raise refuse(errno.EIO)


def _node_folder(state: State, node: ZcryptNode) -> Directory:
    def mask(which: str) -> Attribute[ZcryptNode]:
        return Attribute(
            0o644,
            lambda node: format_mask(node.masks[which]) + "\n",
            lambda node, text: state.zcrypt_nodes.write_mask(node, which, text),
        )

    table: dict[str, Entry[ZcryptNode]] = {which: mask(which) for which in MASKS}
    table["dev"] = Attribute(0o444, lambda node: f"{MAJOR}:{node.minor}\n")
    table["uevent"] = Attribute(0o644, _node_uevent, lambda _node, _text: None)
    return Folder(node, table)


def _node_uevent(node: ZcryptNode) -> str:
    return "".join(f"{key}={value}\n" for key, value in node.event_keys())


# --- /sys/module


def _modules(state: State) -> Directory:
    table: dict[str, Entry[State]] = {}
    for name in state.modules.loaded:
        table[name] = _module(state, name)
    return Folder(state, table)


def _module(state: State, name: str) -> Below[State]:
    entries: dict[str, Entry[State]] = {"uevent": Attribute(0o200, None, _module_uevent(name))}
    parameters = _parameters(state, name)
    if parameters:
        entries["parameters"] = _below(state, **parameters)
    if name not in _BUILT_IN:
        for attribute, text in _module_texts(state, name).items():
            entries[attribute] = Attribute(0o444, _constant(text))
        for directory in ("drivers", "holders", "notes", "sections"):
            entries[directory] = _below(state)
    return _below(state, **entries)


def _module_texts(state: State, name: str) -> dict[str, str]:
    vfio_ap = state.modules.vfio_ap
    users = sum(1 for mdev in vfio_ap.mdevs.values() if mdev.guest) if vfio_ap and name == "vfio_ap" else 0
    return {
        "coresize": "32768\n",
        "initsize": "0\n",
        "initstate": "live\n",
        "refcnt": f"{users}\n",
        "taint": "\n",
    }


def _module_uevent(name: str) -> Callable[[State, str], None]:
    def store(state: State, text: str) -> None:
        action, keys = synthetic(text)
        state.events.emit(action, f"/module/{name}", "module", keys)

    return store


def _constant(text: str) -> Callable[[State], str]:
    return lambda _state: text


def _parameters(state: State, module: str) -> dict[str, Entry[State]]:
    if module == "zcrypt":
        return {
            name: Attribute(mode, _constant("0\n"))
            for name, mode in state.generation.zcrypt_parameters.items()
        }
    if module != "ap":
        return {}
    boot = state.host.boot
    texts = {
        "apmask": _constant(f"{boot.apmask or '(null)'}\n"),
        "aqmask": _constant(f"{boot.aqmask or '(null)'}\n"),
        # The kernel keeps the default domain in the parameter's own variable.
        "domain": lambda state: f"{state.scanner.default_domain}\n",
        "msgpool_min_items": _constant("8\n"),
        "poll_thread": _constant("0\n"),
        "useirq": _constant("1\n"),
    }
    return {name: Attribute(mode, texts[name]) for name, mode in state.generation.ap_parameters.items()}
