# SPDX-License-Identifier: Apache-2.0
"""Changes to be failed and cut at every step: how a host is made ready, and the one command given then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
]
