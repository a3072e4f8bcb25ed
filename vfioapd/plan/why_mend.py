# SPDX-License-Identifier: Apache-2.0
"""The command that mends a link. Commands of ours are planned first: what would be refused is not advised."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import NAMESPACE_OID, uuid5

from vfioapd.domain.definition import Definition
from vfioapd.domain.matrix import matrix_of_queues
from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.plan import wishes
from vfioapd.plan.planner import plan
from vfioapd.plan.why_link import Mend, Tool

if TYPE_CHECKING:
    from collections.abc import Callable

    from vfioapd.domain.apqn import Apqn
    from vfioapd.plan.why_link import Device, Facts
    from vfioapd.plan.wish import State, Wish

# Refusals whose hint ends with the command that removes their cause.
_ANSWERED = {
    Problem.QUEUE_TAKEN,
    Problem.UUID_TAKEN,
    Problem.GUEST_HAS_MATRIX,
    Problem.MATRIX_IN_USE,
    Problem.VFIO_AP_MISSING,
}

# What to run, and words to be added to the sentence: why that cannot be run, or whom it hurts.
Advice = tuple[Mend | None, str]


def shell(line: str) -> Mend:
    """A command line; ours only if all of it is."""
    ours = all(part.startswith("vfioapctl ") for part in line.split(" && "))
    return Mend(Tool.VFIOAPCTL if ours else Tool.SHELL, line)


def start_command(facts: Facts, device: Device) -> Advice:
    """How the device comes to be as it is defined; (None, "") when starting it would change nothing."""
    definition = device.definition
    if definition is None:
        return shell(f"mdevctl start -u {device.uuid}"), ""
    return _tried(
        facts.state, lambda state: wishes.start(state, [definition.name]), f"start {definition.name}"
    )


def attach_command(facts: Facts, name: str, guest: str) -> Advice:
    """How the guest gets the matrix, live and in its definition."""
    return _tried(
        facts.state,
        lambda state: wishes.attach(state, name, guest, wishes.Scope.BOTH),
        f"attach {name} {guest}",
    )


def define_command(facts: Facts, queue: Apqn) -> Advice:
    """How a queue that nobody holds gets a matrix of its own."""
    name = f"q{queue}"
    new = Definition(name, uuid5(NAMESPACE_OID, name), matrix_of_queues([queue]))
    return _tried(facts.state, lambda state: wishes.define(state, new), f"define {name} --queues {queue}")


def _tried(state: State, wish_of: Callable[[State], Wish], line: str) -> Advice:
    try:
        wish = wish_of(replace(state, disrupt=False))
        made = plan(state.snapshot, wish.target)
        victims = () if wish.decided else made.victims
    except VfioApError as error:
        return _from_refusal(error, line)
    if not victims:
        return (shell(f"vfioapctl {line}"), "") if made.steps or wish.desired != state.desired else (None, "")
    return shell(f"vfioapctl {line} --disrupt"), f"; beware: {'; '.join(map(str, victims))}"


def _from_refusal(error: VfioApError, line: str) -> Advice:
    """First what removes the cause, then what was to be done."""
    if error.problem not in _ANSWERED or not error.hint:
        return None, f"; {error}"
    commands = error.hint.rpartition(": ")[2].replace("; ", " && ")
    return shell(f"{commands} && vfioapctl {line}"), f"; {error}"
