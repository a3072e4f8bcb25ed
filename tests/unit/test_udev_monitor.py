# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of its devices, as the daemon hears it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vfioapd.udev.monitor import LOST, Uevent, parse_uevent


def message(*words: str) -> bytes:
    return "\0".join((*words, "")).encode()


def test_a_moved_queue_is_named_as_lszcrypt_names_it() -> None:
    heard = parse_uevent(
        message(
            "bind@/devices/ap/card05/05.0011",
            "ACTION=bind",
            "DEVPATH=/devices/ap/card05/05.0011",
            "SUBSYSTEM=ap",
            "DEVTYPE=ap_queue",
            "DRIVER=vfio_ap",
            "MODE=ep11",
            "SEQNUM=4711",
        )
    )
    assert heard == Uevent("bind", "05.0011", "ap", {"DRIVER": "vfio_ap", "MODE": "ep11"})


def test_the_line_end_that_the_kernel_leaves_in_a_mask_is_cut() -> None:
    """ap_bus.c sends APMASK= with the text of the attribute, line end included."""
    heard = parse_uevent(
        message("change@/devices/ap", "ACTION=change", "DEVPATH=/devices/ap", "SUBSYSTEM=ap", "APMASK=0xfb\n")
    )
    assert heard is not None
    assert str(heard) == "change ap ap APMASK=0xfb"


def test_other_peoples_devices_are_no_news() -> None:
    assert (
        parse_uevent(message("add@/devices/a/b", "ACTION=add", "DEVPATH=/devices/a/b", "SUBSYSTEM=net"))
        is None
    )


def test_events_that_were_lost_are_news_of_the_bus() -> None:
    assert parse_uevent(LOST) == Uevent("change", "ap", "ap")


@given(st.binary(max_size=200))
def test_no_message_whatever_stops_the_daemon(junk: bytes) -> None:
    parse_uevent(junk)
    parse_uevent(b"SUBSYSTEM=ap\0" + junk)
