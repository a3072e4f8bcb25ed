# SPDX-License-Identifier: Apache-2.0
"""The hook under a real libvirtd: guests started, refused and ended, with and without the daemon."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from guest_host import GuestHost
from labs import signal_daemon

from vfioapd.lab.harness import running_lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vfioapd.lab.harness import Result

HOOK = Path(__file__).parents[2] / "etc/libvirt/hooks/qemu.d/vfioapd"
HOOKS = "/etc/libvirt/hooks/qemu.d"
UUID = "825b3872-0001-0003-0011-28a403f8b357"
DEVICE = f"/sys/bus/mdev/devices/{UUID}"


class Host(GuestHost):
    """A lab with the hook installed, a guest and the daemon."""

    def signal(self, number: int) -> None:
        signal_daemon(self.lab, number)

    def state(self, name: str = "vault") -> str:
        return str(self.show(name)["state"])

    def guest_start(self) -> Result:
        return self.lab.run("virsh", "-q", "start", "bastion", check=False)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with running_lab("rdbkvm4") as lab:
        lab.shell(f"mkdir -p {HOOKS}; install -m 755 {HOOK} {HOOKS}/vfioapd")
        lab.run("vfioap-lab", "service", "restart", "libvirtd")  # finds out about hooks when it starts
        lab.run("vfioap-lab", "guest", "bastion")
        host = Host(lab)
        host.start_daemon()
        yield host


@pytest.fixture
def vault(host: Host) -> Iterator[Host]:
    """bastion's definition has vault; nothing runs."""
    host.ctl("define", "vault", "--queues", "00.000d,02.000d", "--uuid", UUID)
    host.ctl("attach", "vault", "bastion")
    yield host
    host.virsh("destroy", "bastion", check=False)
    host.ctl("detach", "vault", "bastion")
    host.ctl("undefine", "vault")


def test_a_stopped_matrix_is_started_by_the_start_of_its_guest(vault: Host) -> None:
    vault.ctl("stop", "vault")
    assert vault.state() == "stopped"
    started = vault.guest_start()
    assert started.returncode == 0, started.stderr
    assert vault.state() == "in-use"
    vault.virsh("destroy", "bastion")
    assert vault.state() == "started"


def test_a_refused_start_shows_its_one_sentence_in_virsh(vault: Host) -> None:
    play(vault, action="remove-adapter", adapter=2)
    try:
        refused = vault.guest_start()
    finally:
        play(vault, action="add-adapter", adapter=2, type="CEX8C")
    assert refused.returncode != 0
    assert "vfioapd: guest bastion is not started: it requires all of the queues of matrix vault" in (
        refused.stderr
    )
    assert "02.000d" in refused.stderr
    assert "vfioapctl why vault" in refused.stderr
    assert vault.virsh("domstate", "bastion").strip() == "shut off"
    assert vault.guest_start().returncode == 0


def play(host: Host, **action: object) -> None:
    host.lab.run(
        "python3",
        "-c",
        "import os, pathlib; from vfioapd.lab import wire\n"
        "path = pathlib.Path(os.environ['VFIOAP_LAB_CONTROL'])\n"
        f"answer = wire.request(path, {{'command': 'play', **{action!r}}})\n"
        "assert 'error' not in answer, answer",
    )


def test_a_matrix_started_for_one_run_goes_when_the_guest_ends(
    host: Host, wait_until: Callable[..., None]
) -> None:
    host.ctl("define", "vault", "--queues", "00.000d,02.000d", "--uuid", UUID, "--start", "manual")
    host.ctl("attach", "vault", "bastion", "--config")
    assert host.state() == "stopped"
    for _ in range(3):
        assert host.guest_start().returncode == 0
        assert host.state() == "in-use"
        host.virsh("destroy", "bastion")
    wait_until(lambda: host.state() == "stopped", "the matrix is stopped again")
    host.ctl("detach", "vault", "bastion")
    host.ctl("undefine", "vault")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_without_the_daemon_a_guest_whose_device_is_there_starts_and_libvirtd_restarts_with_it(
    vault: Host, how: signal.Signals
) -> None:
    vault.signal(how)
    try:
        assert vault.guest_start().returncode == 0
        vault.lab.run("vfioap-lab", "service", "restart", "libvirtd")
        assert vault.virsh("domstate", "bastion").strip() == "running", "reconnect let it live"
        vault.virsh("destroy", "bastion")
    finally:
        again(vault, how)


def again(host: Host, how: signal.Signals) -> None:
    if how is signal.SIGSTOP:
        host.signal(signal.SIGCONT)
    else:
        host.start_daemon()


def test_without_the_daemon_a_guest_whose_device_is_missing_is_refused_with_what_to_do(vault: Host) -> None:
    vault.ctl("stop", "vault")
    vault.signal(signal.SIGKILL)
    try:
        refused = vault.guest_start()
    finally:
        vault.start_daemon()
    assert refused.returncode != 0
    assert f"mdev {UUID} is not there" in refused.stderr
    assert "systemctl start vfioapd" in refused.stderr
    assert vault.guest_start().returncode == 0


def test_guests_without_a_device_and_devices_of_others_start_as_ever(host: Host) -> None:
    assert host.guest_start().returncode == 0
    host.virsh("destroy", "bastion")
    create = "/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create"
    host.lab.shell(f"echo {UUID} > {create}; udevadm settle")
    host.lab.run(
        "virsh", "-q", "attach-device", "bastion", "/dev/stdin", "--config",
        stdin="<hostdev mode='subsystem' type='mdev' model='vfio-ap'>"
        f"<source><address uuid='{UUID}'/></source></hostdev>",
    )  # fmt: skip
    assert host.guest_start().returncode == 0
    host.virsh("destroy", "bastion")
    host.lab.shell(f"echo 1 > {DEVICE}/remove")
    missing = host.guest_start()
    assert "vfioapd" not in missing.stderr, "libvirt's own words are enough"
    assert missing.returncode != 0
    strip = "sed '/<hostdev/,/hostdev>/d' > /run/b.xml; virsh -q define /run/b.xml"
    host.lab.shell(f"virsh -q dumpxml bastion --inactive | {strip}")
