# SPDX-License-Identifier: Apache-2.0
"""Conformance cases L, S and C of the kernel reference: mdevs, assignment, ap_config."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from emulated import ALL, BUS, M1, M2, MATRIX, NEW, TYPE, U1, U2, booted, errno_of, queues_with, record, start

from vfioapd.emulator.vfio_ap import MAX_INSTANCES

if TYPE_CHECKING:
    from vfioapd.emulator.kernel import Kernel


def matrix(kernel: Kernel, mdev: str = M1) -> str:
    return kernel.sysfs.read(f"{mdev}/matrix")


def guest_matrix(kernel: Kernel, mdev: str = M1) -> str:
    return kernel.sysfs.read(f"{mdev}/guest_matrix")


def assign(kernel: Kernel, what: str, value: str, mdev: str = M1) -> str:
    """Errno of a write to assign_WHAT."""
    return errno_of(lambda: kernel.sysfs.write(f"{mdev}/assign_{what}", value))


def unassign(kernel: Kernel, what: str, value: str, mdev: str = M1) -> str:
    return errno_of(lambda: kernel.sysfs.write(f"{mdev}/unassign_{what}", value))


# --- L: create and remove


def test_l1_l2_a_uuid_is_kept_in_lowercase_and_once(generation: str) -> None:
    made = start("B", generation)
    upper = "ABCDEF12-0000-4000-8000-0000000000AB"
    made.sysfs.write(f"{TYPE}/create", upper)
    assert upper.lower() in made.sysfs.names(MATRIX)
    assert made.sysfs.read(f"{TYPE}/available_instances") == "65535\n"
    assert errno_of(lambda: made.sysfs.write(f"{TYPE}/create", upper.lower() + "\n")) == "EEXIST"


@pytest.mark.parametrize("text", [U1[:35], U1 + "\n\n", "\n", U1[:8] + "0" + U1[9:], U1.replace("1", "g")])
def test_l3_l5_what_is_no_uuid_makes_nothing(generation: str, text: str) -> None:
    made = start("B", generation)
    assert errno_of(lambda: made.sysfs.write(f"{TYPE}/create", text)) == "EINVAL"
    assert made.sysfs.read(f"{TYPE}/available_instances") == "65536\n"


def test_l4_one_more_character_of_any_kind_is_taken(generation: str) -> None:
    made = start("B", generation)
    made.sysfs.write(f"{TYPE}/create", U1 + "X")
    assert U1 in made.sysfs.names(MATRIX)


def test_l6_instances_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_INSTANCES == 65536
    monkeypatch.setattr("vfioapd.emulator.vfio_ap.MAX_INSTANCES", 1)
    made = start("B", "7.3")
    made.sysfs.write(f"{TYPE}/create", U1)
    assert errno_of(lambda: made.sysfs.write(f"{TYPE}/create", U2)) == "EUSERS"


def test_l7_l8_remove_wants_a_number_other_than_0(generation: str) -> None:
    made = start("C", generation)
    made.sysfs.write(f"{M1}/remove", "0\n")
    for text in ("x\n", "-1\n", " 1\n", "18446744073709551616"):
        assert errno_of(lambda text=text: made.sysfs.write(f"{M1}/remove", text)) == "EINVAL"  # type: ignore[misc]
    assert U1 in made.sysfs.names(MATRIX)


def test_l9_removal_sets_everything_free(generation: str) -> None:
    made = start("D", generation)
    made.sysfs.write(f"{M1}/remove", "1\n")
    assert U1 not in made.sysfs.names(MATRIX)
    assert made.sysfs.read(f"{BUS}/devices/05.0004/status") == "unassigned\n"
    made.sysfs.write(f"{BUS}/apmask", "+5")
    assert len(queues_with(made, "cex4queue")) == 3


def _removing(made: Kernel) -> threading.Thread:
    """A removal of M1 that waits for the guest."""
    thread = threading.Thread(target=made.sysfs.write, args=(f"{M1}/remove", "1\n"), daemon=True)
    thread.start()
    while not made.sleepers:
        thread.join(0.001)
    return thread


def test_l10_removal_in_use_waits_for_the_guest(generation: str) -> None:
    made = start("D", generation)
    made.guest_open(U1, "guest")
    writer = _removing(made)
    left = {"iommu_group"} if generation != "6.1" else {"iommu_group", "vfio-dev"}
    assert set(made.sysfs.names(M1)) == left
    assert U1 not in made.sysfs.names("bus/mdev/devices")
    assert made.sysfs.read(f"{TYPE}/available_instances") == "65534\n"
    made.guest_close("guest")
    writer.join(5)
    assert not writer.is_alive()
    assert made.sysfs.read(f"{TYPE}/available_instances") == "65535\n"
    assert U1 not in made.sysfs.names(MATRIX)


def test_l11_l12_a_waiting_removal_holds_uuid_and_queues(generation: str) -> None:
    made = start("D", generation)
    made.guest_open(U1, "guest")
    writer = _removing(made)
    assert errno_of(lambda: made.sysfs.write(f"{TYPE}/create", U1)) == "EEXIST"
    assert assign(made, "domain", "4", M2) == ""
    assert assign(made, "adapter", "5", M2) == "EADDRINUSE"
    assert errno_of(lambda: made.sysfs.write(f"{BUS}/apmask", "+5")) == "EBUSY"
    made.guest_close("guest")
    writer.join(5)
    assert assign(made, "adapter", "5", M2) == ""


def test_attributes_of_an_mdev_are_there_when_bind_is_sent(generation: str) -> None:
    made = start("B", generation)
    events = record(made)
    made.sysfs.write(f"{TYPE}/create", U1)
    assert events.lines() == [f"add {U1}", "add 0", "add vfio0", f"bind {U1} DRIVER=vfio_ap_mdev"]
    events.clear()
    made.sysfs.write(f"{M1}/remove", "1")
    assert events.lines() == ["remove vfio0", "remove 0", f"unbind {U1}", f"remove {U1}"]


# --- S: assign and unassign


def test_s1_s2_adapter_then_domain(generation: str) -> None:
    made = start("C", generation)
    made.sysfs.write(f"{M1}/assign_adapter", "5")
    assert (matrix(made), guest_matrix(made)) == ("05.\n", "05.\n")
    made.sysfs.write(f"{M1}/assign_domain", "0x4\n")
    assert (matrix(made), guest_matrix(made)) == ("05.0004\n", "05.0004\n")


def test_s3_s4_domains_alone_and_twice(generation: str) -> None:
    made = start("C", generation)
    for value in ("4", "0x10", "4"):
        made.sysfs.write(f"{M1}/assign_domain", value)
    assert (matrix(made), guest_matrix(made)) == (".0004\n.0010\n", ".0004\n.0010\n")


NUMBERS = [
    *(("adapter", text, "EINVAL") for text in ("-1", " 5", "5 ", "5 6", "0x", "08", "\n")),
    ("adapter", "64", "ENODEV"),
    ("domain", "85", "ENODEV"),
    ("control_domain", "85", "ENODEV"),
    ("adapter", "18446744073709551616", "ERANGE"),
    ("adapter", "+5\n", ""),
]


@pytest.mark.parametrize(("what", "text", "error"), NUMBERS)
@pytest.mark.parametrize("kernel", ALL)
def test_s5_to_s8_numbers(kernel: str, what: str, text: str, error: str) -> None:
    made = start("C", kernel)
    assert assign(made, what, text) == error
    assert matrix(made) == ("" if error else "05.\n")


def test_s9_a_queue_of_the_host_is_not_available(generation: str) -> None:
    made = start("A", generation)
    made.sysfs.write(f"{TYPE}/create", U1)
    made.sysfs.write(f"{M1}/assign_domain", "4")
    assert assign(made, "adapter", "5") == "EADDRNOTAVAIL"
    assert matrix(made) == ".0004\n"


def test_s10_s11_an_adapter_that_is_not_there_goes_by_its_bit(generation: str) -> None:
    made = start("D", generation)
    assert assign(made, "adapter", "9") == "EADDRNOTAVAIL"
    made.sysfs.write(f"{BUS}/apmask", "-9")
    assert assign(made, "adapter", "9") == ""
    assert matrix(made) == "05.0004\n05.0010\n09.0004\n09.0010\n"
    assert guest_matrix(made) == "05.0004\n05.0010\n"


def test_s12_a_domain_the_host_lacks_costs_no_adapter(generation: str) -> None:
    made = start("D", generation)
    made.sysfs.write(f"{M1}/assign_domain", "0x50")
    assert "05.0050\n" in matrix(made)
    assert guest_matrix(made) == "05.0004\n05.0010\n"


def test_s13_s14_two_mdevs_share_adapters_but_no_queue(generation: str) -> None:
    made = start("D", generation)
    made.sysfs.write(f"{M2}/assign_domain", "4")
    assert assign(made, "adapter", "5", M2) == "EADDRINUSE"
    assert matrix(made, M2) == ".0004\n"
    unassign(made, "domain", "4", M2)
    made.sysfs.write(f"{M2}/assign_domain", "0x54")
    assert assign(made, "adapter", "5", M2) == ""


def test_s15_ownership_is_tested_before_sharing(generation: str) -> None:
    made = start("A", generation)
    made.sysfs.write(f"{BUS}/aqmask", "-4")
    made.sysfs.write(f"{TYPE}/create", U1)
    made.sysfs.write(f"{TYPE}/create", U2)
    assert assign(made, "adapter", "5") == assign(made, "domain", "4") == ""
    assert assign(made, "domain", "4", M2) == assign(made, "domain", "0x10", M2) == ""
    assert assign(made, "adapter", "5", M2) == "EADDRNOTAVAIL"


def test_s16_to_s19_unassign(generation: str) -> None:
    made = start("D", generation)
    assert unassign(made, "adapter", "6") == ""
    assert unassign(made, "adapter", "64") == "ENODEV"
    assert unassign(made, "adapter", "5") == ""
    assert (matrix(made), guest_matrix(made)) == (".0004\n.0010\n", ".0004\n.0010\n")
    made = start("D", generation)
    assert unassign(made, "domain", "4") == unassign(made, "domain", "0x10") == ""
    assert (matrix(made), guest_matrix(made)) == ("05.\n", "05.\n")


def test_s20_s21_control_domains_are_shared_and_unchecked(generation: str) -> None:
    made = start("D", generation)
    for mdev in (M1, M2):
        assert assign(made, "control_domain", "0x53", mdev) == ""
        assert made.sysfs.read(f"{mdev}/control_domains") == "0053\n"
    assert assign(made, "control_domain", "0x20") == ""
    assert made.sysfs.read(f"{M1}/control_domains") == "0020\n0053\n"


def _after_u12_and_s22(kernel: str) -> Kernel:
    made = start("D", kernel)
    made.guest_open(U1, "guest")
    made.sysfs.write(f"{BUS}/drivers/vfio_ap/unbind", "05.0010")
    made.sysfs.write(f"{M1}/unassign_domain", "0x10")
    return made


def test_s22_unassigning_does_not_filter_again(generation: str) -> None:
    made = _after_u12_and_s22(generation)
    assert (matrix(made), guest_matrix(made)) == ("05.0004\n", ".0004\n")


@pytest.mark.parametrize("kernel", NEW)
def test_s23_the_same_ap_config_filters_again(kernel: str) -> None:
    made = _after_u12_and_s22(kernel)
    made.sysfs.write(f"{M1}/ap_config", made.sysfs.read(f"{M1}/ap_config"))
    assert guest_matrix(made) == "05.0004\n"


def test_s24_assigning_a_domain_the_host_lacks_filters_again(generation: str) -> None:
    made = _after_u12_and_s22(generation)
    made.sysfs.write(f"{M1}/assign_domain", "0x53")
    assert guest_matrix(made) == "05.0004\n"


def test_s25_hot_plug(generation: str) -> None:
    made = start("D", generation)
    made.guest_open(U1, "guest")
    made.sysfs.write(f"{M1}/assign_domain", "0x54")
    assert "05.0054\n" in guest_matrix(made)
    assert made.sysfs.read(f"{BUS}/devices/05.0054/status") == "in use\n"


# --- C: ap_config

Z62 = "0" * 62
CONFIGS = [
    ("C1", "C", "0x04,0x08,0x08\n", "", "05.0004\n", "0004\n"),
    ("C2", "C", "0x04,0x08\n", "", "05.0004\n", ""),
    ("C3", "C", "0x04,0x08", "EINVAL", "", ""),
    ("C4a", "C", "0x04\n", "EINVAL", "", ""),
    ("C4b", "C", "\n", "EINVAL", "", ""),
    ("C5", "D", ",\n", "", "", ""),
    ("C6", "C", "04,08,08,garbage\n", "", "05.0004\n", "0004\n"),
    ("C7", "C", "0x04, 0x08,0x08\n", "EINVAL", "", ""),
    ("C8", "C", "+5,+4,+4\n", "EINVAL", "", ""),
    ("C12", "D", "0x02,0x08,0x\n", "", "06.0004\n", ""),
    (
        "C13",
        "C",
        ",".join(["0x04" + "0" * 62, "0x08" + "0" * 62, "0x" + "0" * 64]) + "\nmore",
        "",
        "05.0004\n",
        "",
    ),
]


@pytest.mark.parametrize("kernel", NEW)
@pytest.mark.parametrize(
    ("fixture", "text", "error", "queues", "control"),
    [case[1:] for case in CONFIGS],
    ids=[c[0] for c in CONFIGS],
)
def test_ap_config(kernel: str, fixture: str, text: str, error: str, queues: str, control: str) -> None:
    made = start(fixture, kernel)
    assert errno_of(lambda: made.sysfs.write(f"{M1}/ap_config", text)) == error
    assert (matrix(made), made.sysfs.read(f"{M1}/control_domains")) == (queues, control)


@pytest.mark.parametrize("kernel", NEW)
def test_c9_c10_ownership_is_tested_before_the_limits(kernel: str) -> None:
    made = start("C", kernel)
    text = "0x04" + "0" * 48 + "8,0x08,0x\n"  # adapters 5 and 200, domain 4
    assert errno_of(lambda: made.sysfs.write(f"{M1}/ap_config", text)) == "EADDRNOTAVAIL"
    made.sysfs.write(f"{BUS}/apmask", "-200")
    assert errno_of(lambda: made.sysfs.write(f"{M1}/ap_config", text)) == "ENODEV"
    assert matrix(made) == ""


@pytest.mark.parametrize("kernel", NEW)
def test_c11_a_shared_queue_leaves_the_mdev_unchanged(kernel: str) -> None:
    made = start("D", kernel)
    made.sysfs.write(f"{M2}/ap_config", "0x02,0x08,0x08\n")
    assert errno_of(lambda: made.sysfs.write(f"{M2}/ap_config", "0x04,0x08,0x\n")) == "EADDRINUSE"
    assert matrix(made, M2) == "06.0004\n"


@pytest.mark.parametrize("kernel", NEW)
def test_c13_a_long_write_returns_its_whole_length(kernel: str) -> None:
    made = start("C", kernel)
    text = ("0x" + "0" * 64 + ",") * 2 + "0x" + "0" * 64 + "\n" + "x" * 99
    assert made.sysfs.write_bytes(f"{M1}/ap_config", text.encode()) == 300


def test_a_matrix_of_more_than_511_queues_is_cut_at_one_page(generation: str) -> None:
    made = booted(generation, apmask="0", aqmask="0")
    made.sysfs.write(f"{TYPE}/create", U1)
    for number in range(30):
        made.sysfs.write(f"{M1}/assign_adapter", str(number))
        made.sysfs.write(f"{M1}/assign_domain", str(number))
    text = matrix(made)
    assert len(text) == 4095
    assert text.count("\n") == 511
