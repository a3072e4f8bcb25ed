# SPDX-License-Identifier: Apache-2.0
"""Doctor on a host that runs under systemd: units, their order, reloads; a sound host is found sound."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from boots import KILL, NOT_BELOW_TMP, SYSTEMS, boot, libvirts_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.lab.boot_harness import BootedLab

pytestmark = NOT_BELOW_TMP

HOOK = "/etc/libvirt/hooks/qemu.d/vfioapd"
SETUP = """
echo vfio_ap > /etc/modules-load.d/vfio_ap.conf
vfioap-lab guest bastion
vfioapctl define bastion --queues 01.0011,05.0011 --guest bastion
"""

# How a defect is made, where $libvirt is the daemon that has the guests; what doctor prints mends it.
PLANTS = {
    "daemon-dead": "systemctl stop vfioapd.socket vfioapd-ro.socket vfioapd.service",
    "unit-disabled": "systemctl disable vfioapd-ready.target",
    "unit-stale": "echo '# a word' >> $(systemctl show -P FragmentPath vfioapd.service)",
    "hook-missing": f"rm {HOOK}",
    "hook-not-executable": f"chmod 644 {HOOK}",
    # A file's time may lag behind the clock by some milliseconds.
    "hook-unseen": f"mv {HOOK} /root; systemctl restart $libvirt; sleep 0.1; mv /root/vfioapd {HOOK}",
    "path-missing": "rm /run/vfioapd/vfioapd.sock",
    "socket-mode": "chgrp root /run/vfioapd/vfioapd.sock",
    "libvirt-silent": "systemctl stop $libvirt{,-ro,-admin}.socket $libvirt.service",
}


@pytest.fixture(scope="module", params=SYSTEMS)
def host(request: pytest.FixtureRequest) -> Iterator[BootedLab]:
    with boot("rdbkvm4", request.param) as lab:
        lab.shell(KILL + SETUP)
        lab.reboot()
        yield lab


def findings(lab: BootedLab) -> list[dict[str, Any]]:
    answer = json.loads(lab.run("vfioapctl", "doctor", "--json", check=False).stdout)
    return [one for subject in answer["subjects"] for one in subject["findings"]]


def test_a_sound_host_is_found_sound_and_everything_was_looked_at(host: BootedLab) -> None:
    answer = json.loads(host.run("vfioapctl", "doctor", "--json").stdout)
    assert {one["state"] for one in answer["subjects"]} == {"ok"}, answer
    assert [one["unchecked"] for one in answer["subjects"] if one["unchecked"]] == []


@pytest.mark.parametrize("code", PLANTS)
def test_a_planted_defect_is_found_alone_and_mended_by_its_command(host: BootedLab, code: str) -> None:
    host.shell(f"libvirt={libvirts_daemon(host)}; {PLANTS[code]}")
    found = findings(host)
    mended = [host.run("bash", "-c", one["command"], check=False) for one in found]
    assert [one["code"] for one in found] == [code], found
    assert mended[0].returncode == 0, mended[0].stderr
    assert findings(host) == []


def test_a_libvirt_that_does_not_wait_for_the_queues_is_told(host: BootedLab) -> None:
    target = host.value("vfioapd-ready.target", "FragmentPath")
    host.shell(f"cp {target} /root; sed -i '/^Before=/d' {target}; systemctl daemon-reload")
    try:
        (finding,) = findings(host)
    finally:
        host.shell(f"cp /root/vfioapd-ready.target {target}; systemctl daemon-reload")
    assert finding["code"] == "order-missing"
    daemon = libvirts_daemon(host)
    assert finding["sentence"] == f"{daemon}.service is not ordered after vfioapd-ready.target"
    assert findings(host) == []
