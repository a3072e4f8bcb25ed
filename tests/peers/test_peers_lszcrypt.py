# SPDX-License-Identifier: Apache-2.0
"""lszcrypt on the Redbook's host prints what the Redbook shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vfioapd.lab.harness import Lab

pytestmark = pytest.mark.usefixtures("ibm_tools")

MODES = {"A": "Accelerator", "C": "CCA-Coproc", "P": "EP11-Coproc"}
TYPES = "CACACPCP"  # of adapters 0 to 7
# The book's tool had no column for H (hardware filter), which this one has before the F.
FUNCTIONS = {"C": "S--D--NF-", "A": "-MC-A-NF-", "P": "-----XNF-"}
HEAD = "CARD.DOM TYPE MODE STATUS REQUESTS PENDING HWTYPE QDEPTH FUNCTIONS DRIVER"
DOMAINS = ("000d", "0011")
FIRST = "000d000d-000d-000d-000d-000d000d000d"
SECOND = "00110011-0011-0011-0011-001100110011"
CREATE = "/sys/devices/vfio_ap/matrix/mdev_supported_types/vfio_ap-passthrough/create"
# The book frees all adapters and domains from the host, then makes the two matrices.
TWO_MATRICES = f"""
echo 0x0 > /sys/bus/ap/apmask
echo 0x0 > /sys/bus/ap/aqmask
make() {{
    echo $1 > {CREATE}
    cd /sys/devices/vfio_ap/matrix/$1
    for adapter in 5 7; do echo $adapter > assign_adapter; done
    echo $2 > assign_domain
    echo $2 > assign_control_domain
}}
make {FIRST} 13
make {SECOND} 17
"""
OPEN = f"""
import os
from vfioapd.lab import wire
from pathlib import Path
message = {{"command": "guest_open", "uuid": {FIRST!r}, "guest": "bastion"}}
print(wire.request(Path(os.environ["VFIOAP_LAB_CONTROL"]), message))
"""


def rows(lab: Lab, *options: str) -> list[list[str]]:
    lines = lab.run("lszcrypt", *options).stdout.splitlines()
    assert set(lines[1]) == {"-"}
    return [line.split() for line in [lines[0], *lines[2:]]]


def card_row(adapter: int) -> list[str]:
    kind = TYPES[adapter]
    return [
        f"{adapter:02x}",
        f"CEX8{kind}",
        MODES[kind],
        "online",
        "0",
        "0",
        "14",
        "08",
        FUNCTIONS[kind],
        "cex4card",
    ]


def queue_row(adapter: int, domain: str, status: str = "online") -> list[str]:
    row = card_row(adapter)
    row[0] += f".{domain}"
    if status == "online":
        return [*row[:-1], "cex4queue"]
    return [*row[:3], status, "-", "-", *row[6:-1], "vfio_ap"]


def as_in_the_book(row: list[str]) -> list[str]:
    """Without the letter that the book's older tool did not print."""
    functions = row[8]
    return [*row[:8], functions[:7] + functions[8:], *row[9:]]


def test_the_machine_is_the_books(lab: Lab) -> None:
    """Examples 3-4 and 3-5."""
    head, *found = rows(lab, "-V")
    assert head == HEAD.split()
    expected = [row for n in range(8) for row in (card_row(n), *(queue_row(n, domain) for domain in DOMAINS))]
    assert [as_in_the_book(row) for row in found] == expected


def test_two_matrices_and_a_guest_show_in_the_status(lab: Lab) -> None:
    """Examples 3-11 and 3-19: 24 lines before and after `bastion` has the first device."""
    lab.shell(TWO_MATRICES)
    assert lab.run("cat", f"/sys/devices/vfio_ap/matrix/{FIRST}/matrix").stdout == "05.000d\n07.000d\n"
    assert_statuses(lab, dict.fromkeys(("05.000d", "07.000d", "05.0011", "07.0011"), "assigned"))

    assert "error" not in lab.run("python3", "-c", OPEN).stdout
    taken = dict.fromkeys(("05.000d", "07.000d"), "in use")
    assert_statuses(lab, taken | dict.fromkeys(("05.0011", "07.0011"), "assigned"))


def assert_statuses(lab: Lab, status: dict[str, str]) -> None:
    lines = [line.replace("in use", "in-use") for line in lab.run("lszcrypt", "-V").stdout.splitlines()[2:]]
    expected = []
    for adapter in range(8):
        expected.append(card_row(adapter))
        for domain in DOMAINS:
            word = status.get(f"{adapter:02x}.{domain}", "unassigned").replace(" ", "-")
            expected.append(queue_row(adapter, domain, word))
    assert [as_in_the_book(line.split()) for line in lines] == expected


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        ([], [name for n in range(8) for name in (f"{n:02x}", f"{n:02x}.000d", f"{n:02x}.0011")]),
        (["--accelonly"], ["01", "01.000d", "01.0011", "03", "03.000d", "03.0011"]),
        (["--ccaonly", "--cardonly"], ["00", "02", "04", "06"]),
        (["--ep11only", "--queueonly"], ["05.000d", "05.0011", "07.000d", "07.0011"]),
        (["5"], ["05", "05.000d", "05.0011"]),
        (["5.d", "07.0011"], ["05.000d", "07.0011"]),
    ],
)
def test_a_selection_shows_those_devices(lab: Lab, options: list[str], devices: list[str]) -> None:
    assert [row[0] for row in rows(lab, *options)[1:]] == devices


def test_more_verbose_is_as_verbose(lab: Lab) -> None:
    assert rows(lab, "-VV") == rows(lab, "-V")


def test_the_bus_has_its_settings(lab: Lab) -> None:
    assert lab.run("lszcrypt", "-b").stdout.splitlines() == [
        "features: APSC APXA QACT RC8A",
        "ap_domain=0xd",
        "ap_max_domain_id=0x54",
        "ap_interrupts are enabled",
        "config_time=30 (seconds)",
        "poll_thread is disabled",
        "poll_timeout=250000 (nanoseconds)",
    ]


def test_domains_are_marked_in_the_grid(lab: Lab) -> None:
    lines = lab.run("lszcrypt", "-d").stdout.splitlines()
    grid = {line.split()[0]: line.split()[1:] for line in lines[2:18]}
    marked = [int(row, 16) + n for row, cells in grid.items() for n, cell in enumerate(cells) if cell == "B"]
    assert marked == [13, 17]
    assert sum(cell == "." for cells in grid.values() for cell in cells) == 254


@pytest.mark.parametrize(
    ("device", "capabilities"),
    [
        ("0", ["RSA 4K Clear Key", "CCA Secure Key (full function set)", "Long RNG"]),
        ("0x1", ["RSA 4K Clear Key"]),
        ("0x5", ["EP11 Secure Key"]),
    ],
)
def test_a_card_has_the_capabilities_of_its_mode(lab: Lab, device: str, capabilities: list[str]) -> None:
    head, *lines = lab.run("lszcrypt", "-c", device).stdout.splitlines()
    assert head == f"card{int(device, 0):02x} provides capability for:"
    assert lines == [*capabilities, "AP bus max message size limit 12 Kb"]


def test_a_queue_tells_its_master_keys(lab: Lab) -> None:
    told = lab.run("lszcrypt", "-c", "05.000d").stdout
    assert "0x8b991263e3a8f4e4be0d5ec8f0a4df9e" in told


def test_cards_have_serial_numbers_where_they_are_coprocessors(lab: Lab) -> None:
    head, *found = rows(lab, "-s")
    assert head[-1] == "SERIALNR"
    assert {row[0]: row[-1] for row in found} == {
        "00": "93AABEET",
        "02": "93AABFBT",
        "04": "93AABF7T",
        "05": "93AAD1AT",
        "06": "93AABF1T",
        "07": "93AAD1BT",
    }


@pytest.mark.parametrize("device", ["9", "5.33"])
def test_what_is_not_there_is_said_so(lab: Lab, device: str) -> None:
    result = lab.run("lszcrypt", device, check=False)
    assert result.returncode == 1
    assert "does not exist" in result.stderr
