# SPDX-License-Identifier: Apache-2.0
"""``vfioapctl adopt``: the facts gathered, the proposal made, and what it comes to as it travels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.domain.problems import Problem, Unavailable
from vfioapd.plan.adopt import propose
from vfioapd.plan.adopt_facts import Facts
from vfioapd.rpc.types import AdoptedRow, Adoption, MisfitRow
from vfioapd.store.boot_masks import read_boot_masks
from vfioapd.store.definition_files import read_definition_files

if TYPE_CHECKING:
    from vfioapd.daemon.places import Places
    from vfioapd.domain.definition import Definition
    from vfioapd.plan.adopt_facts import Finding, Proposal
    from vfioapd.plan.wish import State
    from vfioapd.rpc.types import Change


def proposal(state: State, places: Places) -> Proposal:
    """What of this host becomes ours, and what does not fit."""
    files = read_definition_files(places.definitions)
    return propose(Facts(state, files, read_boot_masks(places.root)))


def check_guests_known(state: State) -> State:
    """Refuse to adopt unseen: later nobody would know which guest a matrix was for."""
    if state.snapshot.guests is None:
        raise Unavailable(
            Problem.LIBVIRT_UNAVAILABLE,
            "the host cannot be adopted: libvirt does not answer, so nobody can tell which guest has what",
            hint=f"start it: systemctl start {state.snapshot.libvirt}",
        )
    return state


def adoption_record(state: State, found: Proposal, change: Change) -> Adoption:
    """As it travels."""
    return Adoption(
        ours=[one.name for one in state.desired.definitions],
        matrices=[_row(one) for one in found.definitions],
        findings=[_finding(one) for one in found.findings],
        change=change,
    )


def _row(definition: Definition) -> AdoptedRow:
    matrix = definition.matrix
    return AdoptedRow(
        name=definition.name,
        uuid=str(definition.uuid),
        adapters=sorted(map(int, matrix.adapters)),
        domains=sorted(map(int, matrix.domains)),
        control_domains=sorted(map(int, matrix.control_domains)),
        queues=[str(queue) for queue in matrix.queues()],
        start=definition.start.value,
        guest=definition.guest,
    )


def _finding(finding: Finding) -> MisfitRow:
    uuid = None if finding.uuid is None else str(finding.uuid)
    return MisfitRow(finding.code.value, finding.sentence, finding.hint, uuid, finding.bars)
