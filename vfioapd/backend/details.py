# SPDX-License-Identifier: Apache-2.0
"""What only the queues' own files tell, read once and kept until a uevent says that it may have changed.

Thousands of queues have thousands of files. Which of their contents can be kept is decided by what the
kernel tells: ``config`` and ``online`` change with a uevent of the queue or its card
(ap_bus.c:ap_send_config_uevent, ap_send_online_uevent), a checkstop with none, so the cards are asked for
it each time. What vfio_ap says of its queues follows from its devices (vfio_ap_ops.c:status_show).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.backend.paths import card_path, queue_path
from vfioapd.backend.readers import read_each
from vfioapd.domain.snapshot import VFIO_DRIVER, QueueDetail

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from vfioapd.backend.sysfs import Sysfs
    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.numbers import AdapterId
    from vfioapd.domain.snapshot import QueueState, Snapshot


@dataclass(frozen=True, slots=True)
class _Kept:
    driver: str | None
    configured: bool
    online: bool | None


class QueueDetails:
    """The details of one host's queues. For one thread at a time; every method blocks."""

    def __init__(self, sysfs: Sysfs, changed: Callable[[], Collection[str] | None] | None = None) -> None:
        """``changed`` tells the names of all devices that had a uevent since it was asked last, or None
        when it can have been any. Without it nothing is kept."""
        self._sysfs = sysfs
        self._changed = changed
        self._kept: dict[Apqn, _Kept] = {}

    def of(self, snapshot: Snapshot) -> dict[Apqn, QueueDetail]:
        """The details of the snapshot's queues; one that has left since is left out."""
        self._forget()
        stopped = self._checkstopped(snapshot.queues)
        self._drop(stopped)
        lacking = [state for state in snapshot.queues if not self._has(state)]
        self._kept |= {queue: kept for queue, kept in self._read(lacking) if kept is not None}
        statuses = self._statuses(snapshot)
        details = {
            state.queue: QueueDetail(
                configured=kept.configured,
                checkstopped=state.queue in stopped,
                online=kept.online,
                status=statuses.get(state.queue, "unassigned") if state.driver == VFIO_DRIVER else None,
            )
            for state in snapshot.queues
            if (kept := self._kept.get(state.queue)) is not None and kept.driver == state.driver
        }
        self._drop(
            stopped
        )  # a queue says that it is offline while it is checkstopped, and again online untold
        return details

    def _drop(self, queues: Iterable[Apqn]) -> None:
        for queue in queues:
            self._kept.pop(queue, None)

    def _forget(self) -> None:
        """Asked before anything is read: what changes during the reads is then forgotten the next time."""
        changed = self._changed() if self._changed else None
        if changed is None:
            self._kept.clear()
        elif changed:
            self._kept = {
                queue: kept
                for queue, kept in self._kept.items()
                if str(queue) not in changed and f"card{queue.adapter:02x}" not in changed
            }

    def _has(self, state: QueueState) -> bool:
        kept = self._kept.get(state.queue)
        return kept is not None and kept.driver == state.driver

    def _read(self, states: list[QueueState]) -> Iterable[tuple[Apqn, _Kept | None]]:
        queues = (state.queue for state in states)
        return zip(queues, read_each(self._read_one, states), strict=True)

    def _read_one(self, state: QueueState) -> _Kept | None:
        path = queue_path(state.queue)
        try:
            return _Kept(state.driver, self._flag(f"{path}/config"), self._online(path))
        except OSError:  # it has left
            return None

    def _online(self, path: str) -> bool | None:
        try:
            return self._flag(f"{path}/online")
        except FileNotFoundError:  # the file is the host's drivers'
            return None

    def _flag(self, path: str) -> bool:
        return self._sysfs.read(path).strip() == "1"

    def _checkstopped(self, states: Iterable[QueueState]) -> set[Apqn]:
        """A card is checkstopped as a whole; while its queues follow one by one they are asked, too."""
        by_adapter: dict[AdapterId, list[Apqn]] = {}
        for state in states:
            by_adapter.setdefault(state.queue.adapter, []).append(state.queue)
        found: set[Apqn] = set()
        for adapter, queues in by_adapter.items():
            if self._is_stopped(card_path(adapter)):
                found |= {queue for queue in queues if self._is_stopped(queue_path(queue))}
        return found

    def _is_stopped(self, path: str) -> bool:
        try:
            return self._flag(f"{path}/chkstop")
        except OSError:  # it has left
            return False

    def _statuses(self, snapshot: Snapshot) -> dict[Apqn, str]:
        """By queue that a device holds, in the kernel's words; for a device too large to be read safely
        the queues are asked."""
        found: dict[Apqn, str] = {}
        for mdev in snapshot.mdevs:
            if mdev.guest_matrix is None:
                found |= {queue: self._status(queue) for queue in mdev.matrix.queues()}
                continue
            found |= dict.fromkeys(mdev.matrix.queues(), "assigned")
            if mdev.in_use:
                found |= dict.fromkeys(mdev.guest_matrix, "in use")
        return found

    def _status(self, queue: Apqn) -> str:
        try:
            return self._sysfs.read(f"{queue_path(queue)}/status").strip()
        except OSError:  # not there, or not vfio_ap's: then nobody asks for it
            return ""
