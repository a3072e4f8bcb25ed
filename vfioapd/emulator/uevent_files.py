# SPDX-License-Identifier: Apache-2.0
"""Writes to `uevent` files: synthetic uevents."""

import errno
import re

from .numbers import c_string, refuse

ACTIONS = ("add", "remove", "change", "move", "online", "offline", "bind", "unbind")

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ARGUMENT = re.compile(r"([A-Za-z0-9]+)=([A-Za-z0-9]+)")


def synthetic(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Action and own keys of `ACTION [UUID [KEY=VALUE ...]]`. EINVAL for anything else."""
    words = c_string(text).removesuffix("\n").split(" ")
    if words[0] not in ACTIONS:
        raise refuse(errno.EINVAL)
    if len(words) == 1:
        return words[0], [("SYNTH_UUID", "0")]
    if not _UUID.fullmatch(words[1]):
        raise refuse(errno.EINVAL)
    keys = [("SYNTH_UUID", words[1])]
    for word in words[2:]:
        found = _ARGUMENT.fullmatch(word)
        if not found:
            raise refuse(errno.EINVAL)
        keys.append((f"SYNTH_ARG_{found.group(1)}", found.group(2)))
    return words[0], keys
