# SPDX-License-Identifier: Apache-2.0
"""How the host stands: what is in force, what is amiss, and the rooms and files by which that is known."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from vfioapd.daemon.changes import Changes
from vfioapd.daemon.desired import DesiredState
from vfioapd.daemon.feed import Feed
from vfioapd.daemon.removals import Removals
from vfioapd.domain.problems import Problem, Refused
from vfioapd.engine.run import settle
from vfioapd.store.mdevctl import read_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vfioapd.daemon.live_host import LiveHost
    from vfioapd.daemon.places import Places
    from vfioapd.engine.journal import Journal
    from vfioapd.store.history import History

logger = logging.getLogger(__name__)


class Standing:
    """What commands, hooks, the restore and the drift check share. Reads may come from one thread, changes
    from one other.

    libvirt waits for a boot's restore, and that needs this alone: it imports nothing that only answers.
    """

    def __init__(self, host: LiveHost, places: Places, journal: Journal, history: History) -> None:
        self.host = host
        self.places = places
        self.journal = journal
        self.history = history
        self.changes = Changes(host, places, journal, history)
        self.desired = DesiredState(places, history)
        self.feed = Feed()
        self.running = ""  # the command that is being carried out
        self.on_wait: Callable[[float], None] = lambda seconds: None  # the daemon sets its clock here
        self.drifted: dict[str, str] = {}  # matrix name: what others did to it
        self.removals = Removals()
        self.hook_called: float | None = None  # by libvirt, last; seconds since the epoch
        self.failures: dict[str, str] = {}  # matrix name, "" for the whole host: why it is not as desired
        self.short: dict[str, str] = {}  # matrix name: what its device lacks, as it was seen last
        self.is_restored = False  # all that should be there was tried since the daemon started
        self.on_status: Callable[[str], None] = lambda text: None  # systemctl status shows it

    def summary(self) -> str:
        """One line for systemctl status: how many matrices are as they should be."""
        failed = sorted(filter(None, self.failures))
        parts = [f"{len(self.desired.applied().definitions)} matrices defined"]
        parts += [f"{len(failed)} not restored: {', '.join(failed)}"] if failed else []
        short = sorted(self.short.keys() - self.failures.keys())
        parts += [f"{len(short)} without all of their queues: {', '.join(short)}"] if short else []
        parts += [] if self.is_restored or "" in self.failures else ["not all of them restored yet"]
        return "; ".join([*parts, *self.problems()])

    def amiss(self) -> dict[str, str]:
        """Matrix name, "" for the whole host: why it is not as desired."""
        return self.drifted | self.failures

    def is_degraded(self) -> bool:
        """Whether anything is not as host.toml wants it."""
        return bool(self.failures or self.short or not self.is_restored or self.problems())

    def problems(self) -> list[str]:
        """What is not as it should be and is no single matrix's fault."""
        whole_host = [self.failures[""]] if "" in self.failures else []
        return [*whole_host, *self.desired.problems(), *map(str, self.torn())]

    def settle(self) -> None:
        """Undo what earlier changes that were cut short have left, as far as it can be now. The caller
        holds the AP configuration lock."""
        if message := settle(self.host, self.journal):
            logger.warning("%s", message)

    @contextlib.contextmanager
    def busy_with(self, what: str) -> Iterator[None]:
        """What a hook is told that cannot wait for it; uevents are heard a little later meanwhile."""
        self.running = what
        try:
            yield
        finally:
            self.running = ""

    def torn(self) -> list[Refused]:
        """Definitions of others that stop mdevctl and libvirt from reading any definition at all."""
        ours = self.desired.applied().file_names()
        return [
            Refused(
                Problem.TORN_DEFINITION,
                f"{torn.path}, not written by vfioapd, is torn ({torn.reason}); while it is there mdevctl"
                " and libvirt see no definition at all",
                hint=f"repair it or move it away: mv {torn.path} /root/",
                owners=["mdevctl"],
            )
            for torn in read_folder(self.places.definitions, ours=ours).torn
            if torn.stops_mdevctl
        ]
