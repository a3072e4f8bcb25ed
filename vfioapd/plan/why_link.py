# SPDX-License-Identifier: Apache-2.0
"""The words of ``vfioapctl why``: links, what can be said of one, and with what it is mended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from vfioapd.domain.queue_set import QueueSet

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.definition import Definition, Desired
    from vfioapd.domain.matrix import Matrix
    from vfioapd.domain.snapshot import QueueDetail, Snapshot
    from vfioapd.plan.wish import State


class Link(StrEnum):
    """The chain, from the wish through the machine to the guest. docs/cli.md explains each."""

    DEFINITION = "definition"
    LPAR = "lpar"
    ADAPTER = "adapter"
    MODULE = "module"
    MASKS = "masks"
    DRIVER = "driver"
    MDEV = "mdev"
    MATRIX = "matrix"
    GUEST_MATRIX = "guest_matrix"
    HOSTDEV = "hostdev"
    GUEST = "guest"


class Health(StrEnum):
    """What is known of a link."""

    OK = "ok"
    BROKEN = "broken"
    UNKNOWN = "unknown"


class Tool(StrEnum):
    """With what a link is mended."""

    VFIOAPCTL = "vfioapctl"  # the text is a command line that works as it stands
    SHELL = "shell"  # likewise, but a program of somebody else's
    EDITOR = "editor"  # a file to be changed by hand
    HMC = "HMC"  # an action at the Hardware Management Console


@dataclass(frozen=True, slots=True)
class Mend:
    """How a link is mended."""

    tool: Tool
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One link: its health and the reason in one sentence."""

    link: Link
    health: Health
    sentence: str
    mend: Mend | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the chain is judged by."""

    state: State
    details: Mapping[Apqn, QueueDetail]
    failures: Mapping[str, str] = field(default_factory=dict)  # matrix name: why it is not as desired
    obstacles: tuple[tuple[str, Mend | None], ...] = ()  # what keeps every command of ours from working

    @property
    def snapshot(self) -> Snapshot:
        """The host as it is."""
        return self.state.snapshot

    @property
    def desired(self) -> Desired:
        """host.toml as it is in force."""
        return self.state.desired


@dataclass(frozen=True, slots=True)
class Device:
    """The matrix in question, ours or somebody else's."""

    uuid: UUID
    matrix: Matrix  # as it is wanted
    definition: Definition | None

    def __str__(self) -> str:
        return str(self.definition) if self.definition else f"mdev {self.uuid}"

    @property
    def queues(self) -> QueueSet:
        """All that it is to hold."""
        return QueueSet.of_matrix(self.matrix)


def ok(link: Link, sentence: str) -> Finding:
    """The link holds."""
    return Finding(link, Health.OK, sentence)


def broken(link: Link, sentence: str, mend: Mend | None) -> Finding:
    """The link does not hold."""
    return Finding(link, Health.BROKEN, sentence, mend)


def unknown(link: Link, sentence: str) -> Finding:
    """Nothing can be said of the link before another one is mended."""
    return Finding(link, Health.UNKNOWN, sentence)
