# SPDX-License-Identifier: Apache-2.0
"""All that ``vfioapctl doctor`` judges by. The defaults are a healthy host without a matrix."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vfioapd.domain.definition import Desired
from vfioapd.domain.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from vfioapd.domain.apqn import Apqn
    from vfioapd.domain.boot_masks import BootMasks
    from vfioapd.domain.snapshot import ForeignDefinition, QueueDetail
    from vfioapd.plan.doctor_finding import Subject


@dataclass(frozen=True, slots=True)
class DaemonFacts:
    """The daemon and what it needs to work."""

    runs: bool = True
    lock_holder: str | None = None  # another program that holds the AP configuration lock
    lock_seconds: float = 0.0  # for so long
    state_folder: str = "/var/lib/vfioapd"
    state_free: int = 1 << 30  # bytes
    state_read_only: bool = False


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """How vfio_ap comes to be loaded."""

    loaded_by: tuple[str, ...] = ("/usr/lib/modules-load.d/vfioapd.conf",)
    forbidden_by: tuple[str, ...] = ()  # files that keep it from being loaded


@dataclass(frozen=True, slots=True)
class BootFacts:
    """Who sets masks at boot, and where the kernel's command line is kept."""

    masks: tuple[BootMasks, ...] = ()
    configs: tuple[str, ...] = ()  # boot loader files with ap.apmask= or ap.aqmask=
    tools: frozenset[str] = frozenset()  # of grubby, zipl, update-grub, grub2-mkconfig, those that exist


@dataclass(frozen=True, slots=True)
class HostFileFacts:
    """host.toml as it stands on disk."""

    path: str = "/etc/vfioapd/host.toml"
    error: tuple[str, str | None] | None = None  # why it cannot be read, and the hint
    edited: bool = False
    last_revision: int | None = None
    waiting: bool = False  # a change has not been confirmed


@dataclass(frozen=True, slots=True)
class Broken:
    """What ``vfioapctl why`` says of a matrix."""

    cause: str
    command: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class MatrixFacts:
    """Matrices that should run and do not, and who may be to blame."""

    broken: Mapping[str, Broken] = field(default_factory=dict)
    removed: Mapping[str, int] = field(default_factory=dict)  # matrix: how often others removed its device
    suspects: Mapping[str, str] = field(default_factory=dict)  # matrix: who held the lock then
    not_restored: str | None = None  # why the daemon's start left the whole host as it was
    sweepers: tuple[str, ...] = ()  # programs that run here and remove devices they do not know


@dataclass(frozen=True, slots=True)
class MdevctlFacts:
    """mdevctl and its folder."""

    folder: str = "/etc/mdevctl.d/matrix"
    installed: bool = True
    failure: str | None = None  # what it says instead of its version
    missing_folders: tuple[str, ...] = ()  # without which it refuses to run
    definitions: Mapping[UUID, ForeignDefinition] = field(default_factory=dict)  # ours as well
    torn: tuple[tuple[str, str], ...] = ()  # files that stop mdevctl, and why
    bad_values: tuple[tuple[str, str], ...] = ()  # files whose values the kernel does not take
    strays: tuple[str, ...] = ()  # files that are no definitions
    edited: Mapping[str, str] = field(default_factory=dict)  # matrix: how its file differs from ours


@dataclass(frozen=True, slots=True)
class LibvirtFacts:
    """The libvirt daemon that runs QEMU guests."""

    unit: str | None = "libvirtd.service"  # None: there is none on this host
    pid: int | None = None  # None: it does not run, or sleeps
    answers: bool = True
    version: int | None = None  # as libvirt counts: 9000000 is 9.0.0
    qemu: int | None = None
    started: float | None = None  # seconds since the epoch; None: not known
    looked_for_hooks: float | None = None  # likewise


@dataclass(frozen=True, slots=True)
class HookFacts:
    """vfioapd's file among libvirt's hooks."""

    path: str = "/etc/libvirt/hooks/qemu.d/vfioapd"
    original: str | None = "/usr/share/vfioapd/hooks/vfioapd"  # None: no copy to compare with
    exists: bool = True
    executable: bool = True
    same: bool = True  # as the original
    changed: float = 0.0  # seconds since the epoch
    others_since: float | None = None  # since when another QEMU hook is there; libvirt then sees ours, too
    called: float | None = None  # when libvirt called it last, as far as the daemon knows


@dataclass(frozen=True, slots=True)
class HostdevFacts:
    """One vfio-ap device in a guest's definition."""

    uuid: UUID
    managed: bool = False


@dataclass(frozen=True, slots=True)
class GuestFacts:
    """A guest's definition, as far as it concerns AP."""

    name: str
    kind: str = "kvm"
    cpu_mode: str = "host-model"
    cpu_model: str = ""
    ap: str | None = None  # the policy of the CPU feature ap, None when it is not mentioned
    devices: tuple[HostdevFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What systemd says of a unit (systemctl show)."""

    load: str = "loaded"
    file: str = "enabled"
    active: str = "active"
    stale: bool = False  # its file has changed since systemd read it
    after: frozenset[str] = frozenset()
    changed: float = 0.0  # when it last changed its state, by a reload too; seconds since the epoch


@dataclass(frozen=True, slots=True)
class PathFacts:
    """A file or folder as it is and as it should be."""

    path: str
    mend: str  # makes it anew
    wanted_mode: int = 0o755
    wanted_group: str | None = None  # None: any
    exact: bool = False  # the mode must be this one; else it must not be more open to writers
    exists: bool = True
    mode: int = 0o755
    owner: str = "root"
    group: str = "root"


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One host. Without a snapshot there is no AP bus, without units no systemd."""

    desired: Desired = field(default_factory=Desired)
    snapshot: Snapshot | None = field(default_factory=Snapshot)
    details: Mapping[Apqn, QueueDetail] = field(default_factory=dict)
    daemon: DaemonFacts = field(default_factory=DaemonFacts)
    modules: ModuleFacts = field(default_factory=ModuleFacts)
    boot: BootFacts = field(default_factory=BootFacts)
    host_file: HostFileFacts = field(default_factory=HostFileFacts)
    matrices: MatrixFacts = field(default_factory=MatrixFacts)
    mdevctl: MdevctlFacts = field(default_factory=MdevctlFacts)
    libvirt: LibvirtFacts = field(default_factory=LibvirtFacts)
    hook: HookFacts = field(default_factory=HookFacts)
    guests: tuple[GuestFacts, ...] | None = ()
    units: Mapping[str, UnitFacts] | None = None
    paths: tuple[PathFacts, ...] = ()
    libvirt_group: bool = True
    no_bus: str = "this kernel shows no AP bus (/sys/bus/ap)"  # when there is no snapshot
    unread: Mapping[Subject, str] = field(default_factory=dict)  # what could not be looked at, and why
