# SPDX-License-Identifier: Apache-2.0
"""Snapshot and definitions as the rows that the screens show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vfioapd.daemon.outcomes import difference
from vfioapd.domain.snapshot import VFIO_DRIVER
from vfioapd.rpc.types import MatrixRow, QueueRow

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.definition import Definition, Desired
    from vfioapd.domain.matrix import Matrix
    from vfioapd.domain.snapshot import Card, Mdev, QueueDetail, QueueState, Snapshot

FREE = "free"
HOST = "host"
NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class View:
    """Everything that rows are made from."""

    snapshot: Snapshot
    desired: Desired
    failures: Mapping[str, str]  # matrix name: why it could not be made as desired

    def matrices(self) -> list[MatrixRow]:
        """Our matrices, in the file's order."""
        return [self.matrix(one) for one in self.desired.definitions]

    def foreign(self) -> list[MatrixRow]:
        """Devices and definitions that vfioapd did not make, sorted by UUID."""
        found = {one.uuid: one.matrix for one in self.snapshot.foreign_definitions}
        found |= {one.uuid: one.matrix for one in self.snapshot.mdevs if not self.desired.by_uuid(one.uuid)}
        return [self._row(uuid, matrix) for uuid, matrix in sorted(found.items())]

    def matrix(self, definition: Definition) -> MatrixRow:
        """One of our matrices."""
        mdev = self.snapshot.mdev(definition.uuid)
        failure = self.failures.get(definition.name)
        row = self._row(definition.uuid, definition.matrix)
        return replace(
            row,
            name=definition.name,
            start=definition.start.value,
            require=definition.require.value,
            state="failed" if failure and mdev is None else row.state,
            guest=definition.guest,
            problem=failure or difference(definition, mdev),
        )

    def queues(self, details: Mapping[Apqn, QueueDetail]) -> list[QueueRow]:
        """Every queue of the host."""
        cards = {card.adapter: card for card in self.snapshot.cards}
        owners = self._owners()
        return [
            self._queue(state, cards.get(state.queue.adapter), details.get(state.queue), owners)
            for state in self.snapshot.queues
        ]

    def owners(self) -> list[str]:
        """Who has each queue, one entry a queue."""
        holders = self._owners()
        return [_owner(state, holders) for state in self.snapshot.queues]

    def _row(self, uuid: UUID, matrix: Matrix) -> MatrixRow:
        mdev = self.snapshot.mdev(uuid)
        user = self.snapshot.user_of(uuid)
        return MatrixRow(
            name="",
            uuid=str(uuid),
            adapters=sorted(map(int, matrix.adapters)),
            domains=sorted(map(int, matrix.domains)),
            control_domains=sorted(map(int, matrix.control_domains)),
            queues=[str(queue) for queue in matrix.queues()],
            start="",
            require="",
            state=_state(mdev, used=user is not None),
            guest=None,
            live=user.name if user else None,
            config=sorted(guest.name for guest in self.snapshot.guests or () if uuid in guest.config),
            guest_matrix=_texts(mdev.guest_matrix) if mdev and mdev.guest_matrix is not None else None,
            problem=None,
        )

    def _owners(self) -> dict[Apqn, tuple[str, str | None]]:
        """Who holds a queue, and the running guest that has it: definitions, then devices."""
        owners: dict[Apqn, tuple[str, str | None]] = {}
        for definition in self.desired.definitions:
            owners |= dict.fromkeys(definition.matrix.queues(), (definition.name, None))
        for mdev in self.snapshot.mdevs:
            ours = self.desired.by_uuid(mdev.uuid)
            user = self.snapshot.user_of(mdev.uuid)
            owner = ours.name if ours else f"mdev {mdev.uuid}"
            owners |= dict.fromkeys(mdev.matrix.queues(), (owner, user.name if user else None))
        return owners

    def _queue(
        self,
        state: QueueState,
        card: Card | None,
        detail: QueueDetail | None,
        owners: Mapping[Apqn, tuple[str, str | None]],
    ) -> QueueRow:
        return QueueRow(
            queue=str(state.queue),
            adapter=int(state.queue.adapter),
            domain=int(state.queue.domain),
            type=card.type if card else "",
            mode=card.mode.value if card else "",
            state=_condition(detail),
            driver=state.driver,
            owner=_owner(state, owners),
            guest=owners.get(state.queue, (None, None))[1],
            keep=state.queue in self.desired.keep,
        )


def _owner(state: QueueState, holders: Mapping[Apqn, tuple[str, str | None]]) -> str:
    """A queue on the host's own driver is the host's, whatever is defined for it."""
    if state.driver not in (VFIO_DRIVER, None):
        return HOST
    unheld = NOBODY if state.driver is None else FREE
    return holders.get(state.queue, (unheld, None))[0]


def _state(mdev: Mdev | None, *, used: bool) -> str:
    if mdev is None:
        return "stopped"
    return "in-use" if used or mdev.in_use else "started"


def _condition(detail: QueueDetail | None) -> str:
    """The STATUS column by lszcrypt's rules: the first that holds (zconf/zcrypt/lszcrypt.c)."""
    if detail is None:
        return "gone"
    if not detail.configured:
        return "deconfigured"
    if detail.checkstopped:
        return "checkstopped"
    if detail.online is not None:
        return "online" if detail.online else "offline"
    return detail.status or "-"


def _texts(queues: frozenset[Apqn]) -> list[str]:
    return [str(queue) for queue in sorted(queues)]
