# SPDX-License-Identifier: Apache-2.0
"""The varlink interface org.vfioapd.Host: typed methods in front of the service.

asyncvarlink derives the interface description from these annotations, so that
``varlinkctl introspect`` shows what is written here.
"""

# No postponed annotations here: asyncvarlink reads the types of methods at run time.
import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from asyncvarlink import TypedVarlinkErrorReply, VarlinkInterface, varlinkmethod

from vfioapd.domain.problems import Problem, Refused, VfioApError
from vfioapd.rpc.types import (
    Adoption,
    Change,
    DoctorAnswer,
    EventRow,
    HostStatus,
    MatrixRow,
    Options,
    QueueRow,
    RevisionRow,
    WhyAnswer,
)

logger = logging.getLogger(__name__)

INTERFACE = "org.vfioapd.Host"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a socket, by SO_PEERCRED."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def of_this_process(cls) -> Self:
        """The daemon itself, for what it does unasked."""
        return cls(os.getpid(), os.getuid(), os.getgid())

    def __str__(self) -> str:
        return f"uid {self.uid}, PID {self.pid}"


@dataclass(frozen=True, slots=True)
class DefineRequest:
    """A definition as an admin writes it; numbers are still text, parsed in one place."""

    name: str
    queues: str | None = None
    adapters: str | None = None
    domains: str | None = None
    control_domains: str | None = None
    uuid: str | None = None
    guest: str | None = None
    start: str | None = None
    require: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for a change, and how."""

    peer: Peer
    reason: str = ""  # for the history
    disrupt: bool = False  # take queues even if they are in use or kept
    dry_run: bool = False  # plan only
    confirm_within: int | None = None  # seconds after which it goes back unless confirmed


class Service(Protocol):
    """What the interface calls. Every method but follow blocks, and raises VfioApError."""

    def status(self) -> HostStatus: ...
    def queues(self) -> list[QueueRow]: ...
    def show(self, name: str) -> MatrixRow: ...
    def xml(self, name: str, kind: str) -> str: ...
    def why(self, subject: str) -> WhyAnswer: ...
    def doctor(self) -> DoctorAnswer: ...
    def events(self) -> list[EventRow]: ...
    def follow(self) -> AsyncIterator[EventRow]: ...
    def revisions(self) -> list[RevisionRow]: ...
    def diff(self, number: int) -> str: ...
    def plan(self, text: str | None, asked: Asked, file: str | None) -> Change: ...
    def define(self, request: DefineRequest, asked: Asked) -> Change: ...
    def edit(self, request: DefineRequest, asked: Asked) -> Change: ...
    def undefine(self, names: Sequence[str], asked: Asked) -> Change: ...
    def start(self, names: Sequence[str], asked: Asked) -> Change: ...
    def stop(self, names: Sequence[str], asked: Asked) -> Change: ...
    def attach(self, name: str, guest: str, where: str, asked: Asked) -> Change: ...
    def detach(self, name: str, guest: str, where: str, asked: Asked) -> Change: ...
    def apply(self, text: str | None, asked: Asked, file: str | None) -> Change: ...
    def adopt(self, asked: Asked, *, write: bool) -> Adoption: ...
    def restore_revision(self, number: int, asked: Asked) -> Change: ...
    def confirm(self, asked: Asked) -> Change: ...
    def hook_prepare(self, guest: str, uuids: Sequence[str]) -> list[str]: ...
    def hook_release(self, guest: str, uuids: Sequence[str]) -> list[str]: ...


class ProblemReply(TypedVarlinkErrorReply, name=f"{INTERFACE}.Problem"):
    """Why a call was not carried out: a stable code, one sentence, how to mend it, who holds what."""

    class Parameters:
        problem: str
        sentence: str
        hint: str | None
        queues: list[str]
        owners: list[str]


class HostInterface(VarlinkInterface, name=INTERFACE):
    """Crypto Express queues for KVM guests.

    Numbers inside text arguments are decimal or 0x hexadecimal, queues as lszcrypt prints them
    (05.0011). Every failure is the error Problem with a stable code.
    """

    errors = (ProblemReply,)

    def __init__(
        self, service: Service, peer: Peer, reads: Executor, changes: Executor, *, writable: bool
    ) -> None:
        self._service = service
        self._peer = peer
        self._reads = reads
        self._changes = changes
        self._writable = writable

    @varlinkmethod(return_parameter="status")
    async def Status(self) -> HostStatus:
        """The host at a glance: masks, matrices, devices of others, what is not as desired."""
        return await self._call(self._reads, self._service.status)

    @varlinkmethod(return_parameter="queues")
    async def Queues(self) -> list[QueueRow]:
        """Every queue: card, state, driver, owner and guest."""
        return await self._call(self._reads, self._service.queues)

    @varlinkmethod(return_parameter="matrix")
    async def Show(self, *, name: str) -> MatrixRow:
        """One matrix."""
        return await self._call(self._reads, lambda: self._service.show(name))

    @varlinkmethod(return_parameter="xml")
    async def Xml(self, *, name: str, kind: str) -> str:
        """libvirt's XML of a matrix; kind is nodedev or hostdev."""
        return await self._call(self._reads, lambda: self._service.xml(name, kind))

    @varlinkmethod(return_parameter="why")
    async def Why(self, *, subject: str) -> WhyAnswer:
        """The chain from the LPAR to the guest for a queue (05.0011), a matrix or a guest: each link, the
        first broken one, its cause and what mends it."""
        return await self._call(self._reads, lambda: self._service.why(subject))

    @varlinkmethod(return_parameter="doctor")
    async def Doctor(self) -> DoctorAnswer:
        """The whole host looked over: each defect with its cause, its consequence and what mends it."""
        return await self._call(self._reads, self._service.doctor)

    @varlinkmethod(return_parameter="events")
    async def Events(self) -> list[EventRow]:
        """The newest events on the host, the oldest of them first."""
        return self._service.events()

    @varlinkmethod(return_parameter="event", delay_generator=False)
    async def Follow(self) -> AsyncIterator[EventRow]:
        """The last few events, then each as it comes, without end; one who reads too slowly loses some."""
        async for row in self._service.follow():
            yield row

    @varlinkmethod(return_parameter="revisions")
    async def History(self) -> list[RevisionRow]:
        """Every host.toml that was in force, the oldest first."""
        return await self._call(self._reads, self._service.revisions)

    @varlinkmethod(return_parameter="diff")
    async def Diff(self, *, revision: int) -> str:
        """What has changed in host.toml since a revision, as a unified diff."""
        return await self._call(self._reads, lambda: self._service.diff(revision))

    @varlinkmethod(return_parameter="change")
    async def Plan(self, *, text: str | None = None, file: str | None = None) -> Change:
        """What Apply would do with this host.toml, or with the present one. Changes nothing. The file is
        where the text came from: what a mistake in it is told to be in."""
        return await self._call(self._reads, lambda: self._service.plan(text, Asked(self._peer), file))

    @varlinkmethod(return_parameter="change")
    async def Define(
        self,
        *,
        name: str,
        queues: str | None = None,
        adapters: str | None = None,
        domains: str | None = None,
        control_domains: str | None = None,
        uuid: str | None = None,
        guest: str | None = None,
        start: str | None = None,
        require: str | None = None,
        options: Options | None = None,
    ) -> Change:
        """Define a matrix; start = auto (the default) also makes it true at once."""
        request = DefineRequest(name, queues, adapters, domains, control_domains, uuid, guest, start, require)
        asked = self._asked(options)
        return await self._change(lambda: self._service.define(request, asked))

    @varlinkmethod(return_parameter="change")
    async def Edit(
        self,
        *,
        name: str,
        queues: str | None = None,
        adapters: str | None = None,
        domains: str | None = None,
        control_domains: str | None = None,
        start: str | None = None,
        require: str | None = None,
        options: Options | None = None,
    ) -> Change:
        """Change what is given of a matrix; its device follows at once, in a running guest too."""
        request = DefineRequest(name, queues, adapters, domains, control_domains, None, None, start, require)
        asked = self._asked(options)
        return await self._change(lambda: self._service.edit(request, asked))

    @varlinkmethod(return_parameter="change")
    async def Undefine(
        self,
        *,
        names: list[str],
        options: Options | None = None,
    ) -> Change:
        """Forget matrices; their devices are removed, their queues go back to the host."""
        asked = self._asked(options)
        return await self._change(lambda: self._service.undefine(names, asked))

    @varlinkmethod(return_parameter="change")
    async def Start(
        self,
        *,
        names: list[str],
        options: Options | None = None,
    ) -> Change:
        """Make the devices of matrices, all or none."""
        asked = self._asked(options)
        return await self._change(lambda: self._service.start(names, asked))

    @varlinkmethod(return_parameter="change")
    async def Stop(
        self,
        *,
        names: list[str],
        options: Options | None = None,
    ) -> Change:
        """Remove the devices of matrices, all or none."""
        asked = self._asked(options)
        return await self._change(lambda: self._service.stop(names, asked))

    @varlinkmethod(return_parameter="change")
    async def Attach(
        self,
        *,
        name: str,
        guest: str,
        where: str | None = None,
        options: Options | None = None,
    ) -> Change:
        """Give a matrix to a guest; where is live, config or (the default) both."""
        asked = self._asked(options)
        return await self._change(lambda: self._service.attach(name, guest, where or "both", asked))

    @varlinkmethod(return_parameter="change")
    async def Detach(
        self,
        *,
        name: str,
        guest: str,
        where: str | None = None,
        options: Options | None = None,
    ) -> Change:
        """Take a matrix from a guest; where is live, config or (the default) both."""
        asked = self._asked(options)
        return await self._change(lambda: self._service.detach(name, guest, where or "both", asked))

    @varlinkmethod(return_parameter="change")
    async def Apply(
        self,
        *,
        text: str | None = None,
        file: str | None = None,
        options: Options | None = None,
    ) -> Change:
        """Make a host.toml true: this text, or the file as it was edited. With confirm_within (seconds)
        everything goes back unless Confirm is called in time."""
        asked = self._asked(options)
        return await self._change(lambda: self._service.apply(text, asked, file))

    @varlinkmethod(return_parameter="adoption")
    async def Adopt(self, *, write: bool | None = None, options: Options | None = None) -> Adoption:
        """Which devices and definitions of others would become matrices, as they are, and all that does
        not fit. With write they do: files are written, no mask, device or guest is touched."""
        asked = self._asked(options)
        if not write:
            return await self._call(self._reads, lambda: self._service.adopt(asked, write=False))
        return await self._change(lambda: self._service.adopt(asked, write=True))

    @varlinkmethod(return_parameter="change")
    async def Restore(
        self,
        *,
        revision: int,
        options: Options | None = None,
    ) -> Change:
        """Make an earlier host.toml true again, to the letter."""
        asked = self._asked(options)
        return await self._change(lambda: self._service.restore_revision(revision, asked))

    @varlinkmethod(return_parameter="change")
    async def Confirm(self) -> Change:
        """Keep the change that waits to be confirmed."""
        return await self._change(lambda: self._service.confirm(Asked(self._peer)))

    @varlinkmethod(return_parameter="started")
    async def HookPrepare(self, *, guest: str, uuids: list[str]) -> list[str]:
        """For libvirt's hook: make the matrices among these devices ready for the guest, or refuse its
        start. Returns the names of those that had to be started. Calls no libvirt."""
        self._check_writable()
        return await self._call(None, lambda: self._service.hook_prepare(guest, uuids))

    @varlinkmethod(return_parameter="stopping")
    async def HookRelease(self, *, guest: str, uuids: list[str]) -> list[str]:
        """For libvirt's hook: the guest has ended. Returns at once with the matrices that are stopped
        because they were started for it alone. Calls no libvirt."""
        self._check_writable()
        return await self._call(None, lambda: self._service.hook_release(guest, uuids))

    def _asked(self, options: Options | None) -> Asked:
        if options is None:
            return Asked(self._peer)
        return Asked(
            self._peer,
            options.reason or "",
            disrupt=bool(options.disrupt),
            dry_run=bool(options.dry_run),
            confirm_within=options.confirm_within,
        )

    async def _change(self, act: Callable[[], T]) -> T:
        self._check_writable()
        return await self._call(self._changes, act)

    def _check_writable(self) -> None:
        if not self._writable:
            raise _reply(
                Refused(
                    Problem.READ_ONLY,
                    "this socket only reads",
                    hint="changes go through /run/vfioapd/vfioapd.sock: be root or in the group libvirt",
                )
            )

    async def _call(self, worker: Executor | None, act: Callable[[], T]) -> T:
        """In that worker, or in a thread of its own: what serves hooks must wait for nothing of libvirt."""
        try:
            return await asyncio.get_running_loop().run_in_executor(worker, act)
        except VfioApError as error:
            logger.info("refused to %s: %s", self._peer, error)
            raise _reply(error) from error
        except Exception as error:
            logger.exception("a call of %s failed", self._peer)
            raise _reply(VfioApError(Problem.INTERNAL, f"vfioapd failed: {error!r}")) from error


def _reply(error: VfioApError) -> ProblemReply:
    return ProblemReply(
        problem=error.problem.value,
        sentence=str(error),
        hint=error.hint,
        queues=list(error.queues),
        owners=list(error.owners),
    )
