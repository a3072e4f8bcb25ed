# SPDX-License-Identifier: Apache-2.0
"""What doctor says of the daemon, its units, and the matrices that should run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.plan.doctor_finding import Code, Finding, Unchecked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.plan.doctor_facts import HostFacts

SERVICE, READY = "vfioapd.service", "vfioapd-ready.target"
UNITS = (SERVICE, "vfioapd.socket", "vfioapd-ro.socket", READY)
LOCK_SECONDS = 120.0  # no change of masks takes so long
STATE_NEEDED = 4 << 20  # bytes for a journal and a revision of the largest host.toml


def daemon(facts: HostFacts) -> Iterator[Finding]:
    """First of all, as everything else depends on it."""
    if facts.daemon.runs:
        return
    start = f"systemctl reset-failed {SERVICE}; systemctl restart {SERVICE}"  # it may be there and hang
    yield Finding(
        Code.DAEMON_DEAD,
        "vfioapd does not answer",
        "guests keep the queues that they have; nothing is made true, mended or refused",
        start if facts.units is not None else "",
        "why it ended: journalctl -u vfioapd -n 50" if facts.units is not None else "start vfioapd",
    )


def state(facts: HostFacts) -> Iterator[Finding]:
    """A change is written down before it is made."""
    found = facts.daemon
    if found.state_read_only or found.state_free < STATE_NEEDED:
        what = "is read-only" if found.state_read_only else f"has {found.state_free >> 10} KiB left"
        yield Finding(
            Code.STATE_FULL,
            f"the file system of {found.state_folder} {what}",
            "no change can be journalled, so none is made",
            advice="mount it writable" if found.state_read_only else "make room there",
        )


def lock(facts: HostFacts) -> Iterator[Finding]:
    """s390-tools' lock, held too long to be a change."""
    if facts.daemon.lock_holder is not None and facts.daemon.lock_seconds > LOCK_SECONDS:
        yield Finding(
            Code.LOCK_HELD,
            f"{facts.daemon.lock_holder} has held the AP configuration lock for"
            f" {facts.daemon.lock_seconds:.0f} s",
            "no change of vfioapd, chzdev or mdevctl is made meanwhile",
            advice=f"see what it waits for; {facts.daemon.lock_holder} must end or give the lock back",
        )


def matrices(facts: HostFacts) -> Iterator[Finding]:
    """What should run and does not; a device that others removed is told with their names."""
    found, swept = facts.matrices, _swept_names(facts)
    if found.not_restored is not None:
        yield Finding(
            Code.RESTORE_FAILED,
            f"vfioapd could not restore the host when it started: {found.not_restored}",
            "matrices may be missing, and what is there may not be as defined",
            f"systemctl restart {SERVICE}" if facts.units is not None else "",
            "" if facts.units is not None else "mend the cause, then start vfioapd again",
        )
    for name in sorted({*found.broken, *swept}):
        if name in swept:
            yield _swept(facts, name)
        else:
            broken = found.broken[name]
            yield Finding(
                Code.MATRIX_BROKEN,
                f"matrix {name} is not as defined: {broken.cause}",
                "its guest does not get all of its queues",
                broken.command,
                broken.advice,
            )


def sweepers(facts: HostFacts) -> Iterator[Finding]:
    """Said before they strike."""
    if facts.matrices.sweepers and facts.desired.definitions and not _swept_names(facts):
        yield Finding(
            Code.SWEEPER_RUNS,
            f"{', '.join(facts.matrices.sweepers)} runs here and may remove devices that it did not make",
            "matrices may lose their devices while no guest uses them",
            advice=_restrain(facts),
        )


def units(facts: HostFacts) -> Iterator[Finding | Unchecked]:
    """Each unit by itself: there, enabled, not failed."""
    if facts.units is None:
        yield Unchecked("units", "no systemd here")
        return
    for name in UNITS:
        yield from _unit(facts, name)


def order(facts: HostFacts) -> Iterator[Finding]:
    """libvirt starts guests after the queues are there, or not at all."""
    libvirt = facts.libvirt.unit
    if facts.units is None or libvirt is None or libvirt not in facts.units or not _is_usable(facts, READY):
        return
    for later, earlier in ((READY, SERVICE), (libvirt, READY)):
        if earlier not in facts.units[later].after:
            yield Finding(
                Code.ORDER_MISSING,
                f"{later} is not ordered after {earlier}",
                "at boot libvirt may start guests before their queues are there",
                f"systemctl revert {READY} && systemctl daemon-reload && systemctl enable --now {READY}",
            )


def _unit(facts: HostFacts, name: str) -> Iterator[Finding]:
    assert facts.units is not None
    unit = facts.units[name]
    if unit.load == "not-found":
        mend = "install the package vfioapd again"
        yield Finding(Code.UNIT_MISSING, f"systemd has no unit {name}", _without(name), advice=mend)
    elif unit.load == "masked":
        mend = f"systemctl unmask {name} && systemctl enable --now {name}"
        yield Finding(Code.UNIT_MASKED, f"the unit {name} is masked", _without(name), mend)
    elif unit.file in ("disabled", "linked"):
        mend = f"systemctl enable --now {name}"
        yield Finding(Code.UNIT_DISABLED, f"the unit {name} is disabled", _without(name), mend)
    elif unit.active == "failed":
        mend = f"systemctl reset-failed {name}; systemctl start {name}"
        why = f"why: journalctl -u {name} -n 50"
        yield Finding(Code.UNIT_FAILED, f"the unit {name} has failed", _without(name), mend, why)
    if unit.stale:
        consequence = "what stands in it takes effect at the next boot at the earliest"
        sentence = f"the file of {name} has changed since systemd read it"
        yield Finding(Code.UNIT_STALE, sentence, consequence, "systemctl daemon-reload")


def _without(name: str) -> str:
    if name.endswith(".socket"):
        return "vfioapctl and libvirt's hook reach the daemon only while it runs"
    if name == READY:
        return "at boot libvirt may start guests before their queues are there"
    return "after the next boot guests have no queues"


def _is_usable(facts: HostFacts, name: str) -> bool:
    unit = (facts.units or {}).get(name)
    return unit is not None and unit.load == "loaded" and unit.file not in ("disabled", "linked")


def _swept_names(facts: HostFacts) -> set[str]:
    """Gone now, or removed so often that it is no accident."""
    found = facts.matrices
    return {name for name, count in found.removed.items() if count > 1 or name in found.broken}


def _swept(facts: HostFacts, name: str) -> Finding:
    count = facts.matrices.removed[name]
    often = "once" if count == 1 else f"{count} times"
    suspect = facts.matrices.suspects.get(name)
    names = [*facts.matrices.sweepers, *([suspect] if suspect else [])]
    by = f"; {', '.join(names)} runs here" if names else ""
    is_gone = name in facts.matrices.broken
    return Finding(
        Code.MATRIX_SWEPT,
        f"the device of matrix {name} was removed {often} by another program within the last hour{by}",
        "its guest does not start" if is_gone else "it will be gone again, and its guest does not start then",
        f"vfioapctl start {name}" if is_gone else "",
        _restrain(facts),
    )


def _restrain(facts: HostFacts) -> str:
    if any("KubeVirt" in one for one in facts.matrices.sweepers):
        setting = "spec.configuration.mediatedDevicesConfiguration.enabled: false"
        return f"have KubeVirt leave devices alone ({setting}; before that the gate DisableMDEVConfiguration)"
    return "find who writes to /sys/bus/mdev/devices/*/remove (vfioapctl events --kind drift tells when)"
