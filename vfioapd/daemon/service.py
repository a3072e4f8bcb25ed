# SPDX-License-Identifier: Apache-2.0
"""What vfioapd can do, one method for each command. Every method blocks and raises VfioApError."""

from __future__ import annotations

import contextlib
import difflib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from vfioapd import VERSION
from vfioapd.backend.lock import ap_lock
from vfioapd.daemon.authors import author_of, revision_row
from vfioapd.daemon.changes import Changes, Note, change_record
from vfioapd.daemon.confirming import check_no_wait, read_wait, wait_text
from vfioapd.daemon.desired import DesiredState
from vfioapd.daemon.feed import Feed
from vfioapd.daemon.hooking import Hooks
from vfioapd.daemon.removals import Removals
from vfioapd.daemon.requests import definition_of, edited, parse_word
from vfioapd.daemon.views import FREE, HOST, View
from vfioapd.domain.problems import Problem, Refused
from vfioapd.engine.run import settle
from vfioapd.plan import wishes
from vfioapd.plan.planner import Plan
from vfioapd.plan.wishes import Scope
from vfioapd.rpc.interface import Asked, Peer
from vfioapd.rpc.types import HostStatus, RevisionRow
from vfioapd.store import atomic, host_file
from vfioapd.store.mdevctl import read_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from vfioapd.daemon.live_host import LiveHost
    from vfioapd.daemon.places import Places
    from vfioapd.engine.journal import Journal
    from vfioapd.plan.adopt_facts import Proposal
    from vfioapd.plan.wish import State, Wish
    from vfioapd.rpc.interface import DefineRequest
    from vfioapd.rpc.types import (
        Adoption,
        Change,
        DoctorAnswer,
        EventRow,
        MatrixRow,
        QueueRow,
        WhyAnswer,
    )
    from vfioapd.store.history import History

logger = logging.getLogger(__name__)


class Service:
    """The commands. Reads may come from one thread, changes from one other.

    What a restore does not need is imported by the command that does: libvirt waits for a boot's restore.
    """

    def __init__(self, host: LiveHost, places: Places, journal: Journal, history: History) -> None:
        self.host = host
        self.places = places
        self.journal = journal
        self.history = history
        self.changes = Changes(host, places, journal, history)
        self.desired = DesiredState(places, history)
        self.hooks = Hooks(self)
        self.feed = Feed()
        self.running = ""  # the command that is being carried out
        self.on_wait: Callable[[float], None] = lambda seconds: None  # the daemon sets its clock here
        self.drifted: dict[str, str] = {}  # matrix name: what others did to it
        self.removals = Removals()
        self.failures: dict[str, str] = {}  # matrix name, "" for the whole host: why it is not as desired
        self.short: dict[str, str] = {}  # matrix name: what its device lacks, as it was seen last
        self.is_restored = False  # all that should be there was tried since the daemon started
        self.on_status: Callable[[str], None] = lambda text: None  # systemctl status shows it

    def status(self) -> HostStatus:
        """The host at a glance. Works with a broken host.toml and without libvirt."""
        desired = self.desired.applied()
        snapshot = self.host.snapshot(desired)
        view = View(snapshot, desired, self.drifted | self.failures)
        owners = view.owners()
        return HostStatus(
            version=VERSION,
            host_file=str(self.places.host_file),
            libvirt=snapshot.guests is not None,
            vfio_ap=snapshot.kernel.vfio_ap,
            ap_config=snapshot.kernel.ap_config,
            complete=snapshot.kernel.complete,
            apmask=str(snapshot.masks.apmask),
            aqmask=str(snapshot.masks.aqmask),
            keep=[str(queue) for queue in sorted(desired.keep)],
            queues_total=len(owners),
            queues_host=owners.count(HOST),
            queues_free=owners.count(FREE),
            queues_guests=len(owners) - owners.count(HOST) - owners.count(FREE),
            matrices=view.matrices(),
            foreign=view.foreign(),
            problems=self.problems(),
        )

    def summary(self) -> str:
        """One line for systemctl status: how many matrices are as they should be."""
        failed = sorted(filter(None, self.failures))
        parts = [f"{len(self.desired.applied().definitions)} matrices defined"]
        parts += [f"{len(failed)} not restored: {', '.join(failed)}"] if failed else []
        short = sorted(self.short.keys() - self.failures.keys())
        parts += [f"{len(short)} without all of their queues: {', '.join(short)}"] if short else []
        parts += [] if self.is_restored or "" in self.failures else ["not all of them restored yet"]
        return "; ".join([*parts, *self.problems()])

    def is_degraded(self) -> bool:
        """Whether anything is not as host.toml wants it."""
        return bool(self.failures or self.short or not self.is_restored or self.problems())

    def problems(self) -> list[str]:
        """What is not as it should be and is no single matrix's fault."""
        whole_host = [self.failures[""]] if "" in self.failures else []
        return [*whole_host, *self.desired.problems(), *map(str, self._torn())]

    def queues(self) -> list[QueueRow]:
        """Every queue of the host."""
        desired = self.desired.applied()
        snapshot = self.host.snapshot(desired)
        return View(snapshot, desired, self.drifted | self.failures).queues(self.host.details(snapshot))

    def show(self, name: str) -> MatrixRow:
        """One matrix."""
        desired = self.desired.applied()
        definition = desired.get(name)
        return View(self.host.snapshot(desired), desired, self.drifted | self.failures).matrix(definition)

    def why(self, subject: str) -> WhyAnswer:
        """Why a queue, a matrix or a guest is not as wanted: the chain from the LPAR to the guest."""
        from vfioapd.daemon.whys import explain

        return explain(self, subject)

    def doctor(self) -> DoctorAnswer:
        """The whole host looked over: what is wrong, what follows, what mends it."""
        from vfioapd.daemon.doctor import examine

        return examine(self)

    def xml(self, name: str, kind: str) -> str:
        """libvirt's XML of a matrix."""
        from vfioapd.virt.xml import hostdev_xml, nodedev_xml

        definition = self.desired.applied().get(name)
        match kind:
            case "nodedev":
                return nodedev_xml(definition)
            case "hostdev":
                return hostdev_xml(definition.uuid)
            case _:
                raise Refused(
                    Problem.BAD_REQUEST, f"there is no XML called {kind!r}", hint="it is nodedev or hostdev"
                )

    def define(self, request: DefineRequest, asked: Asked) -> Change:
        """Define a matrix; with start = auto also make its device and plug it into its guest."""
        new = definition_of(request)
        return self._change(asked, f"define {new.name}", lambda state: wishes.define(state, new), adds=True)

    def edit(self, request: DefineRequest, asked: Asked) -> Change:
        """Change what a request names of a definition; the device follows, in the running guest too."""
        name = request.name

        def wish(state: State) -> Wish:
            return wishes.edit(state, edited(request, state.desired.get(name)))

        return self._change(asked, f"edit {name}", wish, adds=True)

    def undefine(self, names: Sequence[str], asked: Asked) -> Change:
        """Forget matrices."""
        return self._change(asked, _what("undefine", names), lambda state: wishes.undefine(state, names))

    def start(self, names: Sequence[str], asked: Asked) -> Change:
        """Make the devices of matrices, all or none."""
        change = self._change(asked, _what("start", names), lambda state: wishes.start(state, names))
        if not asked.dry_run:
            self.hooks.forget(names)
        return change

    def stop(self, names: Sequence[str], asked: Asked) -> Change:
        """Remove the devices of matrices, all or none."""
        return self._change(asked, _what("stop", names), lambda state: wishes.stop(state, names))

    def attach(self, name: str, guest: str, where: str, asked: Asked) -> Change:
        """Give a matrix to a guest."""
        scope = parse_word(where, Scope, "where") or Scope.BOTH
        what = _what("attach", (name, guest))
        return self._change(asked, what, lambda state: wishes.attach(state, name, guest, scope))

    def detach(self, name: str, guest: str, where: str, asked: Asked) -> Change:
        """Take a matrix from a guest."""
        scope = parse_word(where, Scope, "where") or Scope.BOTH
        what = _what("detach", (name, guest))
        return self._change(asked, what, lambda state: wishes.detach(state, name, guest, scope))

    def plan(self, text: str | None, asked: Asked, file: str | None = None) -> Change:
        """What apply would do with this host.toml, or with the present one; nothing is changed. ``file`` is
        what errors call the text."""
        text, new = self.desired.read(text, file)
        state = self.desired.state(self.host, disrupt=True)
        return self.changes.preview(wishes.apply(state, new), state, "plan", text)

    def apply(self, text: str | None, asked: Asked, file: str | None = None) -> Change:
        """Make this host.toml true, or the present one as it was edited."""
        text, new = self.desired.read(text, file)
        return self._change(asked, "apply", lambda state: wishes.apply(state, new), text=text, adds=True)

    def adopt(self, asked: Asked, *, write: bool) -> Adoption:
        """Make what others made ours, as it is; without ``write`` only say what would be done."""
        from vfioapd.daemon.adopting import adoption_record, check_guests_known, proposal

        found: list[tuple[State, Proposal]] = []

        def wish_of(state: State) -> Wish:
            found.append((state, proposal(state, self.places)))
            return wishes.adopt(state, found[0][1].definitions)

        if write:
            change = self._change(asked, "adopt", lambda state: wish_of(check_guests_known(state)))
        else:
            state = self.desired.state(self.host)
            change = self.changes.preview(wish_of(state), state, "adopt")
        return adoption_record(*found[0], change)

    def restore_revision(self, number: int, asked: Asked) -> Change:
        """Make an earlier host.toml true again, to the letter."""
        text = self.history.read(number)
        new = self.desired.parse(text, f"revision {number}")
        what = _what("restore", (str(number),))
        return self._change(asked, what, lambda state: wishes.apply(state, new), text=text, adds=True)

    def confirm(self, asked: Asked) -> Change:
        """Keep the change that waits to be confirmed."""
        if read_wait(self.places.unconfirmed) is None:
            return change_record("confirm", Plan(), (), made_now=True)
        atomic.replace(self.places.unconfirmed, None)
        logger.info("confirmed by %s", asked.peer)
        return change_record("confirm", Plan(), (), made_now=True)

    def take_back(self) -> float | None:
        """Take back a change that was not confirmed in time. Returns the seconds still to wait, None
        when nothing waits. Raises VfioApError when it cannot be taken back; then it is tried again at
        the next start."""
        wait = read_wait(self.places.unconfirmed)
        if wait is None:
            return None
        if left := wait.left(self.journal.boot_id):
            return left
        text = "" if wait.revision is None else self.history.read(wait.revision)
        new = self.desired.parse(text, f"revision {wait.revision}")
        asked = Asked(Peer.of_this_process(), "it was not confirmed in time", disrupt=True)
        logger.warning("a change was not confirmed in time and is taken back")
        self._change(asked, "take back", lambda state: wishes.apply(state, new), text=text, again=True)
        return None

    def rename_guest(self, old: str, new: str) -> None:
        """libvirt's guest has another name: host.toml follows."""
        asked = Asked(Peer.of_this_process(), "libvirt says so")
        self._change(
            asked, f"rename guest {old} to {new}", lambda state: wishes.rename_guest(state, old, new)
        )

    def settle(self) -> None:
        """Undo what earlier changes that were cut short have left, as far as it can be now. The caller
        holds the AP configuration lock."""
        if message := settle(self.host, self.journal):
            logger.warning("%s", message)

    def hook_prepare(self, guest: str, uuids: Sequence[str]) -> list[str]:
        """Make the matrices of a guest ready before it starts, or refuse. Calls no libvirt."""
        return self.hooks.prepare(guest, uuids)

    def hook_release(self, guest: str, uuids: Sequence[str]) -> list[str]:
        """Settle what was started for a guest that has ended. Calls no libvirt."""
        return self.hooks.release(guest, uuids)

    def events(self) -> list[EventRow]:
        """What happened of late."""
        return self.feed.recent()

    def follow(self) -> AsyncIterator[EventRow]:
        """What happens, as it happens. For the event loop."""
        return self.feed.follow()

    def revisions(self) -> list[RevisionRow]:
        """Every host.toml that was in force, the oldest first."""
        return [revision_row(one) for one in self.history.revisions()]

    def diff(self, number: int) -> str:
        """What has changed in host.toml since a revision, as a unified diff."""
        old, new = self.history.read(number), host_file.read_text(self.places.host_file) or ""
        lines = difflib.unified_diff(
            old.splitlines(keepends=True),
            new.splitlines(keepends=True),
            f"revision {number}",
            str(self.places.host_file),
        )
        return "".join(lines)

    def _change(
        self,
        asked: Asked,
        what: str,
        wish_of: Callable[[State], Wish],
        *,
        text: str | None = None,
        adds: bool = False,
        again: bool = False,
    ) -> Change:
        with self.busy_with(what), ap_lock(self.places.lock):
            self._check_may_change(text, adds=adds, again=again)
            if not asked.dry_run:
                self.settle()
            state = self.desired.state(self.host, disrupt=asked.disrupt)
            wish = wish_of(state)
            if asked.dry_run:
                return self.changes.preview(wish, state, what, text)
            made = self.changes.make(wish, state, self._note(asked, what, text))
        if made.steps:
            logger.info("%s: done in %d steps for %s", what, len(made.steps), asked.peer)
        for one in wish.target.touched:
            self.failures.pop(one.name, None)
            self.drifted.pop(one.name, None)
            self.short.pop(one.name, None)
        if asked.confirm_within is not None and made.steps:
            self.on_wait(asked.confirm_within)
            return replace(made, confirm_within=asked.confirm_within)
        return made

    @contextlib.contextmanager
    def busy_with(self, what: str) -> Iterator[None]:
        """What a hook is told that cannot wait for it; uevents are heard a little later meanwhile."""
        self.running = what
        try:
            yield
        finally:
            self.running = ""

    def _check_may_change(self, text: str | None, *, adds: bool, again: bool) -> None:
        if not again:
            check_no_wait(self.places.unconfirmed, self.journal.boot_id)
        if text is None:
            self.desired.check_applied()
        for torn in self._torn() if adds else ():
            raise torn

    def _note(self, asked: Asked, what: str, text: str | None) -> Note:
        wait = None
        if asked.confirm_within is not None:
            wait = wait_text(self.history.last(), asked.confirm_within, self.journal.boot_id)
        return Note(what, author_of(asked), asked.reason, text, wait)

    def _torn(self) -> list[Refused]:
        """Definitions of others that stop mdevctl and libvirt from reading any definition at all."""
        ours = {str(one.uuid) for one in self.desired.applied().definitions}
        return [
            Refused(
                Problem.TORN_DEFINITION,
                f"{torn.path}, not written by vfioapd, is torn ({torn.reason}); while it is there mdevctl"
                " and libvirt see no definition at all",
                hint=f"repair it or move it away: mv {torn.path} /root/",
                owners=["mdevctl"],
            )
            for torn in read_folder(self.places.definitions).torn
            if torn.stops_mdevctl and torn.path.name not in ours
        ]


def _what(verb: str, names: Sequence[str]) -> str:
    return " ".join((verb, *names))
