# SPDX-License-Identifier: Apache-2.0
"""Conformance cases O, H, K and B of the kernel reference: overrides, HMC changes, guests, boot."""

from __future__ import annotations

import threading

import pytest
from emulated import (
    ALL,
    BUS,
    M1,
    M2,
    OLD,
    TYPE,
    U1,
    U2,
    F,
    booted,
    driver_of,
    errno_of,
    host,
    queues_with,
    record,
    start,
)

from vfioapd.emulator.hostfile import Card
from vfioapd.emulator.kernel import Kernel

OVERRIDE = f"{BUS}/devices/05.0004/driver_override"


def overridden() -> Kernel:
    """O3: 05.0004 has the override vfio_ap and is still with the host."""
    made = start("A", "7.3")
    made.sysfs.write(OVERRIDE, "vfio_ap\n")
    return made


def test_o1_o3_an_override_is_kept_and_does_not_rebind() -> None:
    made = start("A", "7.3")
    assert made.sysfs.read(OVERRIDE) == "\n"
    made.sysfs.write(OVERRIDE, "vfio_ap\n")
    assert made.sysfs.read(OVERRIDE) == "vfio_ap\n"
    assert driver_of(made, "05.0004") == "cex4queue"


def test_o2_masks_and_overrides_exclude_each_other() -> None:
    assert errno_of(lambda: start("B", "7.3").sysfs.write(OVERRIDE, "vfio_ap\n")) == "EINVAL"


@pytest.mark.parametrize("text", ["0xffff\n", "+5\n", "junk"])
@pytest.mark.parametrize("mask", ["apmask", "aqmask"])
def test_o4_no_mask_is_taken_while_a_queue_has_an_override(mask: str, text: str) -> None:
    made = overridden()
    assert errno_of(lambda: made.sysfs.write(f"{BUS}/{mask}", text)) == "EINVAL"
    assert made.sysfs.read(f"{BUS}/{mask}") == f"0x{F}\n"
    made.sysfs.write(OVERRIDE, "\n")
    made.sysfs.write(f"{BUS}/{mask}", "+5\n")


def test_o5_to_o8_only_the_bound_overridden_queue_is_available() -> None:
    made = overridden()
    made.sysfs.write(f"{TYPE}/create", U1)
    made.sysfs.write(f"{M1}/assign_domain", "4")
    assign = f"{M1}/assign_adapter"
    assert errno_of(lambda: made.sysfs.write(assign, "5")) == "EADDRNOTAVAIL"
    made.sysfs.write(f"{BUS}/drivers/cex4queue/unbind", "05.0004")
    assert errno_of(lambda: made.sysfs.write(assign, "5")) == "EADDRNOTAVAIL"
    made.sysfs.write(f"{BUS}/drivers/vfio_ap/bind", "05.0004")
    made.sysfs.write(assign, "5")
    assert made.sysfs.read(f"{M1}/guest_matrix") == "05.0004\n"
    assert errno_of(lambda: made.sysfs.write(f"{M1}/assign_domain", "0x10")) == "EADDRNOTAVAIL"


def test_o9_a_cleared_override_leaves_the_queue_but_not_the_right() -> None:
    made = overridden()
    made.sysfs.write(f"{TYPE}/create", U1)
    made.sysfs.write(f"{BUS}/drivers/cex4queue/unbind", "05.0004")
    made.sysfs.write(f"{BUS}/drivers/vfio_ap/bind", "05.0004")
    made.sysfs.write(f"{M1}/assign_domain", "4")
    made.sysfs.write(f"{M1}/assign_adapter", "5")
    made.sysfs.write(OVERRIDE, "\n")
    assert driver_of(made, "05.0004") == "vfio_ap"
    made.sysfs.write(f"{M1}/assign_control_domain", "4")
    for what, value in (("adapter", "6"), ("domain", "0x10")):
        write = f"{M1}/assign_{what}"
        assert errno_of(lambda write=write, value=value: made.sysfs.write(write, value)) == "EADDRNOTAVAIL"  # type: ignore[misc]


def test_o10_boot_masks_do_not_bar_overrides() -> None:
    made = booted("7.3", apmask="0xf9" + "f" * 62)
    made.sysfs.write(OVERRIDE, "vfio_ap")
    made.sysfs.write(OVERRIDE, "\n")
    made.sysfs.write(f"{BUS}/apmask", "-7")
    assert errno_of(lambda: made.sysfs.write(OVERRIDE, "vfio_ap")) == "EINVAL"


@pytest.mark.parametrize("kernel", OLD)
def test_older_kernels_have_no_override(kernel: str) -> None:
    assert errno_of(lambda: start("A", kernel).sysfs.read(OVERRIDE)) == "ENOENT"


# --- H: the host's configuration changes


def test_h1_h2_an_adapter_goes_and_comes(generation: str) -> None:
    made = start("D", generation)
    events = record(made)
    plugged = made.machine.adapters.pop(5)
    made.scan()
    assert made.sysfs.read(f"{M1}/matrix") == "05.0004\n05.0010\n"
    assert made.sysfs.read(f"{M1}/guest_matrix") == ".0004\n.0010\n"
    moves = [line for line in events.lines() if "BINDINGS" not in line]
    queues = [f"{what} 05.{d}" for d in ("0004", "0010", "0054") for what in ("unbind", "remove")]
    assert moves == [*queues, "unbind card05", "remove card05"]
    made.machine.adapters[5] = plugged
    made.scan()
    assert made.sysfs.read(f"{M1}/guest_matrix") == "05.0004\n05.0010\n"


def test_h3_a_domain_goes_everywhere(generation: str) -> None:
    made = start("D", generation)
    made.machine.usage &= ~(1 << 0x10)
    made.scan()
    assert not [name for name in made.sysfs.names(f"{BUS}/devices") if name.endswith(".0010")]
    assert made.sysfs.read(f"{M1}/guest_matrix") == "05.0004\n"


def test_h4_a_deconfigured_card_stays_with_its_guest(generation: str) -> None:
    made = start("D", generation)
    events = record(made)
    made.play({"action": "deconfigure", "adapter": 5})
    assert made.sysfs.read("devices/ap/card05/config") == "0\n"
    assert made.sysfs.read(f"{BUS}/devices/05.0004/config") == "0\n"
    lines = [line for line in events.lines() if "CONFIG=0" in line]
    assert lines[0].startswith("change card05 CONFIG=0")
    assert len(lines) == 4
    assert made.sysfs.read(f"{M1}/guest_matrix") == "05.0004\n05.0010\n"


def test_an_unbound_queue_of_a_deconfigured_card_bars_no_neighbour(generation: str) -> None:
    """Linux 6.1 lets no queue pass whose last reset failed, but resets only the queue that leaves."""
    made = start("D", generation)
    made.play({"action": "deconfigure", "adapter": 5})
    made.sysfs.write(f"{BUS}/drivers/vfio_ap/unbind", "05.0010")
    assert made.sysfs.read(f"{M1}/guest_matrix") == ".0004\n.0010\n"
    made.sysfs.write(f"{BUS}/drivers/vfio_ap/bind", "05.0010")
    assert made.sysfs.read(f"{M1}/guest_matrix") == "05.0004\n05.0010\n"


def test_h5_a_deconfigured_card_cannot_go_online(generation: str) -> None:
    made = start("A", generation)
    made.play({"action": "deconfigure", "adapter": 5})
    assert errno_of(lambda: made.sysfs.write("devices/ap/card05/online", "1")) == "ENODEV"
    assert made.sysfs.read("devices/ap/card05/online") == "0\n"


def test_h6_h7_a_card_takes_its_queues_offline(generation: str) -> None:
    made = start("A", generation)
    events = record(made)
    made.sysfs.write("devices/ap/card05/online", "0")
    names = ["card05", "05.0004", "05.0010", "05.0054"]
    assert [line.split(" DRIVER")[0] for line in events.lines()] == [f"change {n} ONLINE=0" for n in names]
    assert errno_of(lambda: made.sysfs.write(f"{BUS}/devices/05.0004/online", "1")) == "EINVAL"


def test_a_card_is_configured_by_its_file_where_sclp_allows(generation: str) -> None:
    made = start("A", generation)
    made.sysfs.write("devices/ap/card05/config", "0")
    assert made.sysfs.read("devices/ap/card05/config") == "0\n"
    assert made.sysfs.read(f"{BUS}/devices/05.0004/config") == "1\n"  # until the next scan
    made.scan()
    assert made.sysfs.read(f"{BUS}/devices/05.0004/config") == "0\n"
    without = Kernel(host(generation, sclp=False))
    assert errno_of(lambda: without.sysfs.write("devices/ap/card05/config", "0")) == "ENOTSUP"


def test_a_standby_card_is_there_but_not_configured(generation: str) -> None:
    made = Kernel(host(generation, cards=(Card(5, "CEX8C", 0x93000000, standby=True),)))
    assert made.sysfs.read("devices/ap/card05/config") == "0\n"
    assert made.sysfs.read(f"{BUS}/bindings") == "3/3 (complete)\n"


# --- K: guests


def test_k1_k4_in_use_while_a_guest_has_it(generation: str) -> None:
    made = start("D", generation)
    made.guest_open(U1, "guest")
    status = [made.sysfs.read(f"{BUS}/devices/05.{d}/status") for d in ("0004", "0010", "0054")]
    assert status == ["in use\n", "in use\n", "unassigned\n"]
    made.guest_close("guest")
    assert made.sysfs.read(f"{BUS}/devices/05.0004/status") == "assigned\n"
    assert made.sysfs.read(f"{M1}/guest_matrix") == "05.0004\n05.0010\n"


def test_k2_one_vfio_ap_device_per_guest(generation: str) -> None:
    made = start("D", generation)
    made.guest_open(U1, "guest")
    assert errno_of(lambda: made.guest_open(U2, "guest")) == "EPERM"
    assert made.guests() == {"guest": U1}


def test_k3_one_guest_per_mdev(generation: str) -> None:
    made = start("D", generation)
    made.guest_open(U1, "guest")
    assert errno_of(lambda: made.guest_open(U1, "other")) == "EBUSY"
    made.guest_close("guest")
    made.guest_open(U1, "other")


def test_vfio_ap_cannot_be_unloaded_under_a_guest(generation: str) -> None:
    made = start("D", generation)
    made.guest_open(U1, "guest")
    assert errno_of(lambda: made.unload_module("vfio_ap")) == "EBUSY"
    made.guest_close("guest")
    made.unload_module("vfio_ap")
    assert errno_of(lambda: made.sysfs.names("devices/vfio_ap")) == "ENOENT"


NOTICES = {"6.1": [], "6.12": ["request"], "7.3": ["config-changed", "request"]}


@pytest.mark.parametrize("kernel", ALL)
def test_a_removal_asks_the_guest_as_its_kernel_does(kernel: str) -> None:
    made = start("D", kernel)
    made.guest_open(U1, "guest")
    told: list[str] = []
    made.watch_guests(lambda _guest, notice: told.append(notice.value))
    with made.lock:
        vfio_ap = made.state.modules.vfio_ap
        assert vfio_ap is not None
        assert vfio_ap.remove(vfio_ap.mdevs[U1], "1")
    assert told == NOTICES[kernel]


# --- B: boot


@pytest.mark.parametrize(
    ("boot", "apmask", "aqmask"),
    [
        ({"apmask": "junk"}, "0" * 64, F),
        ({"apmask": "+5"}, "04" + "0" * 62, F),
        ({"apmask": "0xffff", "aqmask": "0x40"}, "ffff" + "0" * 60, "40" + "0" * 62),
    ],
    ids=["B1", "B2", "B3"],
)
@pytest.mark.parametrize("kernel", ALL)
def test_boot_masks(kernel: str, boot: dict[str, str], apmask: str, aqmask: str) -> None:
    made = booted(kernel, **boot)
    assert made.sysfs.read(f"{BUS}/apmask") == f"0x{apmask}\n"
    assert made.sysfs.read(f"{BUS}/aqmask") == f"0x{aqmask}\n"
    assert made.sysfs.read("module/ap/parameters/apmask") == boot["apmask"] + "\n"


def test_the_default_domain_is_the_lowest_that_the_host_may_use(generation: str) -> None:
    assert start("A", generation).sysfs.read(f"{BUS}/ap_domain") == "4\n"
    assert booted(generation, aqmask="0x00008").sysfs.read(f"{BUS}/ap_domain") == "16\n"
    assert booted(generation, apmask="0").sysfs.read(f"{BUS}/ap_domain") == "-1\n"
    assert booted(generation, domain=0x54).sysfs.read(f"{BUS}/ap_domain") == "84\n"


def test_a_reboot_forgets_the_kernel_and_keeps_the_hardware(generation: str) -> None:
    made = start("D", generation)
    made.guest_open(U1, "guest")
    made.play({"action": "remove-adapter", "adapter": 6})
    made.reboot()
    assert made.guests() == {}
    assert made.sysfs.read(f"{BUS}/apmask") == f"0x{F}\n"
    assert made.sysfs.read(f"{TYPE}/available_instances") == "65536\n"
    assert queues_with(made, "cex4queue") == ["05.0004", "05.0010", "05.0054"]
    assert errno_of(lambda: made.sysfs.read(f"{M2}/matrix")) == "ENOENT"


def test_without_qci_nothing_reaches_a_guest(generation: str) -> None:
    made = Kernel(host(generation, qci=False, usage_domains=(4,), control_domains=()))
    made.sysfs.write(f"{BUS}/apmask", "-5")
    made.sysfs.write(f"{TYPE}/create", U1)
    made.sysfs.write(f"{M1}/assign_adapter", "5")
    made.sysfs.write(f"{M1}/assign_domain", "4")
    assert made.sysfs.read(f"{M1}/matrix") == "05.0004\n"
    assert made.sysfs.read(f"{M1}/guest_matrix") == ""
    assert made.sysfs.read(f"{BUS}/ap_adapter_mask") == "not supported\n"
    assert made.sysfs.read(f"{BUS}/ap_max_domain_id") == "15\n"


def test_without_ap_instructions_there_is_no_ap_bus(generation: str) -> None:
    made = Kernel(host(generation, ap=False))
    assert errno_of(lambda: made.sysfs.names(BUS)) == "ENOENT"
    assert errno_of(lambda: made.load_module("vfio_ap")) == "ENODEV"


def test_a_driver_taken_from_an_mdev_in_use_waits_for_the_guest(generation: str) -> None:
    made = start("D", generation)
    made.guest_open(U1, "guest")
    unbind = "bus/mdev/drivers/vfio_ap_mdev/unbind"
    writer = threading.Thread(target=made.sysfs.write, args=(unbind, U1), daemon=True)
    writer.start()
    while not made.sleepers:
        writer.join(0.001)
    assert errno_of(lambda: made.sysfs.read(f"{M1}/matrix")) == "ENOENT"
    made.guest_close("guest")
    writer.join(5)
    assert made.sysfs.names(M1) == ["mdev_type", "remove", "subsystem", "uevent"]
    assert made.sysfs.read(f"{BUS}/devices/05.0004/status") == "unassigned\n"


def test_a_machine_that_opens_two_mdevs_is_refused_the_second(generation: str) -> None:
    made = start("D", generation)
    guests = made.state.guests
    guests.open_device(guests.open_group("machine", U1))
    second = guests.open_group("machine", U2)
    assert errno_of(lambda: guests.open_device(second)) == "EPERM"
    assert errno_of(lambda: made.guest_open(U2, "other")) == "EBUSY"
    made.guest_close("machine")
    made.guest_open(U2, "other")


def test_rmmod_leaves_the_modules_below(generation: str) -> None:
    made = start("A", generation)
    made.unload_module("vfio_ap", with_unused=False)
    assert made.sysfs.names("bus/mdev/drivers") == []
    events = record(made)
    made.load_module("vfio_ap")
    assert "add mdev" not in events.lines()
    made.unload_module("vfio_ap")
    assert errno_of(lambda: made.sysfs.names("bus/mdev")) == "ENOENT"
