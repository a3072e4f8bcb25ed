# SPDX-License-Identifier: Apache-2.0
"""Conformance cases R, P and U of the kernel reference: reads, masks, in-use protection, bind and unbind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from emulated import (
    ALL,
    BUS,
    M1,
    MATRIX,
    NEW,
    OLD,
    TYPE,
    U1,
    F,
    driver_of,
    errno_of,
    queues_with,
    record,
    start,
)

if TYPE_CHECKING:
    from vfioapd.emulator.kernel import Kernel

Z = "0"

READS = [
    ("R1", ALL, "A", f"{BUS}/ap_adapter_mask", "0x06" + Z * 62 + "\n"),
    ("R2", ALL, "A", f"{BUS}/ap_usage_domain_mask", "0x08008" + Z * 16 + "8" + Z * 42 + "\n"),
    ("R3", ALL, "A", f"{BUS}/ap_control_domain_mask", "0x08008" + Z * 15 + "18" + Z * 42 + "\n"),
    ("R4", ALL, "A", f"{BUS}/bindings", "6/6 (complete)\n"),
    ("R5", NEW, "A", f"{BUS}/features", "APSC APXA QACT RC8A\n"),
    ("R6a", ALL, "A", f"{BUS}/ap_max_adapter_id", "63\n"),
    ("R6d", ALL, "A", f"{BUS}/ap_max_domain_id", "84\n"),
    ("R7t", ALL, "A", "devices/ap/card05/type", "CEX7C\n"),
    ("R7h", ALL, "A", "devices/ap/card05/hwtype", "13\n"),
    ("R7m", ALL, "A", "devices/ap/card05/modalias", "ap:t0D\n"),
    ("R8", NEW, "A", f"{MATRIX}/features", "guest_matrix hotplug ap_config\n"),
    ("R9", ALL, "A", f"{TYPE}/available_instances", "65536\n"),
    ("R10m", ALL, "C", f"{M1}/matrix", ""),
    ("R10g", ALL, "C", f"{M1}/guest_matrix", ""),
    ("R10c", ALL, "C", f"{M1}/control_domains", ""),
    ("R11", NEW, "D", f"{M1}/ap_config", "0x04" + Z * 62 + ",0x08008" + Z * 59 + ",0x" + Z * 64 + "\n"),
    ("R12a", ALL, "D", f"{BUS}/devices/05.0004/status", "assigned\n"),
    ("R12u", ALL, "D", f"{BUS}/devices/05.0054/status", "unassigned\n"),
]

REFUSED_READS = [
    ("R5", ("6.1",), "A", f"{BUS}/features", "ENOENT"),
    ("R8", ("6.1",), "A", f"{MATRIX}/features", "ENOENT"),
    ("R11", ("6.1",), "D", f"{M1}/ap_config", "ENOENT"),
    ("R14", ALL, "A", f"{TYPE}/create", "EACCES"),
]


def _each(cases: list[tuple[Any, ...]]) -> list[Any]:
    return [pytest.param(kernel, *case[2:], id=f"{case[0]}-{kernel}") for case in cases for kernel in case[1]]


@pytest.mark.parametrize(("kernel", "fixture", "path", "text"), _each(READS))
def test_reads(kernel: str, fixture: str, path: str, text: str) -> None:
    assert start(fixture, kernel).sysfs.read(path) == text


@pytest.mark.parametrize(("kernel", "fixture", "path", "error"), _each(REFUSED_READS))
def test_refused_reads(kernel: str, fixture: str, path: str, error: str) -> None:
    made = start(fixture, kernel)
    assert errno_of(lambda: made.sysfs.read(path)) == error


def test_r13_a_file_without_write_bit_is_closed_to_root_too(generation: str) -> None:
    made = start("A", generation)
    assert errno_of(lambda: made.sysfs.write(f"{BUS}/ap_adapter_mask", "0")) == "EACCES"


MASKS = [
    ("P1", ALL, "-5,-6\n", "0xf9" + "f" * 62),
    ("P3", ALL, "-0-255,+1-16\n", "0x7fff8" + Z * 59),
    ("P4", ALL, "\n", "0x" + Z * 64),
    ("P5", ALL, "0x\n", "0x" + Z * 64),
    ("P6", ALL, "0x8", "0x8" + Z * 63),
    ("P10", ALL, "-010\n", "0xff7f" + "f" * 60),
    ("P12", ALL, "-1+2\n", "0xb" + "f" * 63),
    ("P13", ALL, "-1,-2,,\n\n", "0x9" + "f" * 63),
    ("P15", OLD, "-18446744073709551616\n", "0x7" + "f" * 63),
]

REFUSED_MASKS = [
    ("P7", ALL, "0X8\n"),
    ("P8", ALL, "0x" + "f" * 65),
    ("P9", ALL, "0x8\n\n"),
    ("P11", ALL, "-08\n"),
    *(
        (f"P14 {text!r}", ALL, text)
        for text in ("-5-3\n", "-256\n", "-5-256\n", "-1-\n", "- 1\n", "-1 \n", "-+1\n")
    ),
    ("P15", ("7.3",), "-18446744073709551616\n"),
]


@pytest.mark.parametrize(("kernel", "text", "mask"), _each(MASKS))
def test_masks(kernel: str, text: str, mask: str) -> None:
    made = start("A", kernel)
    made.sysfs.write(f"{BUS}/apmask", text)
    assert made.sysfs.read(f"{BUS}/apmask") == mask + "\n"


@pytest.mark.parametrize(("kernel", "text"), _each(REFUSED_MASKS))
def test_a_refused_mask_changes_nothing(kernel: str, text: str) -> None:
    made = start("A", kernel)
    events = record(made)
    assert errno_of(lambda: made.sysfs.write(f"{BUS}/apmask", text)) == "EINVAL"
    assert made.sysfs.read(f"{BUS}/apmask") == f"0x{F}\n"
    assert events.lines() == []


def test_p1_all_queues_of_cleared_adapters_go_to_vfio_ap(generation: str) -> None:
    assert len(queues_with(start("B", generation), "vfio_ap")) == 6


def test_p2_a_cleared_domain_moves_on_every_adapter(generation: str) -> None:
    made = start("A", generation)
    made.sysfs.write(f"{BUS}/aqmask", "-4,-0x47,-0xab,-0xff\n")
    text = "0xf7fffffffffffffffeffffffffffffffffffffffffeffffffffffffffffffffe\n"
    assert made.sysfs.read(f"{BUS}/aqmask") == text
    assert queues_with(made, "vfio_ap") == ["05.0004", "06.0004"]


def test_p16_an_unchanged_mask_moves_and_says_nothing(generation: str) -> None:
    made = start("A", generation)
    events = record(made)
    made.sysfs.write(f"{BUS}/apmask", "+5\n")
    assert events.lines() == []


def test_p17_a_queue_comes_back_only_with_both_bits(generation: str) -> None:
    made = start("B", generation)
    made.sysfs.write(f"{BUS}/aqmask", "-4\n")
    made.sysfs.write(f"{BUS}/apmask", "+5,+6\n")
    assert queues_with(made, "vfio_ap") == ["05.0004", "06.0004"]
    assert len(queues_with(made, "cex4queue")) == 4


def test_p18_p19_queues_without_a_driver_wait_for_vfio_ap(generation: str) -> None:
    made = start("A", generation)
    made.unload_module("vfio_ap")
    made.sysfs.write(f"{BUS}/apmask", "-5\n")
    assert made.sysfs.read(f"{BUS}/bindings") == "3/6\n"
    events = record(made)
    made.load_module("vfio_ap")
    assert made.sysfs.read(f"{BUS}/bindings") == "6/6 (complete)\n"
    assert [line for line in events.lines() if line.startswith("bind 05")] == [
        f"bind 05.{domain} DRIVER=vfio_ap" for domain in ("0004", "0010", "0054")
    ]


def _moves(*between: str) -> list[str]:
    lines = []
    for domain in ("0004", "0010", "0054"):
        lines += [f"unbind 05.{domain}", *between, f"bind 05.{domain} DRIVER=vfio_ap"]
    return [*lines, f"change ap APMASK=0xfb{'f' * 62}\n"]


@pytest.mark.parametrize("kernel", NEW)
def test_p20_bindings_are_complete_only_after_the_next_scan(kernel: str) -> None:
    made = start("A", kernel)
    events = record(made)
    made.sysfs.write(f"{BUS}/apmask", "-5\n")
    assert events.lines() == _moves()
    events.clear()
    made.sysfs.write(f"{BUS}/scans", "1")
    made.sysfs.write(f"{BUS}/scans", "1")
    assert events.lines() == ["change ap BINDINGS=complete COMPLETECOUNT=2"]


def test_p21_the_old_kernel_says_complete_before_each_bind() -> None:
    made = start("A", "6.1")
    events = record(made)
    made.sysfs.write(f"{BUS}/apmask", "-5\n")
    lines = [line.partition(" COMPLETECOUNT")[0] for line in events.lines()]
    assert lines == _moves("change ap BINDINGS=complete")


# --- U: in-use protection, bind and unbind


@pytest.mark.parametrize("text", ["+5\n", "-7,+5\n", f"0x{F}\n"])
def test_u1_u2_an_assigned_adapter_is_protected_and_nothing_changes(generation: str, text: str) -> None:
    made = start("D", generation)
    before = made.sysfs.read(f"{BUS}/apmask")
    events = record(made)
    assert errno_of(lambda: made.sysfs.write(f"{BUS}/apmask", text)) == "EBUSY"
    assert made.sysfs.read(f"{BUS}/apmask") == before
    assert events.lines() == []


def test_u3_u4_other_adapters_are_free(generation: str) -> None:
    made = start("D", generation)
    made.sysfs.write(f"{BUS}/apmask", "+6\n")
    assert len(queues_with(made, "cex4queue")) == 3
    made.sysfs.write(f"{BUS}/apmask", "-7\n")


def test_u5_u6_an_adapter_without_domains_is_not_protected(generation: str) -> None:
    made = start("C", generation)
    made.sysfs.write(f"{M1}/assign_adapter", "5")
    made.sysfs.write(f"{BUS}/apmask", "+5\n")
    assert errno_of(lambda: made.sysfs.write(f"{M1}/assign_domain", "4")) == "EADDRNOTAVAIL"


def _half_owned(kernel: str) -> Kernel:
    made = start("A", kernel)
    made.sysfs.write(f"{BUS}/apmask", "-5\n")
    made.sysfs.write(f"{BUS}/aqmask", "-0x10\n")
    made.sysfs.write(f"{TYPE}/create", U1)
    made.sysfs.write(f"{M1}/assign_adapter", "5")
    made.sysfs.write(f"{M1}/assign_domain", "0x10")
    return made


@pytest.mark.parametrize(("mask", "text"), [("apmask", "+5\n"), ("aqmask", "+0x10\n")])
def test_u7_u8_only_before_7_3_the_other_mask_counts(generation: str, mask: str, text: str) -> None:
    made = _half_owned(generation)
    expected = "EBUSY" if generation == "7.3" else ""
    assert errno_of(lambda: made.sysfs.write(f"{BUS}/{mask}", text)) == expected
    assert driver_of(made, "05.0010") == "vfio_ap"
    assert driver_of(made, "05.0004") == ("cex4queue" if mask == "apmask" and not expected else "vfio_ap")


def test_u9_u10_u11_bind_and_unbind_obey_the_masks(generation: str) -> None:
    made = start("A", generation)
    bind, unbind = f"{BUS}/drivers/vfio_ap/bind", f"{BUS}/drivers/vfio_ap/unbind"
    assert errno_of(lambda: made.sysfs.write(bind, "05.0004")) == "EBUSY"
    assert errno_of(lambda: made.sysfs.write(unbind, "05.0004")) == "ENODEV"
    made.sysfs.write(f"{BUS}/drivers/cex4queue/unbind", "05.0004\n")
    assert errno_of(lambda: made.sysfs.write(bind, "05.0004")) == "ENODEV"
    assert driver_of(made, "05.0004") == ""


def test_u12_u13_u14_unbinding_costs_the_guest_the_adapter_until_it_is_bound_again(generation: str) -> None:
    made = start("D", generation)
    made.guest_open(U1, "guest")
    made.sysfs.write(f"{BUS}/drivers/vfio_ap/unbind", "05.0010")
    assert made.sysfs.read(f"{M1}/guest_matrix") == ".0004\n.0010\n"
    assert made.sysfs.read(f"{M1}/matrix") == "05.0004\n05.0010\n"
    assert errno_of(lambda: made.sysfs.write(f"{BUS}/drivers/cex4queue/bind", "05.0010")) == "ENODEV"
    made.sysfs.write(f"{BUS}/drivers/vfio_ap/bind", "05.0010")
    assert made.sysfs.read(f"{M1}/guest_matrix") == "05.0004\n05.0010\n"


def test_drivers_probe_knows_only_devices_of_the_bus(generation: str) -> None:
    made = start("A", generation)
    assert errno_of(lambda: made.sysfs.write(f"{BUS}/drivers_probe", "99.0004\n")) == "ENODEV"
    made.sysfs.write(f"{BUS}/drivers/cex4queue/unbind", "05.0004\n")
    made.sysfs.write(f"{BUS}/drivers_probe", "05.0004\n")
    assert driver_of(made, "05.0004") == "cex4queue"


def test_a_queue_cannot_bind_while_its_card_has_no_driver(generation: str) -> None:
    made = start("A", generation)
    made.sysfs.write(f"{BUS}/drivers/cex4queue/unbind", "05.0004")
    made.sysfs.write(f"{BUS}/drivers/cex4card/unbind", "card05")
    assert errno_of(lambda: made.sysfs.write(f"{BUS}/drivers/cex4queue/bind", "05.0004")) == "EINVAL"
