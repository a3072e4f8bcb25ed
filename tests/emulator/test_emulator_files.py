# SPDX-License-Identifier: Apache-2.0
"""The surface: which files are there when, with which mode bits, and what refused accesses say."""

from __future__ import annotations

import threading

import pytest
from emulated import ALL, BUS, M1, MATRIX, TYPE, U1, errno_of, host, start

from vfioapd.emulator.faces import InProcess
from vfioapd.emulator.hostfile import Card, load_host_file
from vfioapd.emulator.kernel import Kernel
from vfioapd.emulator.tree import File

QUEUE = {
    "chkstop": "0444",
    "config": "0444",
    "interrupt": "0444",
    "pendingq_count": "0444",
    "request_count": "0644",
    "requestq_count": "0444",
    "reset": "0644",
    "subsystem": "0777",
    "uevent": "0644",
}
ZCRYPT = {"driver": "0777", "load": "0444", "online": "0644"}
BY_KERNEL = {
    "6.1": {},
    "6.12": {"ap_functions": "0444"},
    "7.3": {"ap_functions": "0444", "driver_override": "0644"},
}


def modes(kernel: Kernel, directory: str) -> dict[str, str]:
    """Mode of each file and link in a directory."""
    entries = InProcess(kernel).entries(directory)
    return {str(entry["name"]): str(entry["mode"]) for entry in entries if entry["type"] != "dir"}


@pytest.mark.parametrize("kernel", ALL)
def test_a_queue_has_the_files_of_its_driver_and_mode(kernel: str) -> None:
    made = start("A", kernel)
    cca, accelerator = f"{BUS}/devices/05.0004", f"{BUS}/devices/06.0004"
    assert modes(made, cca) == QUEUE | ZCRYPT | BY_KERNEL[kernel] | {"mkvps": "0444"}
    assert modes(made, accelerator) == QUEUE | ZCRYPT | BY_KERNEL[kernel]
    made.sysfs.write(f"{BUS}/apmask", "-5")
    assert modes(made, cca) == QUEUE | BY_KERNEL[kernel] | {"driver": "0777", "status": "0444"}
    made.sysfs.write(f"{BUS}/drivers/vfio_ap/unbind", "05.0004")
    assert modes(made, cca) == QUEUE | BY_KERNEL[kernel]


def test_a_card_has_the_files_of_its_mode(generation: str) -> None:
    cards = (Card(1, "CEX8C", 0x93000000), Card(2, "CEX8A", 0x6B000000), Card(3, "CEX8P", 0x07000000))
    made = Kernel(host(generation, cards=cards))
    common = {"type", "online", "load"}
    own = [{"serialnr"}, set(), {"serialnr", "API_ordinalnr", "FW_version", "op_modes"}]
    names = [set(made.sysfs.names(f"devices/ap/card0{n}")) for n in (1, 2, 3)]
    assert [found & {"serialnr", "API_ordinalnr", "FW_version", "op_modes"} for found in names] == own
    assert all(common <= found for found in names)
    made.sysfs.write(f"{BUS}/drivers/cex4card/unbind", "card01")
    assert not common & set(made.sysfs.names("devices/ap/card01"))


def test_links_lead_where_they_say(generation: str) -> None:
    made = start("C", generation)
    assert made.sysfs.readlink(f"{BUS}/devices/05.0004") == "../../../devices/ap/card05/05.0004"
    assert made.sysfs.readlink("class/mdev_bus/matrix") == "../../devices/vfio_ap/matrix"
    assert made.sysfs.readlink(f"{M1}/mdev_type") == "../mdev_supported_types/vfio_ap-passthrough"
    assert made.sysfs.names(f"{M1}/subsystem/devices/{U1}/iommu_group/devices") == [U1]
    assert made.sysfs.read(f"class/mdev_bus/matrix/{U1}/uevent") == "DRIVER=vfio_ap_mdev\n"


def test_every_listed_name_can_be_looked_up(generation: str) -> None:
    made = start("D", generation)
    todo, seen = [""], 0
    while todo:
        directory = todo.pop()
        for name, kind in made.entries(directory):
            path = f"{directory}/{name}".strip("/")
            node = made.lookup(path)
            assert node.kind is kind
            seen += 1
            if not isinstance(node, File) and kind.value == "dir":
                todo.append(path)
            elif kind.value == "link":
                # Modules that are not emulated and the vfio classes are outside this tree.
                assert name in ("module", "subsystem") or made.tree.walk(path)
    assert seen > 200


def test_every_readable_file_can_be_read_as_its_mode_says(generation: str) -> None:
    made = start("D", generation)
    for directory in (
        BUS,
        "devices/ap/card05",
        f"{BUS}/devices/05.0004",
        f"{BUS}/devices/05.0054",
        M1,
        MATRIX,
        TYPE,
    ):
        for name, mode in modes(made, directory).items():
            path = f"{directory}/{name}"
            if mode in ("0444", "0644"):
                assert made.sysfs.read(path) is not None
                continue
            if mode == "0200":
                assert errno_of(lambda path=path: made.sysfs.read(path)) == "EACCES"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (f"{BUS}/nothing", "ENOENT"),
        (f"{BUS}/apmask/below", "ENOTDIR"),
        (BUS, "EISDIR"),
        ("class/zcrypt/create", "EIO"),
        (f"{BUS}/drivers_probe", "EACCES"),
    ],
)
def test_reads_that_are_refused(generation: str, path: str, error: str) -> None:
    assert errno_of(lambda: start("A", generation).sysfs.read(path)) == error


def test_an_open_file_of_a_removed_device_gives_enodev(generation: str) -> None:
    made = start("C", generation)
    path = f"{M1}/matrix"
    opened = made.open_file(path, read=True, write=False)
    made.sysfs.write(f"{M1}/remove", "1")
    assert errno_of(lambda: made.read_file(path, opened)) == "ENODEV"
    made.sysfs.write(f"{TYPE}/create", U1)
    assert errno_of(lambda: made.read_file(path, opened)) == "ENODEV"


def test_a_write_is_cut_at_a_page_and_an_empty_one_goes_nowhere(generation: str) -> None:
    made = start("A", generation)
    assert made.sysfs.write_bytes(f"{BUS}/scans", b"1" * 5000) == 4096
    scans = made.sysfs.read(f"{BUS}/scans")
    assert made.sysfs.write_bytes(f"{BUS}/scans", b"") == 0
    assert made.sysfs.read(f"{BUS}/scans") == scans


def test_writes_are_counted(generation: str) -> None:
    made = start("A", generation)
    before = made.write_count
    made.sysfs.write(f"{BUS}/apmask", "-5")
    assert errno_of(lambda: made.sysfs.write(f"{BUS}/apmask", "no")) == "EINVAL"
    assert made.write_count == before + 2


def test_zcrypt_nodes_have_masks_of_their_own(generation: str) -> None:
    made = start("A", generation)
    made.sysfs.write("class/zcrypt/create", " mine \n")
    assert errno_of(lambda: made.sysfs.write("class/zcrypt/create", "mine")) == "EEXIST"
    made.sysfs.write("class/zcrypt/mine/apmask", "+5")
    assert made.sysfs.read("class/zcrypt/mine/apmask") == "0x04" + "0" * 62 + "\n"
    assert made.sysfs.read("class/zcrypt/mine/dev").endswith(":0\n")
    assert errno_of(lambda: made.sysfs.write("class/zcrypt/destroy", "other")) == "ENOENT"
    made.sysfs.write("class/zcrypt/destroy", "mine")
    assert made.sysfs.names("class/zcrypt") == ["create", "destroy"]


def test_a_zcrypt_nodes_name_is_cut_and_has_no_slash(generation: str) -> None:
    made = start("A", generation)
    made.sysfs.write("class/zcrypt/create", f"  {'n' * 40}\n")
    made.sysfs.write("class/zcrypt/create", "a/b")
    assert set(made.sysfs.names("class/zcrypt")) == {"create", "destroy", "n" * 31, "a!b"}
    assert errno_of(lambda: made.sysfs.write("class/zcrypt/create", "n" * 31)) == "EEXIST"
    assert errno_of(lambda: made.sysfs.write("class/zcrypt/create", "a/b")) == "EEXIST"
    assert errno_of(lambda: made.sysfs.write("class/zcrypt/destroy", "a/b")) == "ENOENT"
    made.sysfs.write("class/zcrypt/destroy", "a!b")


@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_a_queue_that_has_gone_but_was_not_scanned_has_no_functions(kernel: str) -> None:
    made = start("A", kernel)
    made.play({"action": "remove-adapter", "adapter": 5, "scan": False})
    assert made.sysfs.read(f"{BUS}/devices/05.0004/ap_functions") == "0x00000000\n"


# As lszcrypt prints them: S--D--NF-, -MC-A-NF-, -----XNF-.
REDBOOK_FUNCTIONS = {0: "0x92800000\n", 1: "0x6A800000\n", 5: "0x06800000\n"}


def test_the_redbook_host_is_the_redbook_host() -> None:
    made = Kernel(load_host_file("rdbkvm4"))
    read = made.sysfs.read
    types = [read(f"devices/ap/card{n:02x}/type").strip() for n in range(8)]
    assert types == ["CEX8C", "CEX8A", "CEX8C", "CEX8A", "CEX8C", "CEX8P", "CEX8C", "CEX8P"]
    assert read(f"{BUS}/bindings") == "16/16 (complete)\n"
    assert read("devices/ap/card00/depth") == "7\n"  # lszcrypt adds one
    assert "AES CUR: valid 0xe9a49a58cd039bed\n" in read(f"{BUS}/devices/00.000d/mkvps")
    assert "8b991263e3a8f4e4" in read(f"{BUS}/devices/05.000d/mkvps")
    for number, functions in REDBOOK_FUNCTIONS.items():
        assert read(f"devices/ap/card{number:02x}/ap_functions") == functions


def test_values_need_a_queue_that_the_host_may_use(generation: str) -> None:
    cards = (Card(5, "CEX8C", 0x93000000, serial="93AA0001"),)
    made = Kernel(host(generation, cards=cards))
    assert made.sysfs.read("devices/ap/card05/serialnr") == "93AA0001\n"
    made.sysfs.write(f"{BUS}/apmask", "-5")
    assert made.sysfs.read("devices/ap/card05/serialnr") == "\n"


def test_readers_and_a_writer_may_come_together() -> None:
    made = start("A", "7.3")
    wrong: list[str] = []

    def read_all() -> None:
        for _ in range(200):
            count = sum(made.sysfs.read(f"{BUS}/bindings") == "6/6 (complete)\n" for _ in range(2))
            if count != 2:
                wrong.append("a mask write was seen half done")

    readers = [threading.Thread(target=read_all) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(50):
        made.sysfs.write(f"{BUS}/apmask", "-5")
        made.sysfs.write(f"{BUS}/apmask", "+5")
    for reader in readers:
        reader.join()
    assert not wrong
