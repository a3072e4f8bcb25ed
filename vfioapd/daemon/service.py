# SPDX-License-Identifier: Apache-2.0
"""What vfioapd can do, one method for each command. Every method blocks and raises VfioApError."""

from __future__ import annotations

import difflib
import logging
from functools import partial
from typing import TYPE_CHECKING

from vfioapd import VERSION
from vfioapd.daemon.authors import revision_row
from vfioapd.daemon.command import carry_out, change_record, preview
from vfioapd.daemon.confirming import read_wait
from vfioapd.daemon.following import event_row, follow
from vfioapd.daemon.hooking import Hooks
from vfioapd.daemon.requests import definition_of, edited, parse_word
from vfioapd.daemon.views import FREE, HOST, View
from vfioapd.domain.problems import Problem, Refused
from vfioapd.plan import wishes
from vfioapd.plan.planner import Plan
from vfioapd.plan.wishes import Scope
from vfioapd.rpc.types import HostStatus, RevisionRow
from vfioapd.store import atomic, host_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from vfioapd.daemon.standing import Standing
    from vfioapd.plan.adopt_facts import Proposal
    from vfioapd.plan.wish import State, Wish
    from vfioapd.rpc.interface import Asked, DefineRequest
    from vfioapd.rpc.types import (
        Adoption,
        Change,
        DoctorAnswer,
        EventRow,
        MatrixRow,
        QueueRow,
        WhyAnswer,
    )

logger = logging.getLogger(__name__)


class Service:
    """The commands. Reads may come from one thread, changes from one other."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing
        self._change = partial(carry_out, standing)
        self.hooks = Hooks(standing)

    def status(self) -> HostStatus:
        """The host at a glance. Works with a broken host.toml and without libvirt."""
        view = self._view()
        snapshot, owners = view.snapshot, view.owners()
        return HostStatus(
            version=VERSION,
            host_file=str(self._standing.places.host_file),
            libvirt=snapshot.guests is not None,
            vfio_ap=snapshot.kernel.vfio_ap,
            ap_config=snapshot.kernel.ap_config,
            complete=snapshot.kernel.complete,
            apmask=str(snapshot.masks.apmask),
            aqmask=str(snapshot.masks.aqmask),
            keep=[str(queue) for queue in sorted(view.desired.keep)],
            queues_total=len(owners),
            queues_host=owners.count(HOST),
            queues_free=owners.count(FREE),
            queues_guests=len(owners) - owners.count(HOST) - owners.count(FREE),
            matrices=view.matrices(),
            foreign=view.foreign(),
            problems=self._standing.problems(),
        )

    def queues(self) -> list[QueueRow]:
        """Every queue of the host."""
        view = self._view()
        return view.queues(self._standing.host.details(view.snapshot))

    def show(self, name: str) -> MatrixRow:
        """One matrix."""
        view = self._view()
        return view.matrix(view.desired.get(name))

    def why(self, subject: str) -> WhyAnswer:
        """Why a queue, a matrix or a guest is not as wanted: the chain from the LPAR to the guest."""
        from vfioapd.daemon.whys import explain

        return explain(self._standing, subject)

    def doctor(self) -> DoctorAnswer:
        """The whole host looked over: what is wrong, what follows, what mends it."""
        from vfioapd.daemon.doctor import examine

        return examine(self._standing)

    def xml(self, name: str, kind: str) -> str:
        """libvirt's XML of a matrix."""
        from vfioapd.virt.xml import hostdev_xml, nodedev_xml

        definition = self._standing.desired.applied().get(name)
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
        text, new = self._standing.desired.read(text, file)
        state = self._standing.desired.state(self._standing.host, disrupt=True)
        return preview(self._standing, wishes.apply(state, new), state, "plan", text)

    def apply(self, text: str | None, asked: Asked, file: str | None = None) -> Change:
        """Make this host.toml true, or the present one as it was edited."""
        text, new = self._standing.desired.read(text, file)
        return self._change(asked, "apply", lambda state: wishes.apply(state, new), text=text, adds=True)

    def adopt(self, asked: Asked, *, write: bool) -> Adoption:
        """Make what others made ours, as it is; without ``write`` only say what would be done."""
        from vfioapd.daemon.adopting import adoption_record, check_guests_known, proposal

        found: list[tuple[State, Proposal]] = []

        def wish_of(state: State) -> Wish:
            found.append((state, proposal(state, self._standing.places)))
            return wishes.adopt(state, found[0][1].definitions)

        if write:
            change = self._change(asked, "adopt", lambda state: wish_of(check_guests_known(state)))
        else:
            state = self._standing.desired.state(self._standing.host)
            change = preview(self._standing, wish_of(state), state, "adopt")
        return adoption_record(*found[0], change)

    def restore_revision(self, number: int, asked: Asked) -> Change:
        """Make an earlier host.toml true again, to the letter."""
        text = self._standing.history.read(number)
        new = self._standing.desired.parse(text, f"revision {number}")
        what = _what("restore", (str(number),))
        return self._change(asked, what, lambda state: wishes.apply(state, new), text=text, adds=True)

    def confirm(self, asked: Asked) -> Change:
        """Keep the change that waits to be confirmed."""
        if read_wait(self._standing.places.unconfirmed) is None:
            return change_record("confirm", Plan(), (), made_now=True)
        atomic.replace(self._standing.places.unconfirmed, None)
        logger.info("confirmed by %s", asked.peer)
        return change_record("confirm", Plan(), (), made_now=True)

    def hook_prepare(self, guest: str, uuids: Sequence[str]) -> list[str]:
        """Make the matrices of a guest ready before it starts, or refuse. Calls no libvirt."""
        return self.hooks.prepare(guest, uuids)

    def hook_release(self, guest: str, uuids: Sequence[str]) -> list[str]:
        """Settle what was started for a guest that has ended. Calls no libvirt."""
        return self.hooks.release(guest, uuids)

    def events(self) -> list[EventRow]:
        """What happened of late."""
        return list(map(event_row, self._standing.feed.recent()))

    def follow(self) -> AsyncIterator[EventRow]:
        """What happens, as it happens. For the event loop."""
        return follow(self._standing.feed)

    def revisions(self) -> list[RevisionRow]:
        """Every host.toml that was in force, the oldest first."""
        return [revision_row(one) for one in self._standing.history.revisions()]

    def diff(self, number: int) -> str:
        """What has changed in host.toml since a revision, as a unified diff."""
        path = self._standing.places.host_file
        old, new = self._standing.history.read(number), host_file.read_text(path) or ""
        lines = difflib.unified_diff(
            old.splitlines(keepends=True),
            new.splitlines(keepends=True),
            f"revision {number}",
            str(path),
        )
        return "".join(lines)

    def _view(self) -> View:
        desired = self._standing.desired.applied()
        return View(self._standing.host.snapshot(desired), desired, self._standing.amiss())


def _what(verb: str, names: Sequence[str]) -> str:
    return " ".join((verb, *names))
