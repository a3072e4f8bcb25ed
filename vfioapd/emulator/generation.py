# SPDX-License-Identifier: Apache-2.0
"""What differs between the kernel generations, each difference one flag with one name.

Facts from the drivers of Linux 6.1, 6.12 and 7.3. Nothing else in this package compares versions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


class BindingsEvent(StrEnum):
    """When BINDINGS=complete is sent."""

    EVERY_PROBE = "every-probe"  # from inside each probe while all queues are bound
    REARMED = "re-armed"  # once after something was probed, at the end of a scan or driver load


class RemovalNotice(StrEnum):
    """What a guest hears when its mdev is being removed."""

    NOTHING = "nothing"
    REQUEST = "request"  # the request eventfd
    MASKS_AND_REQUEST = "masks-and-request"  # its AP masks are cleared first


@dataclass(frozen=True, slots=True)
class Generation:
    name: str
    has_features: bool = True  # /sys/bus/ap/features and that of the matrix device
    has_complete_count: bool = False  # /sys/bus/ap/bindings_complete_count
    has_queue_functions: bool = True
    has_driver_override: bool = False
    has_ap_config: bool = True
    mask_numbers_wrap: bool = True
    in_use_ignores_other_mask: bool = False
    bindings_event: BindingsEvent = BindingsEvent.REARMED
    filter_passes_unavailable: bool = True  # deconfigured or checkstopped queues stay in the guest's set
    filtered_queues_are_reset: bool = True
    removal_notice: RemovalNotice = RemovalNotice.REQUEST
    interrupts: int = 1
    config_change_event: bool = False
    vfio_dev_goes_first: bool = True  # before the wait for the last user
    depth_offset: int = 1
    functions_mask: int = 0xFFFF0000
    online_minds_checkstop: bool = True
    scan_starts_queues: bool = True
    # Which pool the rebinding after a mask change takes an unbound queue to be in: the kernel follows a
    # null driver pointer there, so this is what was seen, not what was meant.
    unbound_counts_as_default: bool = False
    strict_switches: bool = True  # poll_thread and poll_timeout by kstrto* instead of sscanf
    knows_enable: bool = False  # kstrtobool takes enable and disable
    knows_all_op_modes: bool = True
    ap_parameters: Mapping[str, int] = field(default_factory=dict)  # mode bits by name
    zcrypt_parameters: Mapping[str, int] = field(default_factory=dict)
    other_buses: tuple[str, ...] = ()


_BUSES = (
    "ccw clockevents clocksource container cpu css hid platform scm serio stp virtio workqueue".split()  # noqa: SIM905
)

LINUX_6_12 = Generation(
    name="6.12",
    ap_parameters=dict.fromkeys(
        ("apmask", "aqmask", "domain", "msgpool_min_items", "poll_thread", "useirq"), 0o440
    ),
    zcrypt_parameters={},
    other_buses=tuple(_BUSES),
)

LINUX_6_1 = replace(
    LINUX_6_12,
    name="6.1",
    has_features=False,
    has_queue_functions=False,
    has_ap_config=False,
    bindings_event=BindingsEvent.EVERY_PROBE,
    filter_passes_unavailable=False,
    filtered_queues_are_reset=False,
    removal_notice=RemovalNotice.NOTHING,
    interrupts=0,
    vfio_dev_goes_first=False,
    depth_offset=0,
    functions_mask=0xFFFFFFFF,
    online_minds_checkstop=False,
    scan_starts_queues=False,
    strict_switches=False,
    knows_all_op_modes=False,
    ap_parameters=dict.fromkeys(("apmask", "aqmask", "domain", "poll_thread", "useirq"), 0o440),
    zcrypt_parameters={"hwrng_seed": 0o440},
)

LINUX_7_3 = replace(
    LINUX_6_12,
    name="7.3",
    has_complete_count=True,
    has_driver_override=True,
    mask_numbers_wrap=False,
    in_use_ignores_other_mask=True,
    removal_notice=RemovalNotice.MASKS_AND_REQUEST,
    interrupts=2,
    config_change_event=True,
    unbound_counts_as_default=True,
    knows_enable=True,
    ap_parameters={
        **dict.fromkeys(("apmask", "aqmask", "domain", "poll_thread", "useirq"), 0o444),
        "msgpool_min_items": 0o400,
    },
    zcrypt_parameters={"mempool_threshold": 0o400},
    other_buses=tuple(sorted([*_BUSES, "faux"])),
)

GENERATIONS: Mapping[str, Generation] = {g.name: g for g in (LINUX_6_1, LINUX_6_12, LINUX_7_3)}
