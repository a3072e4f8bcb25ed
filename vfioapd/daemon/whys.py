# SPDX-License-Identifier: Apache-2.0
"""``vfioapctl why``: the facts gathered, the chain walked, the answer as it travels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vfioapd.daemon.confirming import read_wait
from vfioapd.domain.problems import VfioApError
from vfioapd.plan.why import queues_concerned, why
from vfioapd.plan.why_link import Facts, Mend, Tool
from vfioapd.plan.why_mend import shell
from vfioapd.rpc.types import WhyAnswer, WhyLink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.daemon.standing import Standing
    from vfioapd.plan.why_link import Finding

Obstacle = tuple[str, Mend | None]


def explain(standing: Standing, subject: str) -> WhyAnswer:
    """Why a queue, a matrix or a guest is not as wanted. Raises Refused when nothing is called so."""
    state = standing.desired.state(standing.host)
    facts = Facts(state, {}, standing.amiss(), tuple(_obstacles(standing)))
    wanted = queues_concerned(facts, subject)
    some = tuple(one for one in state.snapshot.queues if one.queue in wanted)
    details = standing.host.details(replace(state.snapshot, queues=some))
    answer = why(replace(facts, details=details), subject)
    first = answer.first_broken
    return WhyAnswer(
        subject=answer.subject,
        links=[_link(one) for one in answer.findings],
        broken=first.link.value if first else None,
        cause=first.sentence if first else None,
        mend=first.mend.text if first and first.mend else None,
        mend_with=first.mend.tool.value if first and first.mend else None,
    )


def _link(finding: Finding) -> WhyLink:
    return WhyLink(finding.link.value, finding.health.value, finding.sentence)


def _obstacles(standing: Standing) -> Iterator[Obstacle]:
    """What keeps every command that changes something from working; the nearest cause first."""
    if standing.desired.is_edited():
        yield _edited(standing)
    if read_wait(standing.places.unconfirmed) is not None:
        yield "the last change waits to be confirmed", shell("vfioapctl confirm")


def _edited(standing: Standing) -> Obstacle:
    path = standing.places.host_file
    try:
        standing.desired.read()
    except (VfioApError, OSError) as error:
        return str(error), Mend(Tool.EDITOR, f"correct {path}, then run: vfioapctl apply")
    return f"{path} was edited and the edit is not in force", shell("vfioapctl apply")
