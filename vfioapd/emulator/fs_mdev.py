# SPDX-License-Identifier: Apache-2.0
"""Files of vfio_ap and its mdevs: /sys/devices/vfio_ap, /sys/bus/matrix, /sys/bus/mdev and their links."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .bus import device_name
from .mdev import Mdev, format_ap_config, format_control_domains, format_matrix
from .numbers import refuse
from .tree import Attribute, Below, Directory, Entry, File, Folder, Folders, Kind, Links, Node, Symlink, Wait
from .uevent_files import synthetic
from .vfio_ap import TYPE_NAME, VfioAp

if TYPE_CHECKING:
    from .state import State


PAGE_TEXT = 4095  # what one read of a sysfs file can hold

Synthesizer = Callable[..., Callable[[object, str], None]]
MdevWrite = Callable[[VfioAp, Mdev, str], None]


class MdevFiles:
    """The tables of attributes. Shows and stores run under the kernel's lock."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._events = state.events
        self._generation = state.generation
        self._mdev_table: Mapping[str, Entry[Mdev]] = self._make_mdev_table()
        self._matrix_table: Mapping[str, Entry[VfioAp]] = self._make_matrix_table()
        self._type_table: Mapping[str, Entry[VfioAp]] = self._make_type_table()
        self._parent_table: Mapping[str, Entry[VfioAp]] = {
            "uevent": Attribute(0o644, lambda _vfio_ap: "", self._synthesizer("/devices/vfio_ap", "")),
            "module": Symlink(lambda _vfio_ap: "../../module/vfio_ap"),
            "matrix": Below(self._matrix_folder),
        }

    def vfio_ap(self) -> VfioAp | None:
        return self._state.modules.vfio_ap

    def _mdevs(self) -> dict[str, Mdev]:
        vfio_ap = self.vfio_ap()
        return vfio_ap.mdevs if vfio_ap else {}

    def _present(self) -> dict[str, Mdev]:
        """Mdevs that the mdev bus still shows: not those whose removal waits."""
        return {uuid: mdev for uuid, mdev in self._mdevs().items() if not mdev.is_leaving}

    def _bound(self) -> dict[str, Mdev]:
        return {uuid: mdev for uuid, mdev in self._mdevs().items() if mdev.has_files}

    # --- /sys/devices/vfio_ap

    def parent_folder(self, _state: State) -> Directory | None:
        vfio_ap = self.vfio_ap()
        return Folder(vfio_ap, self._parent_table) if vfio_ap else None

    def _matrix_folder(self, vfio_ap: VfioAp) -> Directory:
        return Folder(vfio_ap, self._matrix_table, (Folders(self._mdevs, self._mdev_folder),))

    def _make_matrix_table(self) -> dict[str, Entry[VfioAp]]:
        return {
            "uevent": Attribute(
                0o644,
                lambda _vfio_ap: "DRIVER=vfio_ap\n",
                self._synthesizer("/devices/vfio_ap/matrix", "matrix", ("DRIVER", "vfio_ap")),
            ),
            "features": Attribute(
                0o444,
                lambda _vfio_ap: "guest_matrix hotplug ap_config\n",
                when=lambda _vfio_ap: self._generation.has_features,
            ),
            "driver": Symlink(lambda _vfio_ap: "../../../bus/matrix/drivers/vfio_ap"),
            "subsystem": Symlink(lambda _vfio_ap: "../../../bus/matrix"),
            "mdev_supported_types": Below(
                lambda vfio_ap: Folder(
                    vfio_ap, {TYPE_NAME: Below(lambda vfio_ap: Folder(vfio_ap, self._type_table))}
                )
            ),
        }

    def _make_type_table(self) -> dict[str, Entry[VfioAp]]:
        devices = Links(self._present, lambda uuid: f"../../../{uuid}")
        return {
            "create": Attribute(0o200, None, VfioAp.create),
            "device_api": Attribute(0o444, lambda _vfio_ap: "vfio-ap\n"),
            "name": Attribute(0o444, lambda _vfio_ap: "VFIO AP Passthrough Device\n"),
            "available_instances": Attribute(0o444, lambda vfio_ap: f"{vfio_ap.available_instances}\n"),
            "devices": Below(lambda vfio_ap: Folder(vfio_ap, {}, (devices,))),
        }

    # --- one mdev

    def _mdev_folder(self, mdev: Mdev) -> Directory:
        return Folder(mdev, self._mdev_table)

    def _make_mdev_table(self) -> dict[str, Entry[Mdev]]:
        writes: dict[str, MdevWrite] = {
            "assign_adapter": VfioAp.assign_adapter,
            "unassign_adapter": VfioAp.unassign_adapter,
            "assign_domain": VfioAp.assign_domain,
            "unassign_domain": VfioAp.unassign_domain,
            "assign_control_domain": VfioAp.assign_control_domain,
            "unassign_control_domain": VfioAp.unassign_control_domain,
        }
        table: dict[str, Entry[Mdev]] = {
            name: Attribute(0o200, None, self._mdev_store(write), _has_files)
            for name, write in writes.items()
        }
        return table | self._mdev_attributes() | self._mdev_links()

    def _mdev_attributes(self) -> dict[str, Entry[Mdev]]:
        return {
            "matrix": Attribute(0o444, lambda mdev: format_matrix(mdev.matrix)[:PAGE_TEXT], None, _has_files),
            "guest_matrix": Attribute(
                0o444, lambda mdev: format_matrix(mdev.guest_matrix)[:PAGE_TEXT], None, _has_files
            ),
            "control_domains": Attribute(
                0o444, lambda mdev: format_control_domains(mdev.matrix), None, _has_files
            ),
            "ap_config": Attribute(
                0o644,
                lambda mdev: format_ap_config(mdev.matrix),
                self._mdev_store(VfioAp.write_ap_config),
                lambda mdev: self._generation.has_ap_config and mdev.has_files,
            ),
            "remove": Attribute(0o200, None, self._store_remove, _is_present),
            "uevent": Attribute(0o644, _mdev_uevent, self._mdev_synthesize, _is_present),
        }

    def _mdev_links(self) -> dict[str, Entry[Mdev]]:
        type_link = f"../mdev_supported_types/{TYPE_NAME}"
        return {
            "mdev_type": Symlink(lambda mdev: type_link if _is_present(mdev) else None),
            "subsystem": Symlink(lambda mdev: "../../../../bus/mdev" if _is_present(mdev) else None),
            "driver": Symlink(
                lambda mdev: "../../../../bus/mdev/drivers/vfio_ap_mdev" if mdev.has_files else None
            ),
            "iommu_group": Symlink(
                lambda mdev: f"../../../../kernel/iommu_groups/{mdev.group}" if mdev.is_bound else None
            ),
            "vfio-dev": Below(self._vfio_dev_folder),
        }

    def _vfio_dev_folder(self, mdev: Mdev) -> Directory | None:
        if not mdev.has_vfio_dev:
            return None
        return Folder(mdev, {f"vfio{mdev.group}": Below(self._vfio_folder)})

    def _vfio_folder(self, mdev: Mdev) -> Directory:
        table: dict[str, Entry[Mdev]] = {
            "uevent": Attribute(0o644, lambda _mdev: "", self._mdev_synthesize),
            "device": Symlink(lambda mdev: f"../../../{mdev.uuid}"),
            "subsystem": Symlink(lambda _mdev: "../../../../../../class/vfio-dev"),
        }
        return Folder(mdev, table)

    def _mdev_store(self, write: MdevWrite) -> Callable[[Mdev, str], None]:
        def store(mdev: Mdev, text: str) -> None:
            vfio_ap = self.vfio_ap()
            if vfio_ap is None:
                raise refuse(errno.ENODEV)
            write(vfio_ap, mdev, text)

        return store

    def _store_remove(self, mdev: Mdev, text: str) -> Wait | None:
        vfio_ap = self.vfio_ap()
        if vfio_ap is None:
            raise refuse(errno.ENODEV)
        if not vfio_ap.remove(mdev, text):
            return None
        return self._wait_for_user(mdev)

    def _mdev_synthesize(self, mdev: Mdev, text: str) -> None:
        action, keys = synthetic(text)
        driver = [("DRIVER", "vfio_ap_mdev")] if mdev.is_bound else []
        self._events.emit(action, mdev.devpath, "mdev", [*keys, *driver])

    def _synthesizer(
        self, devpath: str, subsystem: str, *more: tuple[str, str]
    ) -> Callable[[object, str], None]:
        def store(_subject: object, text: str) -> None:
            action, keys = synthetic(text)
            if subsystem:
                self._events.emit(action, devpath, subsystem, [*keys, *more])

        return store

    # --- /sys/bus/matrix and /sys/bus/mdev

    def matrix_bus(self, state: State) -> Directory | None:
        if not self.vfio_ap():
            return None
        devices: Entry[State] = Symlink(lambda _state: "../../../devices/vfio_ap/matrix")
        driver: dict[str, Entry[State]] = {
            "uevent": Attribute(0o200, None, self._synthesizer("/bus/matrix/drivers/vfio_ap", "drivers")),
            "matrix": Symlink(lambda _state: "../../../../devices/vfio_ap/matrix"),
        }
        table = _bus_table("matrix", self._synthesizer, lambda: {"matrix": None})
        table["devices"] = Below(lambda state: Folder(state, {"matrix": devices}))
        table["drivers"] = Below(
            lambda state: Folder(state, {"vfio_ap": Below(lambda state: Folder(state, driver))})
        )
        return Folder(state, table)

    def mdev_bus(self, state: State) -> Directory | None:
        if not state.modules.has_mdev:
            return None
        devices = Links(self._present, lambda uuid: f"../../../devices/vfio_ap/matrix/{uuid}")
        table = _bus_table("mdev", self._synthesizer, self._present)
        table["devices"] = Below(lambda state: Folder(state, {}, (devices,)))
        table["drivers"] = Below(
            lambda state: Folder(state, {"vfio_ap_mdev": Below(self._mdev_driver_folder)})
        )
        return Folder(state, table)

    def _mdev_driver_folder(self, state: State) -> Directory | None:
        if not self.vfio_ap():
            return None
        bound = Links(self._bound, lambda uuid: f"../../../../devices/vfio_ap/matrix/{uuid}")
        table: dict[str, Entry[State]] = {
            "bind": Attribute(0o200, None, _never_binds),
            "unbind": Attribute(0o200, None, self._store_unbind),
            "uevent": Attribute(0o200, None, self._synthesizer("/bus/mdev/drivers/vfio_ap_mdev", "drivers")),
            "module": Symlink(lambda _state: "../../../../module/vfio_ap"),
        }
        return Folder(state, table, (bound,))

    def _store_unbind(self, _state: State, text: str) -> Wait | None:
        vfio_ap = self.vfio_ap()
        if vfio_ap is None:
            raise refuse(errno.ENODEV)
        mdev = vfio_ap.unbind_driver(device_name(text))
        return self._wait_for_user(mdev) if mdev else None

    def _wait_for_user(self, mdev: Mdev) -> Wait:
        return Wait(mdev.gone, poke=lambda: self._state.guests.request_release(mdev))

    # --- what links to them

    def mdev_class(self, state: State) -> Directory | None:
        if not state.modules.has_mdev:
            return None
        return Folder(state, {"matrix": Symlink(self._class_link)})

    def _class_link(self, _state: State) -> str | None:
        return "../../devices/vfio_ap/matrix" if self.vfio_ap() else None

    def iommu_groups(self, state: State) -> Directory:
        return Folder(state, {}, (Folders(self._groups, self._group_folder),))

    def _groups(self) -> dict[str, Mdev]:
        return {str(mdev.group): mdev for mdev in self._mdevs().values() if mdev.is_bound}

    def _group_folder(self, mdev: Mdev) -> Directory:
        link: Entry[Mdev] = Symlink(lambda mdev: f"../../../../devices/vfio_ap/matrix/{mdev.uuid}")
        table: dict[str, Entry[Mdev]] = {
            "devices": Below(lambda mdev: Folder(mdev, {mdev.uuid: link})),
            "reserved_regions": Attribute(0o444, lambda _mdev: ""),
            "type": Attribute(0o644, lambda _mdev: "unknown\n", _ignore),
        }
        return Folder(mdev, table)

    def dev_vfio(self, state: State) -> Directory | None:
        """/dev/vfio: the container node and one node per group."""
        if not self._state.modules.has_vfio:
            return None
        container: dict[str, Entry[State]] = {"vfio": Attribute(0o666, None, None, kind=Kind.DEVICE)}
        return Folder(state, container, (_GroupNodes(self._groups),))


@dataclass(frozen=True, slots=True)
class _GroupNodes:
    """The family /dev/vfio/N. Opening one is refused while a guest has it (tree.File.is_busy)."""

    groups: Callable[[], Mapping[str, Mdev]]

    def get(self, name: str) -> Node | None:
        mdev = self.groups().get(name)
        if mdev is None:
            return None
        return File(0o600, mdev, None, None, Kind.DEVICE, lambda: mdev.group_user is not None)

    def entries(self) -> Iterator[tuple[str, Kind]]:
        return ((name, Kind.DEVICE) for name in self.groups())


def _bus_table(
    name: str, synthesizer: Synthesizer, devices: Callable[[], Mapping[str, object]]
) -> dict[str, Entry[State]]:
    """What the matrix and the mdev bus have in common. Their drivers bind by themselves or never."""

    def store_autoprobe(state: State, text: str) -> None:
        state.autoprobe[name] = text[:1] != "0"

    def store_probe(_state: State, text: str) -> None:
        if device_name(text) not in devices():
            raise refuse(errno.ENODEV)

    return {
        "uevent": Attribute(0o200, None, synthesizer(f"/bus/{name}", "bus")),
        "drivers_autoprobe": Attribute(0o644, lambda state: f"{state.autoprobe[name]:d}\n", store_autoprobe),
        "drivers_probe": Attribute(0o200, None, store_probe),
    }


def _has_files(mdev: Mdev) -> bool:
    return mdev.has_files


def _is_present(mdev: Mdev) -> bool:
    return not mdev.is_leaving


def _mdev_uevent(mdev: Mdev) -> str:
    return "DRIVER=vfio_ap_mdev\n" if mdev.is_bound else ""


def _never_binds(_subject: object, _text: str) -> None:
    raise refuse(errno.ENODEV)  # the mdev bus matches nothing by itself


def _ignore(_subject: object, _text: str) -> None:
    pass
