# SPDX-License-Identifier: Apache-2.0
"""A host that boots under a real systemd: queues first, then libvirt, then guests; and it always boots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from boots import NOT_BELOW_TMP, SYSTEMS, autostarted, boot, libvirts_daemon, matrix, moment, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vfioapd.lab.boot_harness import BootedLab

pytestmark = NOT_BELOW_TMP
HOST = "rdbkvm4"
UUID = "825b3872-0001-0005-0011-28a403f8b357"
QUEUES = ["01.0011", "05.0011"]
DEFINE = f"vfioapctl define bastion --queues {','.join(QUEUES)} --guest bastion --uuid {UUID}"
SMALL = """
kernel = "6.12"
modules = ["zcrypt_cex4"]
[machine]
usage_domains = [0x11]
[[card]]
adapter = 5
type = "CEX8P"
"""


@pytest.fixture(scope="module", params=SYSTEMS)
def host(request: pytest.FixtureRequest) -> Iterator[BootedLab]:
    """Booted with one matrix for a guest with autostart."""
    with boot(HOST, request.param) as lab:
        lab.shell(autostarted("bastion"))
        lab.shell(DEFINE)
        lab.reboot()
        yield lab


def test_nothing_has_failed(host: BootedLab) -> None:
    assert host.run("systemctl", "is-system-running", check=False).stdout == "running\n"
    assert host.run("systemctl", "--failed", "--no-legend").stdout == ""


def test_the_queues_are_there_before_libvirt_starts(host: BootedLab) -> None:
    ready = moment(host, "vfioapd-ready.target", "ActiveEnter")
    assert moment(host, "vfioapd.service", "ActiveEnter") <= ready
    assert ready < moment(host, f"{libvirts_daemon(host)}.service", "InactiveExit")


def test_a_guest_with_autostart_has_its_queues(host: BootedLab, wait_until: Callable[..., None]) -> None:
    wait_until(lambda: matrix(host)["state"] == "in-use", "the guest has its device", seconds=30)
    assert matrix(host)["live"] == "bastion"
    assert matrix(host)["guest_matrix"] == QUEUES


def test_libvirt_and_mdevctl_see_the_device(host: BootedLab) -> None:
    assert UUID in host.run("mdevctl", "list").stdout
    names = host.run("virsh", "-q", "nodedev-list", "--cap", "mdev").stdout
    assert f"mdev_{UUID.replace('-', '_')}_matrix" in names


def test_the_daemon_listens_on_systemds_sockets(host: BootedLab) -> None:
    modes = host.run(
        "stat", "-c", "%a %G", "/run/vfioapd/vfioapd.sock", "/run/vfioapd/vfioapd-ro.sock"
    ).stdout
    assert modes.splitlines() == ["660 libvirt", "666 root"]
    assert host.value("vfioapd.socket", "SubState") == "running"


def test_the_daemon_runs_in_its_sandbox(host: BootedLab) -> None:
    process = host.value("vfioapd.service", "MainPID")
    fields = dict(
        line.split(":\t") for line in host.run("cat", f"/proc/{process}/status").stdout.splitlines()
    )
    assert (fields["Seccomp"], fields["NoNewPrivs"], fields["CapEff"]) == ("2", "1", "0000000000000009")
    mounts = [line.split() for line in host.run("cat", f"/proc/{process}/mounts").stdout.splitlines()]
    flags = {words[1]: words[3].split(",")[0] for words in mounts}
    assert (flags["/"], flags["/etc"], flags["/sys/bus/ap"]) == ("ro", "rw", "rw")


def test_a_restart_of_the_daemon_takes_nothing_and_wakes_nothing(host: BootedLab) -> None:
    unit = f"{libvirts_daemon(host)}.service"
    before, libvirt = matrix(host), host.value(unit, "InvocationID")
    host.run("systemctl", "restart", "vfioapd.service")
    assert matrix(host) == before
    assert host.value(unit, "InvocationID") == libvirt
    assert host.value("vfioapd-ready.target", "ActiveState") == "active"


def test_a_stopped_daemon_is_started_by_its_first_client(host: BootedLab) -> None:
    host.run("systemctl", "stop", "vfioapd.service")
    assert matrix(host)["name"] == "bastion"
    assert host.value("vfioapd.service", "ActiveState") == "active"


def test_a_torn_host_toml_leaves_the_last_good_one_in_force(host: BootedLab) -> None:
    host.shell("cp /etc/vfioapd/host.toml /root; truncate -s -5 /etc/vfioapd/host.toml")
    host.cut_power()
    assert matrix(host)["queues"] == QUEUES
    assert matrix(host)["state"] in ("started", "in-use")
    assert any("/etc/vfioapd/host.toml" in problem for problem in status(host)["problems"])
    assert "host.toml" in host.value("vfioapd.service", "StatusText")
    assert host.run("systemctl", "is-system-running", check=False).stdout == "running\n"
    host.shell("cp /root/host.toml /etc/vfioapd/host.toml")


@pytest.mark.parametrize("system", SYSTEMS)
def test_without_vfio_ap_the_host_boots_says_so_and_takes_it_up_when_it_comes(
    tmp_path: Path, system: str, wait_until: Callable[..., None]
) -> None:
    (tmp_path / "host.toml").write_text(SMALL)
    with boot(str(tmp_path / "host.toml"), system) as lab:
        lab.shell("mkdir -p /etc/vfioapd; cat > /etc/vfioapd/host.toml <<'END'\n" + HOST_TOML + "END\n")
        lab.reboot()
        assert lab.value(f"{libvirts_daemon(lab)}.service", "ActiveState") == "active"
        assert lab.value("vfioapd.service", "ActiveState") == "active"
        assert status(lab)["vfio_ap"] is False
        assert matrix(lab)["state"] == "failed"
        assert "vfio_ap" in matrix(lab)["problem"]
        assert "bastion" in lab.value("vfioapd.service", "StatusText")
        lab.run("vfioap-lab", "module", "load", "vfio_ap")
        wait_until(lambda: matrix(lab)["guest_matrix"] == ["05.0011"], "the matrix is made")
        wait_until(
            lambda: lab.value("vfioapd.service", "StatusText") == "1 matrices defined", "systemd is told"
        )


HOST_TOML = f"""\
version = 1
[[matrix]]
name = "bastion"
uuid = "{UUID}"
adapters = [5]
domains = [0x11]
"""


@pytest.mark.boot
def test_ten_boots_in_a_row_end_alike(host: BootedLab) -> None:
    for number in range(10):
        (host.reboot if number % 2 else host.cut_power)()
        assert matrix(host)["queues"] == QUEUES
        assert moment(host, "vfioapd-ready.target", "ActiveEnter") < moment(
            host, f"{libvirts_daemon(host)}.service", "InactiveExit"
        )
        assert host.run("systemctl", "--failed", "--no-legend").stdout == ""


@pytest.mark.boot
def test_a_daemon_that_crashes_all_the_time_takes_no_queues(
    host: BootedLab, wait_until: Callable[..., None]
) -> None:
    wait_until(lambda: matrix(host)["state"] == "in-use", "the guest has its device", seconds=30)
    read = ("cat", "/sys/bus/ap/apmask", f"/sys/devices/vfio_ap/matrix/{UUID}/guest_matrix")
    before, guests = host.run(*read).stdout, host.run("virsh", "-q", "list", "--name").stdout

    def crash() -> bool:
        host.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "vfioapd.service", check=False)
        return host.value("vfioapd.service", "ActiveState") == "failed"

    wait_until(crash, "systemd gives it up", seconds=60)
    assert host.run(*read).stdout == before
    assert host.run("virsh", "-q", "list", "--name").stdout == guests
    assert host.value(f"{libvirts_daemon(host)}.service", "ActiveState") == "active"
    host.shell("systemctl reset-failed; systemctl start vfioapd.socket vfioapd-ro.socket vfioapd.service")
    assert matrix(host)["state"] == "in-use"
