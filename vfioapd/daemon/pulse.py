# SPDX-License-Identifier: Apache-2.0
"""Whether the thread that makes changes still gets on, for systemd's watchdog.

A change may take minutes, each of its steps may not. A thread that hangs in one (a read of a kernel file
that never returns) would leave a daemon that answers questions and changes nothing; systemd starts a new
one instead, which settles what was cut short. Guests keep their queues meanwhile: those are the kernel's.
"""

from __future__ import annotations

import logging
import threading
import time

from systemd import daemon as systemd

logger = logging.getLogger(__name__)

WORKER = "changes"  # what the thread's name begins with


def tell_systemd(state: str) -> None:
    """One message of sd_notify(3). That it cannot be sent is no reason to end or to undo anything."""
    try:
        systemd.notify(state)
    except OSError as error:
        logger.warning("systemd was not told %s: %s", state.partition("\n")[0], error)


def passed_sockets() -> int:
    """How many listening sockets systemd has passed to this process (sd_listen_fds(3))."""
    return len(systemd.listen_fds(unset_environment=False))


class Pulse:
    """The last sign of life of that thread."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def beat(self) -> None:
        """Called before and after whatever may block; what other threads do is no sign."""
        if threading.current_thread().name.startswith(WORKER):
            self._last = time.monotonic()

    def age(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._last
