# SPDX-License-Identifier: Apache-2.0
"""The Debian package on a host that boots: installed, upgraded under a guest, removed, purged."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from boots import GUESTS_MEANWHILE, KILL, PACKAGE, SYSTEMS, boot, libvirts_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.lab.boot_harness import BootedLab

pytestmark = pytest.mark.boot

INSTALL = f"dpkg --install /root/{PACKAGE.name}"
UUID = "825b3872-0001-0005-0011-28a403f8b357"
DEFINE = f"vfioapctl define bastion --queues 01.0011,05.0011 --guest bastion --uuid {UUID}"
LEFT = """
find /etc /usr /var -xdev -name '*vfioapd*'
ls -d /run/vfioapd 2> /dev/null || true
"""


@pytest.fixture(scope="module", params=SYSTEMS)
def host(request: pytest.FixtureRequest) -> Iterator[BootedLab]:
    """A host with the package, and a running guest with queues."""
    with boot("rdbkvm4", request.param, package=PACKAGE) as lab:
        lab.run("vfioap-lab", "guest", "bastion", "--start")
        lab.shell(DEFINE)
        yield lab


def state(lab: BootedLab, name: str = "bastion") -> str:
    rows = json.loads(lab.run("vfioapctl", "status", "--json").stdout)["matrices"]
    return str(next(row for row in rows if row["name"] == name)["state"])


def test_everything_is_the_packages_own(host: BootedLab) -> None:
    assert host.run("which", "vfioapctl").stdout == "/usr/bin/vfioapctl\n"
    assert "/usr/sbin/vfioapd" in host.value("vfioapd.service", "ExecStart")
    assert host.run("systemctl", "--failed", "--no-legend").stdout == ""
    carried = (
        "import sys; sys.path.insert(0, '/usr/lib/vfioapd'); import asyncvarlink as it; print(it.__file__)"
    )
    place = host.run("/usr/bin/python3", "-I", "-c", carried).stdout
    assert place.startswith("/usr/lib/vfioapd/asyncvarlink/")


def test_its_units_are_enabled_and_its_code_is_compiled(host: BootedLab) -> None:
    for unit in ("vfioapd.service", "vfioapd.socket", "vfioapd-ro.socket", "vfioapd-ready.target"):
        assert host.run("systemctl", "is-enabled", unit).stdout == "enabled\n"
    host.shell("ls /usr/lib/vfioapd/vfioapd/daemon/__pycache__/main.*.pyc")


def test_manual_and_completions_are_at_hand(host: BootedLab) -> None:
    host.run("man", "--where", "vfioapctl", "vfioapd", "host.toml")
    words = "source /usr/share/bash-completion/completions/vfioapctl; complete -p vfioapctl"
    assert "_vfioapctl" in host.run("bash", "-c", words).stdout


def test_libvirt_has_seen_the_hook(host: BootedLab) -> None:
    assert host.run("stat", "-c", "%a", "/etc/libvirt/hooks/qemu.d/vfioapd").stdout == "755\n"
    host.shell("virsh -q destroy bastion; virsh -q start bastion")
    assert state(host) == "in-use"


def test_doctor_finds_the_host_in_order(host: BootedLab) -> None:
    answer = json.loads(host.run("vfioapctl", "doctor", "--json").stdout)
    assert {one["state"] for one in answer["subjects"]} == {"ok"}, answer


def test_a_lost_hook_is_mended_from_the_copy_that_the_package_brings(host: BootedLab) -> None:
    host.shell(KILL)
    host.shell("rm /etc/libvirt/hooks/qemu.d/vfioapd")
    lost = json.loads(host.run("vfioapctl", "doctor", "--json", check=False).stdout)
    (finding,) = (one for subject in lost["subjects"] for one in subject["findings"])
    assert finding["code"] == "hook-missing"
    assert "/usr/share/vfioapd/hooks/vfioapd" in finding["command"]
    host.run("bash", "-c", finding["command"])
    assert json.loads(host.run("vfioapctl", "doctor", "--json").stdout)["healthy"]


def test_an_upgrade_takes_nothing_from_a_running_guest(host: BootedLab) -> None:
    queues = ("cat", f"/sys/devices/vfio_ap/matrix/{UUID}/guest_matrix")
    before = host.run(*queues).stdout, host.value("vfioapd.service", "InvocationID")
    unit = f"{libvirts_daemon(host)}.service"
    libvirt = host.value(unit, "InvocationID")
    host.shell(INSTALL)
    assert host.run(*queues).stdout == before[0]
    assert host.value("vfioapd.service", "InvocationID") != before[1]
    assert host.value(unit, "InvocationID") == libvirt
    assert (state(host), host.value("vfioapd-ready.target", "ActiveState")) == ("in-use", "active")
    host.run("vfioapctl", "doctor")


def test_guests_start_and_end_as_ever_while_it_is_upgraded(host: BootedLab) -> None:
    """The hook meets a daemon that is there, ending, gone or starting; no start fails for that."""
    host.run("vfioap-lab", "guest", "aw1")
    host.run("vfioapctl", "define", "aw1", "--queues", "02.0011", "--guest", "aw1")
    script = WHILE_UPGRADED.format(install=INSTALL, guests=GUESTS_MEANWHILE)
    counted = host.shell(script, timeout=150).stdout.split()
    assert int(counted[-2]) >= 5, "starts during the upgrade"
    assert counted[-1] == "0", "of them failed"
    assert state(host, "bastion") == "in-use"
    host.run("vfioapctl", "undefine", "aw1", "--disrupt")
    host.run("virsh", "-q", "undefine", "aw1")


WHILE_UPGRADED = """
{install} > /root/upgrade.log 2>&1 & upgrade=$!
{guests}echo $starts $failed
"""


def test_it_boots_with_its_queues(host: BootedLab) -> None:
    host.reboot()
    assert state(host) == "started"
    assert host.run("systemctl", "is-system-running", check=False).stdout == "running\n"


def test_removed_it_leaves_the_guests_and_their_configuration(host: BootedLab) -> None:
    host.run("virsh", "-q", "start", "bastion")
    host.shell("dpkg --remove vfioapd")
    assert host.run("virsh", "-q", "list", "--name").stdout.strip() == "bastion"
    host.run("grep", "bastion", "/etc/vfioapd/host.toml")
    assert host.value("vfioapd.service", "ActiveState") == "inactive"
    host.shell(INSTALL)
    assert state(host) == "in-use"


def test_purged_it_leaves_nothing(host: BootedLab) -> None:
    host.shell("dpkg --purge vfioapd")
    assert host.shell(LEFT).stdout == ""
    assert host.shell("ls /etc/mdevctl.d").stdout == "scripts.d\n"


def test_installed_on_a_running_host_its_hook_is_called_at_once(host: BootedLab) -> None:
    """libvirt was started without any hook, and does not look for one by itself."""
    libvirt = libvirts_daemon(host)
    host.shell(f"virsh -q destroy bastion; virsh -q undefine bastion; systemctl restart {libvirt}.service")
    before = host.value(f"{libvirt}.service", "InvocationID")
    host.shell(f"{INSTALL}; vfioap-lab guest aw1")
    host.shell("vfioapctl define aw1 --queues 02.0011 --guest aw1; vfioapctl stop aw1; virsh -q start aw1")
    assert state(host, "aw1") == "in-use"
    assert host.value(f"{libvirt}.service", "InvocationID") == before
