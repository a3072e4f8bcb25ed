# SPDX-License-Identifier: Apache-2.0
"""Masks that something other than vfioapd sets when the host boots."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from vfioapd.domain.mask import ALL_HOST, HostMasks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vfioapd.domain.mask import Mask


class MaskSetter(StrEnum):
    """Who sets them; each is mended in another way."""

    COMMAND_LINE = "kernel command line"
    MODPROBE = "module options"
    CHZDEV = "chzdev"
    UDEV_RULE = "udev rule"


@dataclass(frozen=True, slots=True)
class BootMasks:
    """What one place sets. A mask that is None is left as it was; ``faults`` tell of values that no kernel
    takes."""

    setter: MaskSetter
    place: str  # the file that says so
    apmask: Mask | None = None
    aqmask: Mask | None = None
    faults: tuple[str, ...] = ()

    def over(self, before: HostMasks) -> HostMasks:
        """The masks after this place has set its own."""
        return HostMasks(
            before.apmask if self.apmask is None else self.apmask,
            before.aqmask if self.aqmask is None else self.aqmask,
        )


def masks_after(places: Iterable[BootMasks]) -> HostMasks:
    """The masks once all of these have been carried out, in their order."""
    masks = ALL_HOST
    for one in places:
        masks = one.over(masks)
    return masks
