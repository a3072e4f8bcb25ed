# SPDX-License-Identifier: Apache-2.0
"""Additional zcrypt device nodes, /sys/class/zcrypt: they restrict their users and move no queue."""

import errno
from dataclasses import dataclass

from .events import Events, Keys
from .generation import Generation
from .numbers import c_string, parse_mask, refuse

MAX_NODES = 256
MAX_NAME = 31
# The kernel takes the next free number; this is the one that it would give last.
MAJOR = 384
_BLANKS = " \t\n\v\f\r"
MASKS = ("ioctlmask", "apmask", "aqmask", "admask")


@dataclass(eq=False, slots=True)
class ZcryptNode:
    name: str
    minor: int
    masks: dict[str, int]

    def event_keys(self) -> Keys:
        return ("MAJOR", f"{MAJOR}"), ("MINOR", f"{self.minor}"), ("DEVNAME", self.name.replace("!", "/"))


class ZcryptNodes:
    def __init__(self, generation: Generation, events: Events) -> None:
        self._generation = generation
        self._events = events
        self.by_name: dict[str, ZcryptNode] = {}

    def create(self, text: str) -> None:
        """EEXIST, ENOSPC after 256 nodes."""
        name = _node_name(text)
        if name in self.by_name:
            raise refuse(errno.EEXIST)  # the driver's own check, before it looks for a free number
        used = {node.minor for node in self.by_name.values()}
        minor = next((number for number in range(MAX_NODES) if number not in used), None)
        if minor is None:
            raise refuse(errno.ENOSPC)
        # The driver core puts ! for / and refuses the name only then, if it is taken.
        name = name.replace("/", "!") or f"zcrypt_{minor}"
        if name in self.by_name:
            raise refuse(errno.EEXIST)
        node = self.by_name[name] = ZcryptNode(name, minor, dict.fromkeys(MASKS, 0))
        self._emit("add", node)

    def destroy(self, text: str) -> None:
        # A name with a slash is none that a device can have, so its maker cannot destroy it by that name.
        node = self.by_name.pop(_node_name(text), None)
        if node is None:
            raise refuse(errno.ENOENT)
        self._emit("remove", node)

    def _emit(self, action: str, node: ZcryptNode) -> None:
        self._events.emit(action, f"/devices/virtual/zcrypt/{node.name}", "zcrypt", node.event_keys())

    def write_mask(self, node: ZcryptNode, which: str, text: str) -> None:
        wraps = self._generation.mask_numbers_wrap
        node.masks[which] = parse_mask(text, node.masks[which], wraps=wraps)


def _node_name(text: str) -> str:
    """Leading blanks go, then all beyond 31 characters, then trailing blanks: a long name is cut."""
    return c_string(text).lstrip(_BLANKS)[:MAX_NAME].rstrip(_BLANKS)
