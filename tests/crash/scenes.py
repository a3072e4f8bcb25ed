# SPDX-License-Identifier: Apache-2.0
"""Changes to be failed and cut at every step: how a host is made ready, and the one command given then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from doubles import ADMIN, uuid_of

from vfioapd.backend.bus import read_snapshot
from vfioapd.backend.kernel_steps import KernelSteps
from vfioapd.domain.definition import Definition
from vfioapd.domain.matrix import Matrix
from vfioapd.domain.numbers import AdapterId, DomainId
from vfioapd.plan.planner import Target, plan
from vfioapd.plan.steps import Plug, Where
from vfioapd.store.mdevctl import format_definition

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import Rig


@dataclass(frozen=True)
class Scene:
    name: str
    prepare: Callable[[Rig], None]
    act: Callable[[Rig], object]

    def __str__(self) -> str:
        return self.name

    def ready(self, rig: Rig) -> Rig:
        """The host just before the command: a running guest, a neighbour with a device of its own."""
        rig.restore()
        rig.guests.add("bastion", running=True)
        rig.define("neighbour", queues="06.000d")
        self.prepare(rig)
        rig.host.made.clear()
        return rig


def _defined(rig: Rig) -> None:
    rig.define("vault", queues="00.000d,02.000d")


def _attached(rig: Rig) -> None:
    _defined(rig)
    rig.attach("vault", "bastion")


def _stopped(rig: Rig) -> None:
    _defined(rig)
    rig.stop("vault")


def _manual(rig: Rig) -> None:
    rig.define("vault", adapters="0,2", domains="13,17", control_domains="13", start="manual")
    rig.start("vault")


def _foreign(rig: Rig) -> None:
    """A device that somebody else made, with mdevctl's own definition, and in use by a guest."""
    matrix = Matrix(frozenset({AdapterId(6)}), frozenset({DomainId(17)}), frozenset({DomainId(17)}))
    device = (Definition("stranger", uuid_of("stranger"), matrix),)
    steps = KernelSteps(rig.kernel.sysfs)
    for step in plan(read_snapshot(rig.kernel.sysfs), Target(device, device, device)).steps:
        steps.execute(step)
    text = format_definition(device[0]).replace("manual", "auto")
    (rig.places.definitions / str(uuid_of("stranger"))).write_text(text)
    for where in Where:
        rig.guests.execute(Plug("bastion", uuid_of("stranger"), where))


SCENES = [
    Scene("define", lambda rig: None, lambda rig: rig.define("new", queues="01.0011", guest="bastion")),
    Scene("undefine", _manual, lambda rig: rig.undefine("vault")),
    Scene("undefine stopped", _stopped, lambda rig: rig.undefine("vault")),
    Scene("stop", _defined, lambda rig: rig.stop("vault")),
    Scene("stop manual", _manual, lambda rig: rig.stop("vault")),
    Scene("start", _stopped, lambda rig: rig.start("vault")),
    Scene("attach", _defined, lambda rig: rig.attach("vault", "bastion")),
    Scene("attach live", _defined, lambda rig: rig.attach("vault", "bastion", "live")),
    Scene("attach stopped", _stopped, lambda rig: rig.attach("vault", "bastion")),
    Scene("detach", _attached, lambda rig: rig.detach("vault", "bastion")),
    Scene("adopt", _foreign, lambda rig: rig.service.adopt(ADMIN, write=True)),
]
