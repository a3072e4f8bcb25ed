# SPDX-License-Identifier: Apache-2.0
"""chzcrypt and zcryptctl change the emulated kernel as they say, and say so where it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vfioapd.lab.harness import Lab, Result

pytestmark = pytest.mark.usefixtures("ibm_tools")

CARD = "/sys/devices/ap/card03"
QUEUE = f"{CARD}/03.000d"
BUS = "/sys/bus/ap"


def read(lab: Lab, *paths: str) -> str:
    return " ".join(lab.run("cat", *paths).stdout.split())


def change(lab: Lab, *options: str) -> Result:
    return lab.run("chzcrypt", *options, check=False)


def test_a_card_and_its_queues_go_offline_and_online(lab: Lab) -> None:
    assert change(lab, "-d", "3").returncode == 0
    assert read(lab, f"{CARD}/online", f"{QUEUE}/online") == "0 0"
    refused = change(lab, "-e", "3.d")  # a queue of a card that is offline
    assert refused.stderr == "chzcrypt: Error - unable to set cryptographic device card03/03.000d online.\n"
    assert change(lab, "-e", "3").returncode == 0
    assert read(lab, f"{CARD}/online", f"{QUEUE}/online") == "1 1"
    assert change(lab, "-d", "03.000d").returncode == 0
    assert read(lab, f"{CARD}/online", f"{QUEUE}/online", f"{CARD}/03.0011/online") == "1 0 1"


def test_all_cards_go_offline_and_online(lab: Lab) -> None:
    every = [f"/sys/devices/ap/card{n:02x}/online" for n in range(8)]
    assert change(lab, "-d", "-a").returncode == 0
    assert read(lab, *every) == " ".join("0" * 8)
    assert change(lab, "-e", "-a").returncode == 0
    assert read(lab, *every) == " ".join("1" * 8)


def test_a_card_is_deconfigured_and_comes_back(lab: Lab) -> None:
    assert change(lab, "--config-off", "3").returncode == 0
    assert read(lab, f"{CARD}/config", f"{CARD}/online") == "0 0"
    assert " deconfig " in lab.run("lszcrypt", "3").stdout
    again = change(lab, "--config-off", "3")
    assert again.stderr == "chzcrypt: Warning - device card03 is already config off.\n"
    assert "is deconfigured, can't set to online" in change(lab, "-e", "3").stderr
    assert change(lab, "--config-on", "3").returncode == 0
    assert read(lab, f"{CARD}/config", f"{CARD}/online") == "1 1"


@pytest.mark.parametrize(
    ("options", "file", "value"),
    [
        (["-c", "45"], "config_time", "45"),
        (["-t", "100000"], "poll_timeout", "100000"),
        (["-n"], "poll_thread", "0"),
        (["-q", "0x11"], "ap_domain", "17"),
        (["-q", "17"], "ap_domain", "17"),
    ],
)
def test_settings_of_the_bus_change(lab: Lab, options: list[str], file: str, value: str) -> None:
    assert change(lab, *options).returncode == 0
    assert read(lab, f"{BUS}/{file}") == value


@pytest.mark.parametrize(
    ("options", "error", "file"),
    [
        (["-c", "2"], "unable to change configuration timer setting.", "config_time"),
        (["-c", "130"], "unable to change configuration timer setting.", "config_time"),
        (["-p"], "unable to change poll thread setting.", "poll_thread"),  # interrupts make it needless
        (["-q", "300"], "invalid default domain '300'.", "ap_domain"),
        (["-e", "9"], "cryptographic device card09 does not exist.", "bindings"),
        (["--se-bind", "03.000d"], "AP bus: SE bind support is not available.", "bindings"),
        (["--se-associate", "1", "03.000d"], "AP bus: SE bind support is not available.", "bindings"),
    ],
)
def test_a_refusal_is_told_and_changes_nothing(lab: Lab, options: list[str], error: str, file: str) -> None:
    before = read(lab, f"{BUS}/{file}")
    result = change(lab, *options)
    assert (result.returncode, result.stderr.strip()) == (1, f"chzcrypt: Error - {error}")
    assert read(lab, f"{BUS}/{file}") == before


def test_zcrypt_nodes_are_made_restricted_and_destroyed(lab: Lab) -> None:
    script = """
        zcryptctl list; zcryptctl create; zcryptctl create tenant; ls /dev/zcrypt_0
        zcryptctl addap tenant 5; zcryptctl adddom tenant 17; zcryptctl addctrl tenant 13
        zcryptctl addioctl tenant ZSENDEP11CPRB; zcryptctl destroy zcrypt_0; zcryptctl listconfig"""
    assert lab.shell(script).stdout.splitlines() == [
        "No additional zcrypt device nodes defined",
        "Device node created",
        "Device node created",
        "/dev/zcrypt_0",
        "Adapter 5 added",
        "Domain 17 added",
        "Control domain 13 added",
        "Ioctl ZSENDEP11CPRB added",
        "Device node 'zcrypt_0' marked for destruction",
        "node = tenant",
        " aps = 5",
        " doms = 17",
        " ctrls = 13",
        " ioctls = ZSENDEP11CPRB",
    ]
    assert read(lab, "/sys/class/zcrypt/tenant/apmask") == "0x04" + "0" * 62
    assert lab.run("test", "-e", "/dev/zcrypt_0", check=False).returncode == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["create", "tenant"], "Could not write into sysfs entry to create zdev node"),
        (["destroy", "other"], "Invalid or unknown nodename 'other'"),
        (["addap", "other", "5"], "Invalid or unknown nodename 'other'"),
    ],
)
def test_a_zcrypt_node_that_cannot_be_is_refused(lab: Lab, words: list[str], error: str) -> None:
    lab.run("zcryptctl", "create", "tenant")
    result = lab.run("zcryptctl", *words, check=False)
    assert (result.returncode, result.stderr) == (1, f"zcryptctl: {error}\n")


def test_a_configuration_file_restricts_a_node(lab: Lab) -> None:
    lines = ["node=tenant", "aps=1,2 3", "doms=13", "ctrls=17", "ioctls=ALL"]
    lab.run(
        "sh", "-c", "cat > /run/tenant.conf; zcryptctl config /run/tenant.conf", stdin="\n".join(lines) + "\n"
    )
    masks = [f"/sys/class/zcrypt/tenant/{name}mask" for name in ("ap", "aq", "ad", "ioctl")]
    assert read(lab, *masks).split() == [
        "0x70" + "0" * 62,
        "0x0004" + "0" * 60,
        "0x000040" + "0" * 58,
        "0x" + "f" * 64,
    ]
