# SPDX-License-Identifier: Apache-2.0
"""A guest's AP bus as QEMU has it: room for one vfio-ap device, opened at the emulated kernel."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from vfioapd.lab import wire

DRIVER = "vfio-ap"
# The kernel closes a process's files before the process is gone. Here the shim closes for a QEMU that
# has just died, so the next guest may come a moment too early.
SETTLE_SECONDS = 0.5
SETTLE_STEP = 0.02


class PlugError(Exception):
    """What QEMU would say."""


@dataclass(frozen=True, slots=True)
class Device:
    id: str
    sysfsdev: str

    @classmethod
    def from_properties(cls, properties: object) -> Device | None:
        """From the arguments of -device or device_add; None if it is not a vfio-ap device."""
        match properties:
            case {"driver": "vfio-ap", "sysfsdev": str(sysfsdev), "id": str(name)}:
                return cls(name, sysfsdev)
        return None

    @property
    def uuid(self) -> str:
        return Path(self.sysfsdev).name

    @property
    def qom_path(self) -> str:
        return f"/machine/peripheral/{self.id}"

    def text(self) -> str:
        return json.dumps({"driver": DRIVER, "id": self.id, "sysfsdev": self.sysfsdev})

    def iommu_group(self) -> int:
        try:
            return int(Path(os.readlink(f"{self.sysfsdev}/iommu_group")).name)
        except OSError as error:
            raise PlugError(f"vfio-ap: no iommu_group found for {self.sysfsdev}: {error.strerror}") from error


class ApBus:
    """Not thread safe; calls block until the emulated kernel has answered."""

    def __init__(self, kernel: Path, guest: str) -> None:
        self.kernel = kernel
        self.guest = guest
        self.devices: dict[str, Device] = {}

    def plug(self, device: Device) -> None:
        if self.devices:
            # QEMU 7.2 has no other words for a bus that is full.
            raise PlugError("No 'ap-bus' bus found for device 'vfio-ap'")
        group = device.iommu_group()
        number = self._open(device)
        if number:
            raise PlugError(f"vfio {device.uuid}: {_open_failure(number, group)}")
        self.devices[device.id] = device

    def unplug(self, device: Device) -> None:
        if self.devices.pop(device.id, None):
            wire.request(self.kernel, {"command": "guest_close", "guest": self.guest})

    def close(self) -> None:
        """QEMU is gone, and with it all it had open."""
        for device in list(self.devices.values()):
            self.unplug(device)

    def _open(self, device: Device) -> int:
        """0 or the errno with which the kernel refused."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            number = self._try_open(device)
            if number not in (errno.EBUSY, errno.EPERM) or time.monotonic() > deadline:
                return number
            time.sleep(SETTLE_STEP)

    def _try_open(self, device: Device) -> int:
        answer = wire.request(
            self.kernel, {"command": "guest_open", "uuid": device.uuid, "guest": self.guest}
        )
        # ENODEV is also the answer for an error that is not the kernel's, such as a request it cannot read
        return getattr(errno, str(answer["error"]), errno.ENODEV) if "error" in answer else 0


def _open_failure(number: int, group: int) -> str:
    reason = os.strerror(number)
    if number == errno.EBUSY:  # the group is opened first, the device then
        return f"failed to open /dev/vfio/{group}: {reason}"
    return (
        f"error getting device from group {group}: {reason}\n"
        f"Verify all devices in group {group} are bound to vfio-<bus> or pci-stub and not already in use"
    )
