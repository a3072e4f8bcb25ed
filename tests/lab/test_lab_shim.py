# SPDX-License-Identifier: Apache-2.0
"""The guest emulator takes libvirt's command lines apart without changing what is not its own."""

from __future__ import annotations

import json

import pytest

from vfioapd.lab.shim import parse_command_line, parse_device
from vfioapd.lab.shim_bus import Device

UUID = "825b3872-0001-0003-0011-28a403f8b357"
SYSFSDEV = f"/sys/bus/mdev/devices/{UUID}"
DEVICE = json.dumps({"driver": "vfio-ap", "id": "hostdev0", "sysfsdev": SYSFSDEV})
NETWORK = json.dumps({"driver": "virtio-net-ccw", "id": "net0"})
MONITOR = "socket,id=charmonitor,fd=25,server=on,wait=off"
LINE = ["-name", "guest=bastion,debug-threads=on", "-S", "-chardev", MONITOR, "-device", NETWORK]


def test_a_probe_has_no_monitor_and_stays_as_it_is() -> None:
    probe = ["-S", "-no-user-config", "-nodefaults", "-machine", "none", "-qmp", "unix:/x,server=on,wait=off"]
    line = parse_command_line(probe)
    assert line.monitor is None
    assert list(line.rest) == probe


def test_only_vfio_ap_devices_are_taken_out() -> None:
    line = parse_command_line([*LINE, "-device", DEVICE, "-msg", "timestamp=on"])
    assert line.devices == (Device("hostdev0", SYSFSDEV),)
    assert list(line.rest) == [*LINE, "-msg", "timestamp=on"]


def test_the_monitor_is_moved_to_another_descriptor() -> None:
    line = parse_command_line(LINE)
    assert line.monitor == 25
    assert line.with_monitor(7) == [word.replace("fd=25", "fd=7") for word in LINE]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("guest=bastion,debug-threads=on", "bastion"),
        ("guest=a,,b,debug-threads=on", "a,b"),
        ("guest=x", "x"),
        ("old", "old"),
    ],
)
def test_the_guests_name_is_found(value: str, name: str) -> None:
    assert parse_command_line(["-name", value]).guest == name


@pytest.mark.parametrize("text", [DEVICE, f"vfio-ap,id=hostdev0,sysfsdev={SYSFSDEV}"])
def test_both_spellings_of_a_device_are_understood(text: str) -> None:
    device = parse_device(text)
    assert device is not None
    assert (device.id, device.uuid, device.qom_path) == ("hostdev0", UUID, "/machine/peripheral/hostdev0")


@pytest.mark.parametrize("text", [NETWORK, "virtio-net-ccw,id=net0", "vfio-ap"])
def test_other_devices_are_left_to_qemu(text: str) -> None:
    assert parse_device(text) is None
