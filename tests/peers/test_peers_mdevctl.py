# SPDX-License-Identifier: Apache-2.0
"""mdevctl 1.2 (this machine's) and 1.4 (Debian 13's) make, change and end devices, and pass on errnos."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfioapd.lab.harness import Lab, Result

    Mdevctl = Callable[..., Result]

ONE = "11111111-0000-4000-8000-000000000001"
TWO = "22222222-0000-4000-8000-000000000002"
MATRIX = "/sys/devices/vfio_ap/matrix"
PARENT = ("-p", "matrix", "-t", "vfio_ap-passthrough")


@pytest.fixture(params=["1.2", "1.4"])
def mdevctl(request: pytest.FixtureRequest, lab: Lab) -> Mdevctl:
    if request.param == "1.2":
        prefix = ["env", "-u", "RUST_BACKTRACE", "mdevctl"]
    else:
        request.getfixturevalue("newer")
        prefix = ["/run/newer/bin/mdevctl"]
    version = lab.run(*prefix, "--version").stdout.split()[1]
    if not version.startswith(f"{request.param}."):
        pytest.skip(f"this machine's mdevctl is {version}, not {request.param}")
    lab.shell("echo -5 > /sys/bus/ap/apmask")
    return lambda *words, check=True: lab.run(*prefix, *words, check=check)


def define(mdevctl: Mdevctl, uuid: str, *attributes: tuple[str, str]) -> None:
    mdevctl("define", "-u", uuid, *PARENT)
    for name, value in attributes:
        mdevctl("modify", "-u", uuid, f"--addattr={name}", f"--value={value}")


def test_the_type_is_listed(mdevctl: Mdevctl) -> None:
    assert json.loads(mdevctl("types", "--dumpjson").stdout) == [
        {
            "matrix": [
                {
                    "vfio_ap-passthrough": {
                        "available_instances": 65536,
                        "device_api": "vfio-ap",
                        "name": "VFIO AP Passthrough Device",
                    }
                }
            ]
        }
    ]


def test_a_definition_is_started_listed_and_stopped(mdevctl: Mdevctl, lab: Lab) -> None:
    define(
        mdevctl, ONE, ("assign_adapter", "0x5"), ("assign_domain", "0x11"), ("assign_control_domain", "13")
    )
    assert mdevctl("list").stdout.strip() == ""
    mdevctl("start", "-u", ONE)
    assert lab.run("cat", f"{MATRIX}/{ONE}/matrix").stdout == "05.0011\n"
    assert lab.run("cat", f"{MATRIX}/{ONE}/control_domains").stdout == "000d\n"
    assert f"{ONE} matrix vfio_ap-passthrough manual" in mdevctl("list").stdout
    defined = mdevctl("list", "-d", "-v").stdout.split("\n", 1)
    assert defined[0] == f"{ONE} matrix vfio_ap-passthrough manual (active)"
    assert '@{0}: {"assign_adapter":"0x5"}' in defined[1]
    mdevctl("stop", "-u", ONE)
    assert lab.run("ls", "/sys/bus/mdev/devices").stdout == ""
    mdevctl("undefine", "-u", ONE)
    assert mdevctl("list", "-d").stdout.strip() == ""


def test_a_change_of_start_and_attributes_is_kept(mdevctl: Mdevctl) -> None:
    define(mdevctl, ONE, ("assign_adapter", "5"), ("assign_domain", "13"))
    mdevctl("modify", "-u", ONE, "--auto")
    mdevctl("modify", "-u", ONE, "--delattr", "--index=1")
    mdevctl("modify", "-u", ONE, "--addattr=assign_domain", "--value=17")
    (kept,) = json.loads(mdevctl("list", "-d", "--dumpjson").stdout)[0]["matrix"]
    assert kept[ONE]["start"] == "auto"
    assert kept[ONE]["attrs"] == [{"assign_adapter": "5"}, {"assign_domain": "17"}]


REFUSALS = {
    "in another device": (("adapter 5", "domain 17"), "Address already in use (os error 98)"),
    "of the host": (("domain 17", "adapter 3"), "Cannot assign requested address (os error 99)"),
    "no such adapter": (("adapter 256",), "No such device (os error 19)"),
    "no such domain": (("domain 85",), "No such device (os error 19)"),
    "no number": (("adapter x",), "Invalid argument (os error 22)"),
}


@pytest.mark.parametrize(("assigned", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_names_the_attribute_and_the_errno(
    mdevctl: Mdevctl, lab: Lab, assigned: tuple[str, ...], reason: str
) -> None:
    define(mdevctl, ONE, ("assign_adapter", "5"), ("assign_domain", "17"))
    mdevctl("start", "-u", ONE)
    attributes = [(f"assign_{kind}", number) for kind, number in map(str.split, assigned)]
    define(mdevctl, TWO, *attributes)
    result = mdevctl("start", "-u", TWO, check=False)
    assert result.returncode == 1
    name, value = attributes[-1]
    refused = f"Error: Failed to write {value} to attribute {name}\n\nCaused by:\n    {reason}"
    assert result.stderr.strip() == refused
    assert lab.run("ls", "/sys/bus/mdev/devices").stdout == f"{ONE}\n"


def test_what_runs_is_not_started_and_what_does_not_is_not_stopped(mdevctl: Mdevctl) -> None:
    mdevctl("start", "-u", ONE, *PARENT)
    assert mdevctl("start", "-u", ONE, *PARENT, check=False).stderr.strip() == "Error: Device already exists"
    result = mdevctl("stop", "-u", TWO, check=False)
    assert (result.returncode, TWO in result.stderr) == (1, True)
