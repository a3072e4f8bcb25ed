# SPDX-License-Identifier: Apache-2.0
"""What ``vfioapctl doctor`` says: stable codes, and findings with cause, consequence and mend."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Subject(StrEnum):
    """What is looked at, in the order in which it is shown."""

    DAEMON = "daemon"
    KERNEL = "kernel"
    QUEUES = "queues"
    MASKS = "masks"
    HOST_FILE = "host.toml"
    MATRICES = "matrices"
    MDEVCTL = "mdevctl"
    LIBVIRT = "libvirt"
    HOOK = "hook"
    GUESTS = "guests"
    UNITS = "units"
    PERMISSIONS = "permissions"


class Severity(StrEnum):
    """An error keeps a guest from its queues, now or after the next boot; a warning may."""

    ERROR = "error"
    WARNING = "warning"


class Code(StrEnum):
    """Every defect that is known. docs/doctor.md explains each."""

    DAEMON_DEAD = "daemon-dead"
    STATE_FULL = "state-full"
    LOCK_HELD = "lock-held"
    AP_BUS_MISSING = "ap-bus-missing"
    VFIO_AP_MISSING = "vfio-ap-missing"
    VFIO_AP_FORBIDDEN = "vfio-ap-forbidden"
    VFIO_AP_NOT_AT_BOOT = "vfio-ap-not-at-boot"
    QUEUE_MISSING = "queue-missing"
    QUEUE_DECONFIGURED = "queue-deconfigured"
    QUEUE_CHECKSTOPPED = "queue-checkstopped"
    QUEUE_UNBOUND = "queue-unbound"
    KEEP_LOST = "keep-lost"
    CHZDEV_MASKS = "chzdev-masks"
    UDEV_MASKS = "udev-masks"
    KERNEL_MASKS = "kernel-masks"
    MODPROBE_MASKS = "modprobe-masks"
    BOOT_MASKS_TOO_WIDE = "boot-masks-too-wide"
    BOOT_MASKS_BLOCK = "boot-masks-block"
    BOOT_MASKS_UNREADABLE = "boot-masks-unreadable"
    HOST_FILE_BAD = "host-file-bad"
    HOST_FILE_EDITED = "host-file-edited"
    CHANGE_UNCONFIRMED = "change-unconfirmed"
    RESTORE_FAILED = "restore-failed"
    MATRIX_BROKEN = "matrix-broken"
    MATRIX_SWEPT = "matrix-swept"
    SWEEPER_RUNS = "sweeper-runs"
    MDEVCTL_MISSING = "mdevctl-missing"
    MDEVCTL_BROKEN = "mdevctl-broken"
    MDEVCTL_TORN = "mdevctl-torn"
    MDEVCTL_BAD_VALUE = "mdevctl-bad-value"
    MDEVCTL_STRAY = "mdevctl-stray"
    MDEVCTL_OWN_AUTO = "mdevctl-own-auto"
    MDEVCTL_OWN_EDITED = "mdevctl-own-edited"
    MDEVCTL_FOREIGN_CONFLICT = "mdevctl-foreign-conflict"
    MDEVCTL_FOREIGN_AUTO = "mdevctl-foreign-auto"
    LIBVIRT_MISSING = "libvirt-missing"
    LIBVIRT_SILENT = "libvirt-silent"
    LIBVIRT_OLD = "libvirt-old"
    QEMU_OLD = "qemu-old"
    HOOK_MISSING = "hook-missing"
    HOOK_NOT_EXECUTABLE = "hook-not-executable"
    HOOK_ALTERED = "hook-altered"
    HOOK_UNSEEN = "hook-unseen"
    GUEST_UNKNOWN = "guest-unknown"
    GUEST_UNATTACHED = "guest-unattached"
    GUEST_TWO_DEVICES = "guest-two-devices"
    GUEST_DEVICE_GONE = "guest-device-gone"
    GUEST_DEVICE_MANAGED = "guest-device-managed"
    GUEST_AP_DISABLED = "guest-ap-disabled"
    GUEST_AP_UNSTATED = "guest-ap-unstated"
    UNIT_MISSING = "unit-missing"
    UNIT_MASKED = "unit-masked"
    UNIT_DISABLED = "unit-disabled"
    UNIT_FAILED = "unit-failed"
    UNIT_STALE = "unit-stale"
    ORDER_MISSING = "order-missing"
    GROUP_MISSING = "group-missing"
    PATH_MISSING = "path-missing"
    PATH_OWNER = "path-owner"
    PATH_OPEN = "path-open"
    SOCKET_MODE = "socket-mode"


WARNINGS = frozenset(
    {
        Code.LOCK_HELD,
        Code.QUEUE_MISSING,
        Code.QUEUE_UNBOUND,
        Code.BOOT_MASKS_TOO_WIDE,
        Code.HOST_FILE_EDITED,
        Code.CHANGE_UNCONFIRMED,
        Code.SWEEPER_RUNS,
        Code.MDEVCTL_MISSING,
        Code.MDEVCTL_BAD_VALUE,
        Code.MDEVCTL_STRAY,
        Code.MDEVCTL_OWN_EDITED,
        Code.MDEVCTL_FOREIGN_AUTO,
        Code.LIBVIRT_MISSING,
        Code.LIBVIRT_OLD,
        Code.HOOK_ALTERED,
        Code.GUEST_UNKNOWN,
        Code.GUEST_DEVICE_MANAGED,
        Code.GUEST_AP_UNSTATED,
        Code.UNIT_STALE,
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect. ``command`` mends it and runs as it stands; where none can, ``advice`` says what to do."""

    code: Code
    sentence: str  # the object and the cause
    consequence: str
    command: str = ""
    advice: str = ""

    @property
    def severity(self) -> Severity:
        """How bad it is; the same for every finding of a code."""
        return Severity.WARNING if self.code in WARNINGS else Severity.ERROR


@dataclass(frozen=True, slots=True)
class Unchecked:
    """What could not be looked at, and why: said rather than left out."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(frozen=True, slots=True)
class Report:
    """What came of one subject."""

    subject: Subject
    looked_at: str
    findings: tuple[Finding, ...] = ()
    unchecked: tuple[Unchecked, ...] = ()

    @property
    def state(self) -> str:
        """The worst that was found: error, warning, unchecked when nothing could be looked at, else ok."""
        severities = {one.severity for one in self.findings}
        for severity in Severity:
            if severity in severities:
                return severity.value
        return "unchecked" if self.unchecked else "ok"
