# SPDX-License-Identifier: Apache-2.0
"""`vfioap-lab reboot` forgets what a power cut forgets, and keeps what a disk keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vfioapd.lab.harness import Lab

MDEV = "825b3872-0001-0003-0011-28a403f8b357"
BEFORE = f"""
cat /proc/sys/kernel/random/boot_id > /var/lib/vfioapd/boot-id-before
mkdir -p /etc/vfioapd /run/vfioapd /var/lib/vfioapd
for place in /etc/vfioapd /etc/libvirt/hooks /etc/systemd/system /var/lib/vfioapd /run/vfioapd /run/udev; do
    echo kept > $place/lab-test
done
echo -n -5 > /sys/bus/ap/apmask
echo {MDEV} > /sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create
vfioap-lab guest stray --start
setsid sleep infinity > /dev/null 2>&1 &
vfioap-lab reboot
echo the caller lives on
"""


@pytest.fixture(scope="module")
def rebooted(lab: Lab) -> Lab:
    assert lab.shell(BEFORE).stdout == "the caller lives on\n"
    return lab


def test_files_in_etc_and_var_are_kept(rebooted: Lab) -> None:
    for place in ("/etc/vfioapd", "/etc/libvirt/hooks", "/etc/systemd/system", "/var/lib/vfioapd"):
        assert rebooted.run("cat", f"{place}/lab-test").stdout == "kept\n"


def test_run_is_empty_but_for_what_the_services_made(rebooted: Lab) -> None:
    for place in ("/run/vfioapd", "/run/udev/lab-test"):
        assert rebooted.run("test", "-e", place, check=False).returncode == 1


def test_the_kernel_has_forgotten_masks_and_mdevs(rebooted: Lab) -> None:
    assert rebooted.run("cat", "/sys/bus/ap/apmask").stdout == "0x" + "f" * 64 + "\n"
    assert rebooted.run("ls", "/sys/bus/mdev/devices").stdout == ""


def test_the_boot_id_is_another_one(rebooted: Lab) -> None:
    ids = rebooted.run(
        "cat", "/var/lib/vfioapd/boot-id-before", "/proc/sys/kernel/random/boot_id"
    ).stdout.split()
    assert len(set(ids)) == 2
    assert len(ids[1]) == 36


def test_guests_and_stray_programs_are_gone_but_guests_stay_defined(rebooted: Lab) -> None:
    assert rebooted.run("virsh", "-q", "list", "--name").stdout.strip() == ""
    assert rebooted.run("virsh", "-q", "list", "--all", "--name").stdout.split() == ["stray"]
    commands = rebooted.run("sh", "-c", "cat /proc/[0-9]*/comm").stdout.split()
    assert "qemu-system-s39" not in commands
    assert commands.count("libvirtd") == 1
    # the one that keeps the lab open belongs to the lab itself, as the terminal of a user would
    assert commands.count("sleep") == 1


def test_libvirt_and_udev_work_again(rebooted: Lab) -> None:
    assert len(rebooted.run("virsh", "-q", "nodedev-list", "--cap", "ap_queue").stdout.split()) == 16
    rebooted.run("udevadm", "control", "--ping")
    rebooted.run("virsh", "-q", "start", "stray")
    rebooted.run("virsh", "-q", "destroy", "stray")


def test_it_can_be_done_again_and_again(rebooted: Lab) -> None:
    for _ in range(3):
        rebooted.run("vfioap-lab", "reboot")
    assert len(rebooted.run("virsh", "-q", "nodedev-list", "--cap", "ap_queue").stdout.split()) == 16
