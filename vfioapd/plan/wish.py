# SPDX-License-Identifier: Apache-2.0
"""What a command wants, in one shape for all commands. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vfioapd.domain.definition import Definition, Desired, Start
from vfioapd.domain.queue_set import QueueSet
from vfioapd.plan.planner import Target

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vfioapd.domain.snapshot import Snapshot
    from vfioapd.plan.steps import Plug, Unplug


@dataclass(frozen=True, slots=True)
class State:
    """What a command starts from."""

    snapshot: Snapshot
    desired: Desired  # host.toml as it was applied last
    stopped: frozenset[str] = frozenset()  # matrices that an admin stopped since the host booted
    unplugged: frozenset[str] = frozenset()  # those that an admin took from their running guest
    disrupt: bool = False  # the admin has said --disrupt

    def is_active(self, definition: Definition) -> bool:
        """Whether the matrix has its device."""
        return self.snapshot.mdev(definition.uuid) is not None


@dataclass(frozen=True, slots=True)
class Wish:
    """Where a command wants the host and, where it is to last, the files."""

    target: Target
    desired: Desired
    stopped: frozenset[str]
    unplugged: frozenset[str]
    decided: bool = False  # whoever is hurt by this was meant to be: the plan's victims need no word


def wish_for(
    state: State,
    *,
    touched: Iterable[Definition] = (),
    active: Iterable[Definition] = (),
    released: Iterable[Definition] = (),
    plugs: tuple[Plug, ...] = (),
    unplugs: tuple[Unplug, ...] = (),
) -> Wish:
    """The wish for ``state.desired``: devices of ``touched`` change, those of ``active`` exist then.

    Queues of ``released`` go back to the host. Queues of a matrix that starts by itself stay away from
    it even while the matrix is stopped: they are a guest's to have, with its keys in them.
    """
    running = tuple(active)
    changed = tuple(dict.fromkeys((*touched, *running)))
    uuids = {one.uuid for one in changed}
    held = tuple(
        one
        for one in state.desired.definitions
        if one.start is Start.AUTO or one in running or (one.uuid not in uuids and state.is_active(one))
    )
    target = Target(
        touched=changed,
        active=running,
        held=held,
        keep=state.desired.keep,
        released=QueueSet.of_matrices(one.matrix for one in released),
        unplugs=unplugs,
        plugs=plugs,
        binding=state.desired.binding,
        disrupt=state.disrupt,
    )
    return Wish(target, state.desired, state.stopped, state.unplugged, decided=state.disrupt)
