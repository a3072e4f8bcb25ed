# SPDX-License-Identifier: Apache-2.0
"""In a lab the real libvirtd, mdevctl and udevd believe that they are on IBM Z."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vfioapd.lab.harness import Lab, Result

HOST = "rdbkvm4"
UUID = "825b3872-0001-0003-0011-28a403f8b357"
NODEDEV = f"mdev_{UUID.replace('-', '_')}_matrix"
NODEDEV_XML = f"""
<device><name>{NODEDEV}</name><parent>ap_matrix</parent><capability type='mdev'>
<type id='vfio_ap-passthrough'/><uuid>{UUID}</uuid>
<attr name='assign_adapter' value='0x01'/><attr name='assign_adapter' value='0x03'/>
<attr name='assign_domain' value='0x0011'/></capability></device>
"""


def virsh(lab: Lab, *words: str, stdin: str = "", check: bool = True) -> Result:
    return lab.run("virsh", "-q", "-c", "qemu:///system", *words, stdin=stdin, check=check)


@pytest.fixture
def free_queues(lab: Lab) -> Iterator[None]:
    """01.0011 and 03.0011 belong to vfio_ap for the time of one test."""
    lab.shell("echo -n -1,-3 > /sys/bus/ap/apmask; echo -n -0x11 > /sys/bus/ap/aqmask")
    yield
    lab.shell("echo -n +1,+3 > /sys/bus/ap/apmask; echo -n +0x11 > /sys/bus/ap/aqmask")


def test_libvirt_lists_cards_queues_and_the_matrix_device(lab: Lab) -> None:
    cards = virsh(lab, "nodedev-list", "--cap", "ap_card").stdout.split()
    queues = virsh(lab, "nodedev-list", "--cap", "ap_queue").stdout.split()
    assert cards == [f"ap_card{card:02x}" for card in range(8)]
    assert queues == [f"ap_{card:02x}_{domain:04x}" for card in range(8) for domain in (13, 17)]
    assert virsh(lab, "nodedev-list", "--cap", "ap_matrix").stdout.split() == ["ap_matrix"]


@pytest.mark.usefixtures("free_queues")
def test_a_nodedev_is_started_by_the_real_mdevctl(lab: Lab) -> None:
    virsh(lab, "nodedev-define", "/dev/stdin", stdin=NODEDEV_XML)
    assert UUID in lab.run("mdevctl", "list", "-d").stdout
    virsh(lab, "nodedev-start", NODEDEV)
    try:
        assert lab.run("cat", f"/sys/bus/mdev/devices/{UUID}/matrix").stdout == "01.0011\n03.0011\n"
        assert NODEDEV in virsh(lab, "nodedev-list", "--cap", "mdev").stdout
    finally:
        virsh(lab, "nodedev-destroy", NODEDEV)
        virsh(lab, "nodedev-undefine", NODEDEV)
    assert lab.run("test", "-e", f"/sys/bus/mdev/devices/{UUID}", check=False).returncode == 1


def test_a_start_that_the_kernel_refuses_reaches_virsh_with_its_errno(lab: Lab) -> None:
    virsh(lab, "nodedev-define", "/dev/stdin", stdin=NODEDEV_XML)
    result = virsh(lab, "nodedev-start", NODEDEV, check=False)
    virsh(lab, "nodedev-undefine", NODEDEV)
    assert result.returncode == 1
    assert "Cannot assign requested address" in result.stderr


def test_udev_rules_run_and_their_result_is_in_the_database(lab: Lab) -> None:
    lab.shell(
        """
        rule='SUBSYSTEM=="ap", KERNEL=="05.0011", ENV{LAB_TEST}="seen"'
        echo "$rule" > /etc/udev/rules.d/99-test.rules
        udevadm control --reload
        udevadm trigger --subsystem-match=ap
        udevadm settle
        rm /etc/udev/rules.d/99-test.rules
        """
    )
    properties = lab.run("udevadm", "info", "--query=property", "/sys/bus/ap/devices/05.0011").stdout
    assert {"LAB_TEST=seen", "SUBSYSTEM=ap", "DEVTYPE=ap_queue"} <= set(properties.split())
    assert "LAB_TEST" not in lab.run("udevadm", "info", "/sys/bus/ap/devices/05.000d").stdout


MONITOR = """
import pyudev
context = pyudev.Context()
monitor = pyudev.Monitor.from_netlink(context, source="udev")
monitor.filter_by("ap")
monitor.start()
with open("/sys/bus/ap/apmask", "wb", buffering=0) as mask:
    mask.write(b"-6")
while (device := monitor.poll(5)) is not None and device.sys_name != "ap":
    print(device.sys_name, device.action, device.device_type, device.get("DRIVER"))
"""


def test_pyudevs_udev_monitor_hears_what_the_kernel_says(lab: Lab) -> None:
    try:
        heard = lab.run("python3", "-c", MONITOR).stdout.splitlines()
    finally:
        lab.shell("echo -n +6 > /sys/bus/ap/apmask")
    assert sorted(heard) == [
        "06.000d bind ap_queue vfio_ap",
        "06.000d unbind ap_queue None",
        "06.0011 bind ap_queue vfio_ap",
        "06.0011 unbind ap_queue None",
    ]


def test_real_libvirtd_can_be_stopped_killed_and_started_again(lab: Lab) -> None:
    lab.run("vfioap-lab", "service", "stop", "libvirtd")
    assert virsh(lab, "uri", check=False).returncode == 1
    lab.run("vfioap-lab", "service", "start", "libvirtd")
    assert virsh(lab, "nodedev-list", "--cap", "ap_matrix").stdout.split() == ["ap_matrix"]
    lab.run("vfioap-lab", "service", "kill", "libvirtd")
    lab.run("vfioap-lab", "service", "restart", "libvirtd")
    assert virsh(lab, "nodedev-list", "--cap", "ap_matrix").stdout.split() == ["ap_matrix"]


def test_an_unknown_service_is_refused_with_the_known_ones(lab: Lab) -> None:
    result = lab.run("vfioap-lab", "service", "stop", "sshd", check=False)
    assert result.returncode == 1
    assert result.stderr == "vfioap-lab: this lab has no service sshd (it has: udevd, libvirtd)\n"


def test_hardware_can_be_played(lab: Lab) -> None:
    lab.run("vfioap-lab", "play", "deconfigure", "adapter=2")
    assert lab.run("cat", "/sys/devices/ap/card02/config").stdout == "0\n"
    lab.run("vfioap-lab", "play", "configure", "adapter=0x02")
    assert lab.run("cat", "/sys/devices/ap/card02/config").stdout == "1\n"


@pytest.mark.parametrize("words", [["nosuchaction"], ["deconfigure"], ["deconfigure", "adapter"]])
def test_a_play_that_makes_no_sense_is_refused(lab: Lab, words: list[str]) -> None:
    result = lab.run("vfioap-lab", "play", *words, check=False)
    assert result.returncode in (1, 2)
    assert result.stderr.startswith("vfioap-lab: ")


def test_modules_can_be_loaded_late(lab: Lab) -> None:
    lab.run("vfioap-lab", "module", "unload", "vfio_ap")
    assert lab.run("test", "-e", "/sys/module/vfio_ap", check=False).returncode == 1
    lab.run("vfioap-lab", "module", "load", "vfio_ap")
    assert lab.run("cat", "/sys/module/vfio_ap/initstate").stdout == "live\n"
    assert lab.run("ls", "/sys/bus/matrix/devices", "/sys/class/mdev_bus").stdout.split().count("matrix") == 2


def test_the_kernels_state_can_be_read(lab: Lab) -> None:
    assert '"apmask"' in lab.run("vfioap-lab", "state").stdout


def test_orphans_are_collected(lab: Lab, wait_until: Callable[..., None]) -> None:
    """A daemon's double fork leaves its child to the lab's first process."""
    lab.shell("for n in 1 2 3 4 5; do (setsid true &); done")
    states = ["sh", "-c", "cat /proc/[0-9]*/stat | cut -d' ' -f3"]
    wait_until(lambda: "Z" not in lab.run(*states).stdout, "no zombie is left")
