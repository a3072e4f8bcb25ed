# SPDX-License-Identifier: Apache-2.0
"""``vfioapctl adopt``: what others made becomes ours as it is, or is named with what does not fit. Pure.

Becoming ours changes nothing but files. So whatever contradicts itself is left to its owner, what is
active is to be started by us, what is not is to be started by hand, and a guest is named only where it
has the device for good; then planning the new host.toml finds nothing to do. That is tried at the end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vfioapd.domain.definition import Definition, Start, check_name
from vfioapd.domain.problems import Refused, VfioApError
from vfioapd.plan import wishes
from vfioapd.plan.adopt_checks import bars
from vfioapd.plan.adopt_facts import Device, Facts, Finding, Proposal, Trouble, devices
from vfioapd.plan.adopt_remarks import host_remarks, is_whole, remarks
from vfioapd.plan.planner import plan
from vfioapd.plan.steps import describe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vfioapd.plan.wish import State


def propose(facts: Facts) -> Proposal:
    """What becomes ours and what does not fit. The same host gives the same names."""
    found = devices(facts)
    barred = [finding for device in found for finding in bars(facts, device)]
    stuck = {one.uuid for one in barred}
    fit = [device for device in found if device.uuid not in stuck and device.matrix is not None]
    named = list(_name(facts, fit))
    kept, obstacles = _without_steps(facts, [definition for _, definition in named])
    adopted = [(device, definition) for device, definition in named if definition in kept]
    noted = [finding for device, definition in adopted for finding in remarks(facts, device, definition)]
    about = sorted([*barred, *obstacles, *noted], key=lambda one: str(one.uuid))
    return Proposal(tuple(kept), (*about, *host_remarks(facts, kept)))


def _name(facts: Facts, found: Iterable[Device]) -> Iterator[tuple[Device, Definition]]:
    """In the order of their queues, as an admin would list them."""
    taken = {one.name for one in facts.desired.definitions}
    for device in sorted(found, key=_first_queue):
        definition = _definition(device, taken)
        taken.add(definition.name)
        yield device, definition


def _first_queue(device: Device) -> str:
    queues = device.matrix.queues() if device.matrix else ()
    return f"{queues[0]} {device.uuid}" if queues else str(device.uuid)


def _definition(device: Device, taken: set[str]) -> Definition:
    matrix = device.matrix
    assert matrix is not None
    whole = [guest.name for guest in device.guests if is_whole(device, guest)]
    wanted = [guest.name for guest in device.guests]
    wanted += [f"ap-{matrix.queues()[0]}", f"ap-{str(device.uuid)[:8]}", str(device.uuid)]
    return Definition(
        next(name for name in wanted if name not in taken and _can_name(name)),
        device.uuid,
        matrix,
        Start.AUTO if device.mdev else Start.MANUAL,
        whole[0] if whole else None,
    )


def _can_name(text: str) -> bool:
    try:
        check_name(text)
    except Refused:
        return False
    return True


def _without_steps(facts: Facts, wanted: list[Definition]) -> tuple[list[Definition], list[Finding]]:
    """Those that planning leaves alone once they are ours, and why the others are not among them."""
    state = facts.state
    if not _steps(state, wanted):
        return wanted, []
    alone = {one: _steps(state, [one]) for one in wanted}
    kept = [one for one in wanted if not alone[one]]
    if together := _steps(state, kept):
        alone |= dict.fromkeys(kept, together)
        kept = []
    return kept, [_obstacle(one, alone[one]) for one in wanted if one not in kept]


def _obstacle(definition: Definition, steps: list[str]) -> Finding:
    more = f", and {len(steps) - 1} more steps" if len(steps) > 1 else ""
    return Finding(
        Trouble.WOULD_CHANGE,
        f"mdev {definition.uuid} in host.toml would call for a change: {steps[0]}{more}",
        f"make that change first, or remove the device and use vfioapctl define {definition.name}",
        definition.uuid,
        bars=True,
    )


def _steps(state: State, wanted: list[Definition]) -> list[str]:
    """What would have to be done because these are ours: at once, or by the next apply."""
    if not wanted:
        return []
    try:
        wish = wishes.adopt(state, wanted)
        steps = plan(state.snapshot, wish.target).steps
    except VfioApError as error:
        return [str(error)]
    after = replace(state, desired=wish.desired)
    pending = _pending(state)
    return [*map(describe, steps), *(one for one in _pending(after) if one not in pending)]


def _pending(state: State) -> list[str]:
    """What apply would do to a host.toml that is in force, or why it would refuse."""
    try:
        return list(map(describe, plan(state.snapshot, wishes.apply(state, state.desired).target).steps))
    except VfioApError as error:
        return [str(error)]
