# SPDX-License-Identifier: Apache-2.0
"""Doctor beside IBM's own chzdev and chzcrypt: their contradictions are found, their commands mend them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from labs import START_DAEMON

if TYPE_CHECKING:
    from vfioapd.lab.harness import Lab

pytestmark = pytest.mark.usefixtures("ibm_tools")

# Not what doctor is asked about here: nothing is installed in this lab.
BARE = {"vfio-ap-not-at-boot", "hook-missing"}
SETUP = f"""
mkdir -p /etc/vfioapd
printf 'version = 1\\n[host]\\nkeep = ["00.000d"]\\n' > /etc/vfioapd/host.toml
{START_DAEMON}
vfioapctl define vault --queues 02.0011,04.0011
"""


@pytest.fixture
def host(libvirt_lab: Lab) -> Lab:
    """Adapters 2 and 4 are away from the host, 00.000d must not go."""
    libvirt_lab.shell(SETUP)
    assert findings(libvirt_lab) == []
    return libvirt_lab


def findings(lab: Lab) -> list[dict[str, Any]]:
    answer = json.loads(lab.run("vfioapctl", "doctor", "--json", check=False).stdout)
    found = [one for subject in answer["subjects"] for one in subject["findings"]]
    return [one for one in found if one["code"] not in BARE]


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (("apmask=0-255",), "gives 02.0011, 04.0011 of matrix vault to the host"),
        (("apmask=-0,-2,-4",), "takes 00.000d from the host, which [host] keep leaves to it"),
        (("apmask=-2,-4", "aqmask=-13"), "takes 00.000d from the host"),
    ],
)
def test_persistent_masks_of_chzdev_that_contradict_are_found_and_dropped(
    host: Lab, masks: tuple[str, ...], words: str
) -> None:
    host.run("chzdev", "--type", "ap", "--persistent", *masks)
    (finding,) = findings(host)
    assert finding["code"] == "chzdev-masks"
    assert words in finding["sentence"]
    host.run("bash", "-c", finding["command"])
    assert findings(host) == []
    assert host.run("ls", "/etc/udev/rules.d").stdout == ""


def test_persistent_masks_of_chzdev_that_agree_are_no_defect(host: Lab) -> None:
    host.run("chzdev", "--type", "ap", "--persistent", "apmask=-2,-4")
    assert findings(host) == []


def test_an_adapter_that_chzcrypt_switched_off_is_switched_on_again(host: Lab) -> None:
    scan = "echo 1 > /sys/bus/ap/scans"  # queues learn of it by the next scan, as in the kernel
    host.shell(f"chzcrypt --config-off 4; {scan}")
    (finding,) = findings(host)
    assert finding["code"] == "queue-deconfigured"
    host.shell(f"{finding['command']}; {scan}")
    assert findings(host) == []
