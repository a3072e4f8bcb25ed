# SPDX-License-Identifier: Apache-2.0
"""Doctor on a host that runs under systemd: units, their order, reloads; a sound host is found sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vfioapd.lab.boot_harness import BootedLab, booted_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    CHECKOUT.parts[1] == "tmp", reason="a unit with PrivateTmp=yes cannot run a daemon from below /tmp"
)

HOOK = "/etc/libvirt/hooks/qemu.d/vfioapd"
UNITS = "/etc/systemd/system"
SETUP = """
echo vfio_ap > /etc/modules-load.d/vfio_ap.conf
vfioap-lab guest bastion
vfioapctl define bastion --queues 01.0011,05.0011 --guest bastion
"""

# How a defect is made; what doctor prints mends it.
PLANTS = {
    "daemon-dead": "systemctl stop vfioapd.socket vfioapd-ro.socket vfioapd.service",
    "unit-disabled": "systemctl disable vfioapd-ready.target",
    "unit-stale": f"echo '# a word' >> {UNITS}/vfioapd.service",
    "hook-missing": f"rm {HOOK}",
    "hook-not-executable": f"chmod 644 {HOOK}",
    # A file's time may lag behind the clock by some milliseconds.
    "hook-unseen": f"mv {HOOK} /root; systemctl restart libvirtd; sleep 0.1; mv /root/vfioapd {HOOK}",
    "path-missing": "rm /run/vfioapd/vfioapd.sock",
    "socket-mode": "chgrp root /run/vfioapd/vfioapd.sock",
    "libvirt-silent": "systemctl stop libvirtd{,-ro,-admin}.socket libvirtd.service",
}


@pytest.fixture(scope="module")
def host() -> Iterator[BootedLab]:
    with booted_lab("rdbkvm4") as lab:
        lab.shell(SETUP)
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
    host.shell(PLANTS[code])
    found = findings(host)
    mended = [host.run("bash", "-c", one["command"], check=False) for one in found]
    assert [one["code"] for one in found] == [code], found
    assert mended[0].returncode == 0, mended[0].stderr
    assert findings(host) == []


def test_a_libvirt_that_does_not_wait_for_the_queues_is_told(host: BootedLab) -> None:
    target = f"{UNITS}/vfioapd-ready.target"
    host.shell(f"cp {target} /root; sed -i '/^Before=/d' {target}; systemctl daemon-reload")
    try:
        (finding,) = findings(host)
    finally:
        host.shell(f"cp /root/vfioapd-ready.target {target}; systemctl daemon-reload")
    assert finding["code"] == "order-missing"
    assert finding["sentence"] == "libvirtd.service is not ordered after vfioapd-ready.target"
    assert findings(host) == []
