# SPDX-License-Identifier: Apache-2.0
"""``vfioapctl doctor``: facts of the whole host in, defects out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vfioapd.plan import (
    doctor_files,
    doctor_guests,
    doctor_kernel,
    doctor_libvirt,
    doctor_masks,
    doctor_units,
)
from vfioapd.plan.doctor_facts import HostFacts
from vfioapd.plan.doctor_finding import Finding, Report, Subject, Unchecked

if TYPE_CHECKING:
    from collections.abc import Iterable

Check = Callable[[HostFacts], "Iterator[Finding | Unchecked] | Iterator[Finding]"]

# Each subject: what an admin is told was looked at, and the checks.
SUBJECTS: dict[Subject, tuple[str, tuple[Check, ...]]] = {
    Subject.DAEMON: (
        "answers, can write its state, nobody blocks the AP configuration",
        (doctor_units.daemon, doctor_units.state, doctor_units.lock),
    ),
    Subject.KERNEL: (
        "AP bus, vfio_ap now and after a boot",
        (doctor_kernel.bus, doctor_kernel.module, doctor_kernel.module_at_boot),
    ),
    Subject.QUEUES: (
        "in this LPAR, configured, working, with a driver",
        (doctor_kernel.present, doctor_kernel.usable, doctor_kernel.bound),
    ),
    Subject.MASKS: (
        "kept queues, chzdev, udev rules, module options, kernel command line",
        (
            doctor_masks.keep_lost,
            doctor_masks.two_masters,
            doctor_masks.blocking,
            doctor_masks.too_wide,
            doctor_masks.unreadable,
        ),
    ),
    Subject.HOST_FILE: (
        "can be read, is in force",
        (doctor_files.host_file, doctor_files.unconfirmed),
    ),
    Subject.MATRICES: (
        "as defined, left alone by others",
        (doctor_units.matrices, doctor_units.sweepers),
    ),
    Subject.MDEVCTL: (
        "runs, every file of its folder, nobody's autostart against ours",
        (
            doctor_files.mdevctl,
            doctor_files.folder,
            doctor_files.own_definitions,
            doctor_files.foreign_definitions,
        ),
    ),
    Subject.LIBVIRT: ("answers, versions", (doctor_libvirt.libvirt, doctor_libvirt.versions)),
    Subject.HOOK: (
        "installed, executable, ours, seen by libvirt",
        (doctor_libvirt.hook, doctor_libvirt.hook_seen),
    ),
    Subject.GUESTS: (
        "devices in their definitions, CPUs with AP",
        (
            doctor_guests.wanted,
            doctor_guests.devices,
            doctor_guests.managed,
            doctor_guests.cpus,
        ),
    ),
    Subject.UNITS: (
        "enabled, not failed, libvirt after vfioapd",
        (doctor_units.units, doctor_units.order),
    ),
    Subject.PERMISSIONS: (
        "group libvirt, folders, sockets, hook",
        (doctor_files.group, doctor_files.paths),
    ),
}


def diagnose(facts: HostFacts) -> tuple[Report, ...]:
    """Look at every subject; one report each, in the order in which they are shown."""
    return tuple(_report(subject, text, checks, facts) for subject, (text, checks) in SUBJECTS.items())


def _report(subject: Subject, text: str, checks: Iterable[Check], facts: HostFacts) -> Report:
    said = [one for check in checks for one in check(facts)]
    findings = tuple(one for one in said if isinstance(one, Finding))
    unchecked = [one for one in said if isinstance(one, Unchecked)]
    if subject in facts.unread:
        unchecked.append(Unchecked(subject.value, facts.unread[subject]))
    return Report(subject, text + _aside(subject, facts), findings, tuple(unchecked))


def _aside(subject: Subject, facts: HostFacts) -> str:
    """What is no defect, and yet more than an admin may know of."""
    if subject is not Subject.MDEVCTL or Subject.HOST_FILE in facts.unread:
        return ""
    others = doctor_files.others(facts)
    return f"; not ours: {others} (look: vfioapctl adopt)" if others else ""
