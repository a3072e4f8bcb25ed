# SPDX-License-Identifier: Apache-2.0
"""Where the host no longer is as desired, in words. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.domain.problems import VfioApError
from vfioapd.plan import wishes
from vfioapd.plan.planner import plan
from vfioapd.plan.steps import Assign, Bind, CreateMdev, SetMatrix, SetOverride, Unassign, Unbind, WriteMask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vfioapd.domain.definition import Definition
    from vfioapd.plan.steps import Step
    from vfioapd.plan.wish import State

DEVICE_GONE = "its device is gone"


def find_drift(state: State) -> dict[str, str]:
    """The matrices that are not as they should be, with what is wrong with each.

    Stopped matrices cannot drift. All at once first, since mostly nothing is wrong.
    """
    watched = [
        one for one in state.desired.definitions if state.is_active(one) or one in wishes.should_run(state)
    ]
    if not watched or not _missing_steps(state, watched):
        return {}
    found = {
        one.name: [step for step in _missing_steps(state, [one]) if _concerns(step, one)] for one in watched
    }
    return {name: explain(steps) for name, steps in found.items() if steps}


def _concerns(step: Step, definition: Definition) -> bool:
    """A queue that is to move belongs to one matrix; to mend one of them, all of them are planned."""
    return not isinstance(step, Bind | Unbind | SetOverride) or step.queue in definition.matrix


def find_guest_drift(state: State) -> dict[str, str]:
    """The matrices that their guest does not have, with the reason; empty without libvirt. A guest that
    is not there may come yet, so that alone is no drift."""
    wanted = (one for one in wishes.should_run(state) if one.guest is not None)
    found = ((one.name, _why_not_plugged(state, one)) for one in wanted)
    return {name: why for name, why in found if why}


def _why_not_plugged(state: State, definition: Definition) -> str:
    assert definition.guest is not None
    if state.snapshot.guest(definition.guest) is None:
        return _moved_to(state, definition)
    try:
        plugs = wishes.keep_guest(state, definition).target.plugs
    except VfioApError as error:
        return str(error)
    where = " and ".join(plug.where for plug in plugs)
    return f"guest {definition.guest} does not have it ({where})" if plugs else ""


def _moved_to(state: State, definition: Definition) -> str:
    """Renamed or copied while nobody listened: then another guest has the device in its document."""
    having = [guest.name for guest in state.snapshot.guests or () if definition.uuid in guest.config]
    if not having:
        return ""
    return f"there is no guest {definition.guest}, and the device is in the definition of {having[0]}"


def explain(steps: Sequence[Step]) -> str:
    """What must have happened, from the steps that would mend it."""
    kinds = {type(step) for step in steps}
    if CreateMdev in kinds:
        return DEVICE_GONE
    if kinds & {SetMatrix, Assign, Unassign}:
        return "its device holds another matrix than the one defined"
    if kinds == {Bind}:
        return "no driver has some of its queues"
    if kinds & {WriteMask, SetOverride, Bind}:
        return "queues of it went back to the host"
    return "it is not as defined"


def _missing_steps(state: State, definitions: Sequence[Definition]) -> tuple[Step, ...]:
    try:
        return plan(state.snapshot, wishes.restore(state, definitions).target).steps
    except VfioApError:  # it cannot be made at all: that is said where it was tried, not here
        return ()
