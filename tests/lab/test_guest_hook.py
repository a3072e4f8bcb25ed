# SPDX-License-Identifier: Apache-2.0
"""The hook under a real libvirt: guests started, refused and ended, with and without the daemon."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from guest_host import SYSTEMS, GuestHost, guest_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vfioapd.lab.harness import Result

UUID = "825b3872-0001-0003-0011-28a403f8b357"
DEVICE = f"/sys/bus/mdev/devices/{UUID}"


def state_of(host: GuestHost) -> str:
    return str(host.show("vault")["state"])


def guest_start(host: GuestHost) -> Result:
    return host.lab.run("virsh", "-q", "start", "bastion", check=False)


@pytest.fixture(scope="module", params=SYSTEMS)
def host(request: pytest.FixtureRequest) -> Iterator[GuestHost]:
    with guest_host(request.param) as host:
        host.install_hook()
        host.guest("bastion")
        yield host


@pytest.fixture
def vault(host: GuestHost) -> Iterator[GuestHost]:
    """bastion's definition has vault; nothing runs."""
    host.ctl("define", "vault", "--queues", "00.000d,02.000d", "--uuid", UUID)
    host.ctl("attach", "vault", "bastion")
    yield host
    host.virsh("destroy", "bastion", check=False)
    host.ctl("detach", "vault", "bastion")
    host.ctl("undefine", "vault")


def test_a_stopped_matrix_is_started_by_the_start_of_its_guest(vault: GuestHost) -> None:
    vault.ctl("stop", "vault")
    assert state_of(vault) == "stopped"
    started = guest_start(vault)
    assert started.returncode == 0, started.stderr
    assert state_of(vault) == "in-use"
    vault.virsh("destroy", "bastion")
    assert state_of(vault) == "started"


def test_a_refused_start_shows_its_one_sentence_in_virsh(vault: GuestHost) -> None:
    vault.lab.run("vfioap-lab", "play", "remove-adapter", "adapter=2")
    try:
        refused = guest_start(vault)
    finally:
        vault.lab.run("vfioap-lab", "play", "add-adapter", "adapter=2", "type=CEX8C")
    assert refused.returncode != 0
    assert "vfioapd: guest bastion is not started: it requires all of the queues of matrix vault" in (
        refused.stderr
    )
    assert "02.000d" in refused.stderr
    assert "vfioapctl why vault" in refused.stderr
    assert vault.virsh("domstate", "bastion").strip() == "shut off"
    assert guest_start(vault).returncode == 0


def test_a_matrix_started_for_one_run_goes_when_the_guest_ends(
    host: GuestHost, wait_until: Callable[..., None]
) -> None:
    host.ctl("define", "vault", "--queues", "00.000d,02.000d", "--uuid", UUID, "--start", "manual")
    host.ctl("attach", "vault", "bastion", "--config")
    assert state_of(host) == "stopped"
    for _ in range(3):
        assert guest_start(host).returncode == 0
        assert state_of(host) == "in-use"
        host.virsh("destroy", "bastion")
    wait_until(lambda: state_of(host) == "stopped", "the matrix is stopped again")
    host.ctl("detach", "vault", "bastion")
    host.ctl("undefine", "vault")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_without_the_daemon_a_guest_whose_device_is_there_starts_and_libvirt_restarts_with_it(
    vault: GuestHost, how: signal.Signals
) -> None:
    if how is signal.SIGSTOP:
        vault.signal_daemon(how)
    else:
        vault.take_down_daemon()
    try:
        assert guest_start(vault).returncode == 0
        vault.libvirtd("restart")
        assert vault.virsh("domstate", "bastion").strip() == "running", "reconnect let it live"
        vault.virsh("destroy", "bastion")
    finally:
        again(vault, how)


def again(host: GuestHost, how: signal.Signals) -> None:
    if how is signal.SIGSTOP:
        host.signal_daemon(signal.SIGCONT)
    else:
        host.start_daemon()


def test_without_the_daemon_a_guest_whose_device_is_missing_is_refused_with_what_to_do(
    vault: GuestHost,
) -> None:
    vault.ctl("stop", "vault")
    vault.take_down_daemon()
    try:
        refused = guest_start(vault)
    finally:
        vault.start_daemon()
    assert refused.returncode != 0
    assert f"mdev {UUID} is not there" in refused.stderr
    assert "systemctl start vfioapd" in refused.stderr
    assert guest_start(vault).returncode == 0


def test_guests_without_a_device_and_devices_of_others_start_as_ever(host: GuestHost) -> None:
    assert guest_start(host).returncode == 0
    host.virsh("destroy", "bastion")
    create = "/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create"
    host.lab.shell(f"echo {UUID} > {create}; udevadm settle")
    host.lab.run(
        "virsh", "-q", "attach-device", "bastion", "/dev/stdin", "--config",
        stdin="<hostdev mode='subsystem' type='mdev' model='vfio-ap'>"
        f"<source><address uuid='{UUID}'/></source></hostdev>",
    )  # fmt: skip
    assert guest_start(host).returncode == 0
    host.virsh("destroy", "bastion")
    host.lab.shell(f"echo 1 > {DEVICE}/remove")
    missing = guest_start(host)
    assert "vfioapd" not in missing.stderr, "libvirt's own words are enough"
    assert missing.returncode != 0
    strip = "sed '/<hostdev/,/hostdev>/d' > /run/b.xml; virsh -q define /run/b.xml"
    host.lab.shell(f"virsh -q dumpxml bastion --inactive | {strip}")
