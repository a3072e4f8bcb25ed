# SPDX-License-Identifier: Apache-2.0
"""What travels over the sockets. ``--json`` prints these records as they are: names are stable.

Queues are text as the kernel prints them (05.0011), adapters and domains are numbers, UUIDs are lower
case, masks are the kernel's 0x and 64 digits.
"""

# No postponed annotations here: asyncvarlink reads the types of these fields at run time.
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """How a change is to be made; every field may be left out."""

    reason: str | None  # for the history, in the admin's words
    disrupt: bool | None  # take queues even if they are in use or kept
    dry_run: bool | None  # plan only
    confirm_within: int | None  # seconds; Apply and Restore alone


@dataclass(frozen=True, slots=True)
class GuestChange:
    """What a change means for one guest."""

    guest: str
    gains: list[str]
    keeps: list[str]
    loses: list[str]


@dataclass(frozen=True, slots=True)
class Change:
    """A change that was made, or that was only planned. No steps: there is nothing to do."""

    name: str  # the command it came from, such as: define bastion
    made: bool  # false: it was only planned
    steps: list[str]  # one line each, in order
    guests: list[GuestChange]
    handed_over: list[str]  # queues that leave the host because they were asked for
    collateral: list[str]  # queues that leave the host with them
    returned: list[str]  # queues that come back to the host
    victims: list[str]  # who loses queues that are in use or kept; made only with --disrupt
    least: bool  # no choice of masks has less collateral
    confirm_within: int | None  # seconds after which it is taken back unless confirmed


@dataclass(frozen=True, slots=True)
class RevisionRow:
    """One host.toml that was in force."""

    number: int
    time: str | None  # ISO 8601, UTC
    user: str | None  # name or uid of who asked
    program: str | None  # and by which program
    reason: str
    steps: list[str]


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """One matrix, ours or found on the host."""

    name: str  # empty for a device that vfioapd did not define
    uuid: str
    adapters: list[int]
    domains: list[int]
    control_domains: list[int]
    queues: list[str]
    start: str  # auto or manual; empty for a device that vfioapd did not define
    require: str  # all, any or none; empty likewise
    state: str  # stopped, started, in-use, failed
    guest: str | None  # the guest it is defined for
    live: str | None  # the running guest that has it
    config: list[str]  # guests whose definition has it
    guest_matrix: list[str] | None  # queues the guest gets; None: not started, or too many to read
    problem: str | None  # why it is not as desired


@dataclass(frozen=True, slots=True)
class AdoptedRow:
    """A device or definition of somebody else's as the matrix that it becomes."""

    name: str
    uuid: str
    adapters: list[int]
    domains: list[int]
    control_domains: list[int]
    queues: list[str]
    start: str  # auto: it is active now; manual: it is not
    guest: str | None  # only where the guest has it for good


@dataclass(frozen=True, slots=True)
class MisfitRow:
    """Something on the host that does not fit."""

    code: str
    sentence: str
    hint: str
    uuid: str | None  # of the device that it is about
    left: bool  # for this the device is left as it is and not adopted


@dataclass(frozen=True, slots=True)
class Adoption:
    """What an existing host brings along."""

    ours: list[str]  # names of matrices that are vfioapd's already
    matrices: list[AdoptedRow]
    findings: list[MisfitRow]
    change: Change  # what was done about it or would be


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue of the host."""

    queue: str
    adapter: int
    domain: int
    type: str
    mode: str
    state: str  # online, offline, deconfigured, checkstopped, unassigned, assigned, in use, unknown
    driver: str | None
    owner: str  # host, free, a matrix's name, or mdev UUID
    guest: str | None
    keep: bool


@dataclass(frozen=True, slots=True)
class HostStatus:
    """The host at a glance."""

    version: str
    host_file: str
    libvirt: bool
    vfio_ap: bool
    ap_config: bool
    complete: bool
    apmask: str
    aqmask: str
    keep: list[str]
    queues_total: int
    queues_host: int
    queues_free: int
    queues_guests: int
    matrices: list[MatrixRow]
    foreign: list[MatrixRow]
    problems: list[str]


@dataclass(frozen=True, slots=True)
class EventRow:
    """One thing that happened on the host."""

    number: int  # counted from the daemon's start; 0: stands for events that were lost
    time: str  # UTC, ISO 8601
    kind: str  # uevent, guest, change, hook, drift, daemon, lost
    text: str  # one line


@dataclass(frozen=True, slots=True)
class WhyLink:
    """One link of the chain from the LPAR to the guest."""

    link: str  # definition, lpar, adapter, module, masks, driver, mdev, matrix, guest_matrix, hostdev, guest
    health: str  # ok, broken, unknown
    sentence: str


@dataclass(frozen=True, slots=True)
class WhyAnswer:
    """Why a queue, a matrix or a guest is not as wanted."""

    subject: str  # queue 05.0011, matrix vault or guest bastion
    links: list[WhyLink]
    broken: str | None  # the first broken link; null: none is known to be broken
    cause: str | None  # the sentence of that link
    mend: str | None  # what mends it; null: nothing that could be written as a command
    mend_with: str | None  # vfioapctl or shell: a command line; editor, HMC: an action in words


@dataclass(frozen=True, slots=True)
class DoctorFinding:
    """One defect of the host."""

    code: str  # stable; docs/doctor.md lists them
    severity: str  # error or warning
    sentence: str  # the object and the cause
    consequence: str
    command: str | None  # mends it, and runs as it stands; null: no command does
    advice: str | None  # what else there is to do


@dataclass(frozen=True, slots=True)
class DoctorSubject:
    """One part of the host and what came of looking at it."""

    subject: str
    state: str  # ok, warning, error; unchecked: nothing could be looked at
    looked_at: str
    findings: list[DoctorFinding]
    unchecked: list[str]  # what could not be looked at, and why


@dataclass(frozen=True, slots=True)
class DoctorAnswer:
    """The whole host."""

    healthy: bool  # no error was found
    subjects: list[DoctorSubject]
