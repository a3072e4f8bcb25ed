# SPDX-License-Identifier: Apache-2.0
"""A host that boots with something missing, late or torn: it always comes up, and says what it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid5

import pytest
from boots import NOT_BELOW_TMP, SYSTEMS, autostarted, boot, libvirts_daemon, matrices, moment, status, told

from vfioapd.daemon.outcomes import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vfioapd.lab.boot_harness import BootedLab

pytestmark = NOT_BELOW_TMP
MACHINE = """
kernel = "{kernel}"
[machine]
usage_domains = [0x0d, 0x11]
[boot]
late_bindings = {late}
"""
CARDS = {5: "CEX8P", 6: "CEX8C", 7: "CEX8P"}
FOREIGN = "00000000-0000-0000-0000-00000000f0f0"
# Two guests: bastion needs adapter 5, aw1 does not.
REFUSED = "guest bastion is not started: it requires all of the queues of matrix bastion"
MATRICES = {"bastion": "05.0011", "aw1": "06.0011,07.0011"}


def host_file(*, without: int | None = None, late: float = 0.0, kernel: str = "6.12", plays: str = "") -> str:
    cards = "".join(
        f'[[card]]\nadapter = {adapter}\ntype = "{kind}"\n'
        for adapter, kind in CARDS.items()
        if adapter != without
    )
    return MACHINE.format(late=late, kernel=kernel) + cards + plays


def reboot_on(lab: BootedLab, hardware: str) -> None:
    """The same disk on another machine."""
    lab.run("tee", "/etc/vfioap-lab/host.toml", stdin=hardware)
    lab.reboot()


def guests(lab: BootedLab) -> dict[str, str]:
    lines = lab.run("virsh", "-q", "list", "--all").stdout.splitlines()
    return {line.split()[1]: " ".join(line.split()[2:]) for line in lines}


def runs(lab: BootedLab, guest: str) -> bool:
    return guests(lab)[guest] != "shut off"


def libvirts_journal(lab: BootedLab) -> str:
    return lab.run("journalctl", "--boot", f"--unit={libvirts_daemon(lab)}.service").stdout


def names(lab: BootedLab, message: Message) -> set[str]:
    return {entry.get("VFIOAPD_MATRIX", "") for entry in told(lab, message.value)}


def restore_seconds(lab: BootedLab) -> float:
    begun, ready = (moment(lab, "vfioapd.service", what) for what in ("InactiveExit", "ActiveEnter"))
    return (ready - begun) / 1e6


def is_up(lab: BootedLab) -> None:
    """No unit has failed, whatever is missing."""
    assert lab.run("systemctl", "is-system-running", check=False).stdout == "running\n"
    assert lab.value("vfioapd-ready.target", "ActiveState") == "active"
    assert moment(lab, "vfioapd-ready.target", "ActiveEnter") < moment(
        lab, f"{libvirts_daemon(lab)}.service", "InactiveExit"
    )


@pytest.fixture(scope="module", params=SYSTEMS)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedLab]:
    """Two matrices for two guests with autostart; each test boots it on the hardware it wants."""
    path = tmp_path_factory.mktemp("host") / "host.toml"
    path.write_text(host_file())
    with boot(str(path), request.param) as lab:
        for name, queues in MATRICES.items():
            lab.shell(autostarted(name))
            lab.run("vfioapctl", "define", name, "--queues", queues, "--guest", name)
        yield lab


def test_a_whole_host_boots_with_both_guests(host: BootedLab, wait_until: Callable[..., None]) -> None:
    reboot_on(host, host_file())
    is_up(host)
    wait_until(lambda: all(runs(host, name) for name in MATRICES), "both guests run", seconds=30)
    assert names(host, Message.RESTORED) == set(MATRICES)
    assert names(host, Message.READY) == {""}
    assert host.value("vfioapd.service", "StatusText") == "2 matrices defined"


def test_a_missing_adapter_keeps_one_guest_down_with_the_reason_and_no_other(
    host: BootedLab, wait_until: Callable[..., None]
) -> None:
    reboot_on(host, host_file(without=5))
    is_up(host)
    wait_until(lambda: runs(host, "aw1"), "the guest that is whole runs", seconds=30)
    assert matrices(host)["aw1"]["guest_matrix"] == ["06.0011", "07.0011"]
    wait_until(lambda: REFUSED in libvirts_journal(host), "the other is refused")
    assert not runs(host, "bastion")
    assert names(host, Message.SHORT) == {"bastion"}
    assert "bastion" in host.value("vfioapd.service", "StatusText")
    assert "05.0011" in matrices(host)["bastion"]["problem"]
    assert restore_seconds(host) < 10, "a complete bus is not waited for"


def test_an_adapter_that_comes_later_is_taken_up_and_its_guest_can_start(
    host: BootedLab, wait_until: Callable[..., None]
) -> None:
    reboot_on(host, host_file(without=5))
    wait_until(lambda: REFUSED in libvirts_journal(host), "its guest is refused")
    host.run("vfioap-lab", "play", "add-adapter", "adapter=5", "type=CEX8P")
    wait_until(lambda: host.value("vfioapd.service", "StatusText") == "2 matrices defined", "it is taken up")
    assert names(host, Message.TAKEN_UP) == {"bastion"}
    host.run("virsh", "-q", "start", "bastion")
    assert matrices(host)["bastion"]["live"] == "bastion"


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_bindings_that_are_late_hold_up_neither_the_boot_nor_the_guests(
    host: BootedLab, wait_until: Callable[..., None], kernel: str
) -> None:
    """The host's own drivers come a minute late; what is the guests' needs none of them."""
    reboot_on(host, host_file(late=60, kernel=kernel))
    is_up(host)
    assert restore_seconds(host) < 10
    wait_until(lambda: all(runs(host, name) for name in MATRICES), "both guests run", seconds=30)
    assert status(host)["complete"] is False
    assert {name: row["guest_matrix"] for name, row in matrices(host).items()} == {
        name: queues.split(",") for name, queues in MATRICES.items()
    }


def test_a_bus_that_finds_a_card_late_is_waited_for(host: BootedLab, wait_until: Callable[..., None]) -> None:
    late = '[[play]]\nafter = 8\naction = "add-adapter"\nadapter = 5\ntype = "CEX8P"\n'
    reboot_on(host, host_file(without=5, late=120, plays=late))
    is_up(host)
    wait_until(lambda: runs(host, "bastion"), "the guest runs", seconds=30)
    assert 2 < restore_seconds(host) < 20
    assert names(host, Message.RESTORED) == set(MATRICES)


def test_a_card_that_never_comes_to_a_bus_that_is_not_complete_ends_the_wait(host: BootedLab) -> None:
    reboot_on(host, host_file(without=5, late=300))
    is_up(host)
    assert 29 < restore_seconds(host) < 40
    assert len(told(host, Message.BUS_LATE.value)) == 1
    assert names(host, Message.DEGRADED) == {""}
    assert runs(host, "aw1")


def test_while_a_bus_is_waited_for_the_daemon_answers_and_a_stop_waits_for_the_end(
    host: BootedLab, wait_until: Callable[..., None]
) -> None:
    reboot_on(host, host_file(without=5, late=300))
    host.shell("rm /run/vfioapd/started; systemctl --no-block restart vfioapd")  # as after a boot
    wait_until(
        lambda: "waiting for the AP bus" in host.value("vfioapd.service", "StatusText"),
        "it waits",
        seconds=10,
    )
    assert {row["name"] for row in status(host)["matrices"]} == set(MATRICES)
    host.run("systemctl", "stop", "vfioapd", timeout=60)
    assert host.value("vfioapd.service", "Result") == "success"
    assert len(told(host, Message.BUS_LATE.value)) == 2, "the wait was not cut short"
    assert len(told(host, Message.DEGRADED.value)) == 2


def test_a_torn_file_of_others_in_mdevctls_folder_keeps_no_matrix_from_its_queues(
    host: BootedLab, wait_until: Callable[..., None]
) -> None:
    host.run("tee", f"/etc/mdevctl.d/matrix/{FOREIGN}", stdin='{"mdev_type": "vfio_ap-pa')
    try:
        reboot_on(host, host_file())
        is_up(host)
        wait_until(lambda: all(runs(host, name) for name in MATRICES), "both guests run", seconds=30)
        assert any(FOREIGN in problem and "torn" in problem for problem in status(host)["problems"])
        assert FOREIGN in host.value("vfioapd.service", "StatusText")
        assert names(host, Message.DEGRADED) == {""}
    finally:
        host.run("rm", f"/etc/mdevctl.d/matrix/{FOREIGN}")


def test_libvirt_that_is_started_by_its_socket_waits_for_the_queues(
    host: BootedLab, wait_until: Callable[..., None]
) -> None:
    """Nobody wants it but an early client of its socket; the restore is slow, as the card is late."""
    daemon = libvirts_daemon(host)
    host.run("tee", "/etc/systemd/system/early.service", stdin=EARLY_CLIENT.format(daemon=daemon))
    host.shell(f"systemctl -q disable {daemon}.service; systemctl -q enable {daemon}.socket early.service")
    late = '[[play]]\nafter = 8\naction = "add-adapter"\nadapter = 5\ntype = "CEX8P"\n'
    try:
        reboot_on(host, host_file(without=5, late=120, plays=late))
        is_up(host)
        assert host.value("early.service", "Result") == "success"
        begun = moment(host, "early.service", "InactiveExit")
        assert begun < moment(host, "vfioapd-ready.target", "ActiveEnter"), "it came before"
        wait_until(lambda: all(runs(host, name) for name in MATRICES), "both guests run", seconds=30)
    finally:
        host.shell(f"systemctl -q disable early.service; systemctl -q enable {daemon}.service")


EARLY_CLIENT = """\
[Unit]
After={daemon}.socket
Requires={daemon}.socket
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=virsh -c qemu:///system -q list --all
[Install]
WantedBy=multi-user.target
"""


def test_a_matrix_that_cannot_be_made_stops_no_other(
    host: BootedLab, wait_until: Callable[..., None]
) -> None:
    """Another tool's device has its queue by then: one that starts before us."""
    thief = uuid5(UUID(FOREIGN), "thief")
    host.run("tee", "/etc/systemd/system/thief.service", stdin=THIEF.format(uuid=thief))
    host.shell("systemctl -q enable thief.service")
    try:
        reboot_on(host, host_file())
        is_up(host)
        wait_until(lambda: runs(host, "aw1"), "the guest that is whole runs", seconds=30)
        assert matrices(host)["bastion"]["state"] == "failed"
        assert names(host, Message.NOT_RESTORED) == {"bastion"}
        assert not runs(host, "bastion")
        host.shell(f"echo 1 > /sys/bus/mdev/devices/{thief}/remove")
        wait_until(lambda: matrices(host)["bastion"]["state"] == "started", "it is tried again")
        assert names(host, Message.TAKEN_UP) == {"bastion"}
    finally:
        host.shell("systemctl -q disable thief.service")


THIEF = """\
[Unit]
Before=vfioapd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -ec 'cd /sys/devices/vfio_ap/matrix; echo -5 > /sys/bus/ap/apmask; \\
  echo {uuid} > mdev_supported_types/vfio_ap-passthrough/create; \\
  echo 5 > {uuid}/assign_adapter; echo 0x11 > {uuid}/assign_domain'
[Install]
WantedBy=vfioapd.service
"""


def test_host_toml_and_its_newest_revision_torn_leave_an_older_one_in_force(
    host: BootedLab, wait_until: Callable[..., None]
) -> None:
    host.shell("cp -a /etc/vfioapd/host.toml /var/lib/vfioapd/revisions /root/")
    host.shell(
        "truncate -s 20 /etc/vfioapd/host.toml; cd /var/lib/vfioapd/revisions;"
        " cp $(ls *.toml | tail -1) 999998.toml; echo 'version = ' > 999999.toml"
    )
    try:
        reboot_on(host, host_file())
        is_up(host)
        wait_until(lambda: all(runs(host, name) for name in MATRICES), "both guests run", seconds=30)
        assert len(told(host, Message.HOST_FILE_NOT_READ.value)) == 1
        assert "host.toml" in host.value("vfioapd.service", "StatusText")
    finally:
        host.shell(
            "rm -r /var/lib/vfioapd/revisions; cp -a /root/revisions /var/lib/vfioapd/;"
            " cp -a /root/host.toml /etc/vfioapd/"
        )


def test_a_host_toml_that_is_closed_to_the_unit_leaves_the_last_one_in_force(
    host: BootedLab, wait_until: Callable[..., None]
) -> None:
    """Its sandbox has no right to override the modes of others' files (CAP_DAC_OVERRIDE)."""
    host.shell(
        "cp -a /etc/vfioapd/host.toml /root/; cd /etc/vfioapd; chown nobody host.toml; chmod 600 host.toml"
    )
    try:
        reboot_on(host, host_file())
        is_up(host)
        wait_until(lambda: all(runs(host, name) for name in MATRICES), "both guests run", seconds=30)
        (told_of,) = told(host, Message.HOST_FILE_NOT_READ.value)
        assert "host.toml cannot be read: Permission denied" in str(told_of["MESSAGE"])
    finally:
        host.shell("cp -a /root/host.toml /etc/vfioapd/")
