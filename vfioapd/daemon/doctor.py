# SPDX-License-Identifier: Apache-2.0
"""``vfioapctl doctor``: the facts gathered from all rooms, the host judged, the answer as it travels."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vfioapd.backend.lock import holder
from vfioapd.daemon import host_paths, host_programs
from vfioapd.daemon.confirming import read_wait
from vfioapd.domain.definition import Desired
from vfioapd.domain.problems import Unavailable, VfioApError
from vfioapd.plan import doctor_facts, wishes
from vfioapd.plan.doctor import diagnose
from vfioapd.plan.doctor_facts import HostFacts
from vfioapd.plan.doctor_finding import Severity, Subject
from vfioapd.plan.doctor_units import UNITS
from vfioapd.plan.why import why
from vfioapd.plan.why_link import Facts, Health, Link, Tool
from vfioapd.rpc.types import DoctorAnswer, DoctorFinding, DoctorSubject
from vfioapd.store import doctor_files
from vfioapd.store.mdevctl import read_folder
from vfioapd.virt.awake import DAEMONS, libvirt_to_start, running_libvirt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vfioapd.daemon.standing import Standing
    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.snapshot import QueueDetail, Snapshot
    from vfioapd.plan.doctor_facts import UnitFacts
    from vfioapd.plan.doctor_finding import Finding, Report
    from vfioapd.plan.why_link import Mend

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The hook as it was shipped: by a package, by pip, or in this source tree.
SHIPPED_HOOKS = tuple(f"{top}/share/vfioapd/hooks/vfioapd" for top in ("usr", "usr/local"))
OWN_HOOK = Path(__file__).resolve().parents[2] / "etc/libvirt/hooks/qemu.d/vfioapd"

# Links that tell of the matrix itself; what stands before and behind them has subjects of its own.
_OF_MATRIX = (Link.MASKS, Link.DRIVER, Link.MDEV, Link.MATRIX, Link.GUEST_MATRIX)
_ELSEWHERE = (Link.LPAR, Link.ADAPTER, Link.MODULE)


def examine(standing: Standing, *, runs: bool = True) -> DoctorAnswer:
    """Look the whole host over. ``runs``: the daemon does, and this is it. Blocks; raises nothing."""
    reports = diagnose(_Gathering(standing, runs=runs).facts())
    return DoctorAnswer(
        healthy=not any(one.severity is Severity.ERROR for report in reports for one in report.findings),
        subjects=[_subject(report) for report in reports],
    )


class _Gathering:
    """Reads each kind of fact by itself: one that cannot be read leaves the others to be judged."""

    def __init__(self, standing: Standing, *, runs: bool) -> None:
        self._standing = standing
        self._places = standing.places
        self._root = standing.places.root
        self._runs = runs
        self._unread: dict[Subject, str] = {}
        self._known_details: Mapping[Apqn, QueueDetail] | None = None

    def facts(self) -> HostFacts:
        """Everything."""
        desired = self._tried(Subject.HOST_FILE, self._standing.desired.applied, Desired())
        snapshot, no_bus = self._snapshot(desired)
        units = self._tried(Subject.UNITS, self._units, None)
        plain = HostFacts()
        return replace(
            plain,
            desired=desired,
            snapshot=snapshot,
            no_bus=no_bus,
            details=self._tried(Subject.QUEUES, lambda: self._details(desired, snapshot), {}),
            daemon=self._tried(Subject.DAEMON, self._daemon, plain.daemon),
            modules=self._tried(Subject.KERNEL, lambda: doctor_files.read_modules(self._root), plain.modules),
            boot=self._tried(Subject.MASKS, lambda: doctor_files.read_boot(self._root), plain.boot),
            host_file=self._tried(Subject.HOST_FILE, self._host_file, plain.host_file),
            matrices=self._tried(Subject.MATRICES, lambda: self._matrices(desired, snapshot), plain.matrices),
            mdevctl=self._tried(Subject.MDEVCTL, lambda: self._mdevctl(desired), plain.mdevctl),
            libvirt=self._tried(Subject.LIBVIRT, lambda: self._libvirt(snapshot, units), plain.libvirt),
            hook=self._tried(Subject.HOOK, self._hook, plain.hook),
            guests=self._tried(Subject.GUESTS, self._standing.host.guest_definitions, None),
            units=units,
            paths=self._tried(Subject.PERMISSIONS, self._paths, ()),
            libvirt_group=host_paths.has_group(),
            unread=self._unread,
        )

    def _tried(self, subject: Subject, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (VfioApError, OSError, ValueError, subprocess.SubprocessError) as error:
            logger.warning("doctor could not look at %s: %s", subject, error)
            self._unread[subject] = str(error)
            return otherwise

    def _snapshot(self, desired: Desired) -> tuple[Snapshot | None, str]:
        try:
            return self._standing.host.snapshot(desired), ""
        except Unavailable as error:
            return None, str(error)

    def _details(self, desired: Desired, snapshot: Snapshot | None) -> Mapping[Apqn, QueueDetail]:
        """Of the matrices' queues alone: a full host has thousands. Asked for twice, read once."""
        if self._known_details is None and snapshot is not None:
            wanted = {queue for one in desired.definitions for queue in one.matrix.queues()}
            some = tuple(one for one in snapshot.queues if one.queue in wanted)
            self._known_details = self._standing.host.details(replace(snapshot, queues=some))
        return self._known_details or {}

    def _daemon(self) -> doctor_facts.DaemonFacts:
        places = self._places
        state = next(one for one in (places.state, *places.state.parents) if one.is_dir())
        disk = os.statvfs(state)
        return doctor_facts.DaemonFacts(
            runs=self._runs,
            lock_holder=holder(places.lock),
            lock_seconds=_age(places.lock),
            state_folder=str(places.state),
            state_free=disk.f_bavail * disk.f_frsize,
            state_read_only=bool(disk.f_flag & os.ST_RDONLY),
        )

    def _host_file(self) -> doctor_facts.HostFileFacts:
        places, error = self._places, None
        try:
            self._standing.desired.read()
        except VfioApError as refused:
            error = (str(refused), refused.hint)
        return doctor_facts.HostFileFacts(
            path=str(places.host_file),
            error=error,
            edited=self._standing.desired.is_edited(),
            last_revision=self._standing.history.last(),
            waiting=read_wait(places.unconfirmed) is not None,
        )

    def _matrices(self, desired: Desired, snapshot: Snapshot | None) -> doctor_facts.MatrixFacts:
        standing = self._standing
        broken = {}
        if snapshot is not None:
            state = standing.desired.state_of(snapshot, desired)
            links = Facts(state, self._details(desired, snapshot), standing.amiss())
            answers = ((one.name, _broken(links, one.name)) for one in wishes.should_run(state))
            broken = {name: found for name, found in answers if found is not None}
        return doctor_facts.MatrixFacts(
            broken,
            removed=standing.removals.counts(),
            suspects=standing.removals.suspects(),
            not_restored=standing.failures.get(""),
            sweepers=host_programs.running_sweepers(self._root / "proc"),
        )

    def _mdevctl(self, desired: Desired) -> doctor_facts.MdevctlFacts:
        program = doctor_files.find_program(self._root, "mdevctl")
        failure = host_programs.complaint_of(program) if program else None
        found = read_folder(self._places.definitions)
        torn = [*found.torn, *doctor_files.torn_elsewhere(self._places.definitions)]
        return doctor_facts.MdevctlFacts(
            folder=str(self._places.definitions),
            installed=program is not None,
            failure=failure,
            missing_folders=doctor_files.missing_script_folders(self._root, failure or ""),
            definitions=found.definitions,
            torn=tuple((str(one.path), one.reason) for one in torn if one.stops_mdevctl),
            bad_values=tuple((str(one.path), one.reason) for one in found.torn if not one.stops_mdevctl),
            strays=doctor_files.strays(self._places.definitions),
            edited=self._standing.changes.edited_definitions(desired),
        )

    def _libvirt(
        self, snapshot: Snapshot | None, units: Mapping[str, UnitFacts] | None
    ) -> doctor_facts.LibvirtFacts:
        running = running_libvirt(self._root / "run", self._root / "proc")
        name = running[0] if running else libvirt_to_start(self._root)
        version, qemu = self._standing.host.libvirt_versions()
        return doctor_facts.LibvirtFacts(
            unit=f"{name}.service" if name else None,
            pid=running[1] if running else None,
            answers=snapshot is None or snapshot.guests is not None,
            version=version,
            qemu=qemu,
            started=host_programs.started_at(self._root / "proc", running[1]) if running else None,
            looked_for_hooks=self._looked(*running, units) if running else None,
        )

    def _looked(self, name: str, pid: int, units: Mapping[str, UnitFacts] | None) -> float | None:
        """libvirt looks at its start and at a reload, which systemd remembers as a change of state."""
        start = host_programs.started_at(self._root / "proc", pid)
        unit = (units or {}).get(f"{name}.service")
        return start if start is None or unit is None else max(start, unit.changed)

    def _hook(self) -> doctor_facts.HookFacts:
        originals = (*(self._root / name for name in SHIPPED_HOOKS), OWN_HOOK)
        found = host_paths.read_hook(self._places, originals)
        return replace(found, called=self._standing.hook_called)

    def _paths(self) -> tuple[doctor_facts.PathFacts, ...]:
        return host_paths.read_paths(self._places, daemon_runs=self._runs)

    def _units(self) -> Mapping[str, UnitFacts] | None:
        names = [*UNITS, *(f"{name}.service" for name in DAEMONS)]
        return host_programs.read_units(self._root, names)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:  # it may go at any time
        return 0.0


def _broken(links: Facts, name: str) -> doctor_facts.Broken | None:
    """The first link of a matrix's own that does not hold, unless its cause is another subject's."""
    for one in why(links, f"matrix:{name}").findings:
        if one.health is Health.BROKEN and one.link in _ELSEWHERE:
            return None
        if one.health is Health.BROKEN and one.link in _OF_MATRIX:
            return _with_mend(one.sentence, one.mend, f"see vfioapctl why {name}")
    return None


def _with_mend(cause: str, mend: Mend | None, otherwise: str) -> doctor_facts.Broken:
    if mend is None or mend.tool in (Tool.EDITOR, Tool.HMC):
        return doctor_facts.Broken(cause, advice=mend.text if mend else otherwise)
    return doctor_facts.Broken(cause, mend.text)


def _subject(report: Report) -> DoctorSubject:
    return DoctorSubject(
        subject=report.subject.value,
        state=report.state,
        looked_at=report.looked_at,
        findings=[_finding(one) for one in report.findings],
        unchecked=[str(one) for one in report.unchecked],
    )


def _finding(one: Finding) -> DoctorFinding:
    return DoctorFinding(
        code=one.code.value,
        severity=one.severity.value,
        sentence=one.sentence,
        consequence=one.consequence,
        command=one.command or None,
        advice=one.advice or None,
    )
