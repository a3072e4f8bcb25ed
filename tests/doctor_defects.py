# SPDX-License-Identifier: Apache-2.0
"""A healthy host as doctor sees it, and one change for each defect that can be planted in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from vfioapd.domain.apqn import Apqn, parse_apqn
from vfioapd.domain.boot_masks import BootMasks, MaskSetter
from vfioapd.domain.definition import Binding, Definition, Desired
from vfioapd.domain.mask import FULL_MASK, HostMasks, Mask
from vfioapd.domain.matrix import EMPTY_MATRIX, matrix_of_queues
from vfioapd.domain.numbers import AdapterId, DomainId
from vfioapd.domain.snapshot import (
    ForeignDefinition,
    Guest,
    Kernel,
    Mdev,
    QueueDetail,
    QueueState,
    Snapshot,
)
from vfioapd.plan.doctor_facts import (
    BootFacts,
    Broken,
    GuestFacts,
    HostdevFacts,
    HostFacts,
    HostFileFacts,
    LibvirtFacts,
    MatrixFacts,
    MdevctlFacts,
    ModuleFacts,
    PathFacts,
    UnitFacts,
)
from vfioapd.plan.doctor_finding import Code
from vfioapd.plan.doctor_units import READY, SERVICE, UNITS

VAULT = UUID("825b3872-0001-0003-0011-28a403f8b357")
OTHER = UUID("11111111-2222-3333-4444-555555555555")
FOLDER = "/etc/mdevctl.d/matrix"
SOCKET = "/run/vfioapd/vfioapd.sock"
RULE = "/etc/udev/rules.d/41-ap.rules"
WORKING = QueueDetail(configured=True, checkstopped=False, online=None, status="assigned")

Change = Callable[[HostFacts], HostFacts]


def queues(text: str) -> list[Apqn]:
    return [parse_apqn(one) for one in text.split()]


DEFINITION = Definition("vault", VAULT, matrix_of_queues(queues("05.0011 07.0011")), guest="bastion")
MASKS = HostMasks(FULL_MASK - Mask.of([5, 7]), FULL_MASK)


def snapshot() -> Snapshot:
    """Eight adapters, two domains; 05 and 07 away from the host, and vault's device."""
    names = [Apqn(AdapterId(adapter), DomainId(domain)) for adapter in range(8) for domain in (13, 17)]
    return Snapshot(
        masks=MASKS,
        queues=tuple(QueueState(one, "cex4queue" if MASKS.owns(one) else "vfio_ap") for one in names),
        mdevs=(Mdev(VAULT, DEFINITION.matrix, frozenset(DEFINITION.matrix.queues()), in_use=False),),
        usage_domains=frozenset(map(DomainId, (13, 17))),
        guests=(Guest("bastion", OTHER, False, True, frozenset(), frozenset({VAULT})),),  # noqa: FBT003
    )


def healthy() -> HostFacts:
    enabled = {name: UnitFacts(after=frozenset({SERVICE, READY})) for name in (*UNITS, "libvirtd.service")}
    return HostFacts(
        desired=Desired(frozenset(queues("00.000d")), (DEFINITION,)),
        snapshot=snapshot(),
        details=dict.fromkeys(DEFINITION.matrix.queues(), WORKING),
        libvirt=LibvirtFacts(pid=7, version=9_000_000, qemu=7_002_000, looked_for_hooks=100.0),
        mdevctl=MdevctlFacts(
            definitions={VAULT: ForeignDefinition(VAULT, DEFINITION.matrix, starts_itself=False)}
        ),
        guests=(GuestFacts("bastion", devices=(HostdevFacts(VAULT),)),),
        units=enabled,
        paths=(
            PathFacts("/etc/vfioapd", "install -d /etc/vfioapd"),
            PathFacts(SOCKET, "", 0o660, "libvirt", exact=True, mode=0o660, group="libvirt"),
        ),
    )


def with_(**fields: object) -> Change:
    """The same host with these facts in place of its own."""
    return lambda facts: replace(facts, **fields)  # type: ignore[arg-type]


def within(name: str, **fields: object) -> Change:
    """The same host with these fields of one group of facts."""
    return lambda facts: replace(facts, **{name: replace(getattr(facts, name), **fields)})


def boot(setter: MaskSetter, **masks: object) -> Change:
    place = {MaskSetter.COMMAND_LINE: "/proc/cmdline", MaskSetter.MODPROBE: "/etc/modprobe.d/ap.conf"}
    return with_(boot=BootFacts((BootMasks(setter, place.get(setter, RULE), **masks),)))  # type: ignore[arg-type]


def unit(name: str, **fields: object) -> Change:
    def change(facts: HostFacts) -> HostFacts:
        assert facts.units is not None
        return replace(facts, units={**facts.units, name: replace(facts.units[name], **fields)})

    return change


def path(number: int, **fields: object) -> Change:
    def change(facts: HostFacts) -> HostFacts:
        paths = list(facts.paths)
        paths[number] = replace(paths[number], **fields)
        return replace(facts, paths=tuple(paths))

    return change


def guest(**fields: object) -> Change:
    return lambda facts: replace(facts, guests=tuple(replace(one, **fields) for one in facts.guests or ()))


def detail(**fields: bool) -> Change:
    return lambda facts: replace(
        facts, details={**facts.details, parse_apqn("05.0011"): replace(WORKING, **fields)}
    )


def foreign(text: str) -> Change:
    def change(facts: HostFacts) -> HostFacts:
        theirs = ForeignDefinition(OTHER, matrix_of_queues(queues(text)), starts_itself=True)
        known = {**facts.mdevctl.definitions, OTHER: theirs}
        return replace(facts, mdevctl=replace(facts.mdevctl, definitions=known))

    return change


def both(*changes: Change) -> Change:
    def change(facts: HostFacts) -> HostFacts:
        for one in changes:
            facts = one(facts)
        return facts

    return change


OURS = {VAULT: ForeignDefinition(VAULT, DEFINITION.matrix, starts_itself=False)}
OWN_AUTO = {VAULT: ForeignDefinition(VAULT, DEFINITION.matrix, starts_itself=True)}
BROKEN = {"vault": Broken("vault has no device", "vfioapctl start vault")}
WITHOUT_0 = FULL_MASK - Mask.of([0, 5, 7])
LACKING = ("/etc/mdevctl.d/scripts.d/callouts",)

# One change to a healthy host, and what doctor must say: the code and the command, empty for none.
DEFECTS: dict[str, tuple[Change, Code, str]] = {
    "dead daemon": (
        within("daemon", runs=False),
        Code.DAEMON_DEAD,
        "systemctl reset-failed vfioapd.service; systemctl restart vfioapd.service",
    ),
    "full disk": (within("daemon", state_free=4096), Code.STATE_FULL, ""),
    "read-only disk": (within("daemon", state_read_only=True), Code.STATE_FULL, ""),
    "held lock": (
        within("daemon", lock_holder="chzdev (PID 9)", lock_seconds=700.0),
        Code.LOCK_HELD,
        "",
    ),
    "no bus": (with_(snapshot=None), Code.AP_BUS_MISSING, "modprobe ap"),
    "no module": (
        within("snapshot", kernel=Kernel(vfio_ap=False)),
        Code.VFIO_AP_MISSING,
        "modprobe vfio_ap",
    ),
    "blacklisted module": (
        with_(modules=ModuleFacts(forbidden_by=("/etc/modprobe.d/hard.conf",))),
        Code.VFIO_AP_FORBIDDEN,
        "sed -i -E '/^[[:space:]]*(blacklist|install)[[:space:]]+vfio[-_]ap([[:space:]]|$)/s/^/#/'"
        " /etc/modprobe.d/hard.conf",
    ),
    "module blacklisted at the boot loader": (
        with_(modules=ModuleFacts(forbidden_by=("/proc/cmdline",))),
        Code.VFIO_AP_FORBIDDEN,
        "",
    ),
    "module not loaded at boot": (
        with_(modules=ModuleFacts(loaded_by=())),
        Code.VFIO_AP_NOT_AT_BOOT,
        "echo vfio_ap > /etc/modules-load.d/vfio_ap.conf",
    ),
    "queue not in the LPAR": (
        within("snapshot", queues=snapshot().queues[:-1]),
        Code.QUEUE_MISSING,
        "",
    ),
    "adapter on standby": (detail(configured=False), Code.QUEUE_DECONFIGURED, "chzcrypt --config-on card05"),
    "adapter checkstopped": (detail(checkstopped=True), Code.QUEUE_CHECKSTOPPED, ""),
    "queue without a driver": (
        within("snapshot", queues=(QueueState(parse_apqn("00.000d"), None), *snapshot().queues[1:])),
        Code.QUEUE_UNBOUND,
        "modprobe zcrypt_cex4",
    ),
    "kept queue away": (
        within("snapshot", masks=HostMasks(WITHOUT_0, FULL_MASK)),
        Code.KEEP_LOST,
        "echo +0 > /sys/bus/ap/apmask",
    ),
    "kept queue away, in a device's row": (
        both(
            within("snapshot", masks=HostMasks(WITHOUT_0, FULL_MASK)),
            within("desired", keep=frozenset(queues("05.000d"))),
        ),
        Code.KEEP_LOST,
        "",
    ),
    "chzdev gives back": (
        boot(MaskSetter.CHZDEV, apmask=FULL_MASK - Mask.of([5])),
        Code.CHZDEV_MASKS,
        "chzdev --type ap --persistent --remove-all",
    ),
    "chzdev takes a kept queue": (
        boot(MaskSetter.CHZDEV, apmask=WITHOUT_0),
        Code.CHZDEV_MASKS,
        "chzdev --type ap --persistent --remove-all",
    ),
    "a rule of somebody's": (
        boot(MaskSetter.UDEV_RULE, apmask=FULL_MASK),
        Code.UDEV_MASKS,
        rf"""sed -i -E '/ATTR\{{[^}}]*a[pq]mask\}}[[:space:]]*=[[:space:]]*"/s/^/#/' {RULE}"""
        " && udevadm control --reload",
    ),
    "command line takes a kept queue": (
        both(
            boot(MaskSetter.COMMAND_LINE, apmask=WITHOUT_0),
            within("boot", tools=frozenset({"grubby", "zipl"})),
        ),
        Code.KERNEL_MASKS,
        "grubby --update-kernel=ALL --remove-args='ap.apmask ap.aqmask'",
    ),
    "command line takes a kept queue, by zipl.conf": (
        both(
            boot(MaskSetter.COMMAND_LINE, apmask=WITHOUT_0),
            within("boot", configs=("/etc/zipl.conf",), tools=frozenset({"zipl"})),
        ),
        Code.KERNEL_MASKS,
        r"""sed -i -E "s/[[:space:]]*\bap\.a[pq]mask=[^[:space:]\"']*//g" /etc/zipl.conf && zipl""",
    ),
    "module options take a kept queue": (
        boot(MaskSetter.MODPROBE, apmask=WITHOUT_0),
        Code.MODPROBE_MASKS,
        "sed -i -E '/^options[[:space:]]+ap[[:space:]]/s/[[:space:]]a[pq]mask=[^[:space:]]*//g'"
        " /etc/modprobe.d/ap.conf",
    ),
    "chzdev frees what nobody wants": (
        boot(MaskSetter.CHZDEV, apmask=FULL_MASK - Mask.of([5, 6, 7])),
        Code.BOOT_MASKS_TOO_WIDE,
        "chzdev --type ap --persistent --remove-all",
    ),
    "masks against driver_override": (
        both(
            within("desired", binding=Binding.DRIVER_OVERRIDE),
            boot(MaskSetter.CHZDEV, apmask=FULL_MASK - Mask.of([5, 7])),
        ),
        Code.BOOT_MASKS_BLOCK,
        "chzdev --type ap --persistent --remove-all",
    ),
    "a rule that the kernel refuses": (
        boot(MaskSetter.CHZDEV, faults=("apmask: 'junk' is no mask",)),
        Code.BOOT_MASKS_UNREADABLE,
        "chzdev --type ap --persistent --remove-all",
    ),
    "bad host.toml": (
        with_(host_file=HostFileFacts(error=("/etc/vfioapd/host.toml:1: no", None), last_revision=4)),
        Code.HOST_FILE_BAD,
        "vfioapctl restore 4",
    ),
    "edited host.toml": (within("host_file", edited=True), Code.HOST_FILE_EDITED, "vfioapctl apply"),
    "waiting change": (within("host_file", waiting=True), Code.CHANGE_UNCONFIRMED, "vfioapctl confirm"),
    "host that could not be restored": (
        with_(matrices=MatrixFacts(not_restored="the lock is held")),
        Code.RESTORE_FAILED,
        "systemctl restart vfioapd.service",
    ),
    "broken matrix": (
        with_(matrices=MatrixFacts(BROKEN)),
        Code.MATRIX_BROKEN,
        "vfioapctl start vault",
    ),
    "swept matrix": (
        with_(matrices=MatrixFacts(BROKEN, {"vault": 1}, {"vault": "x (PID 3)"})),
        Code.MATRIX_SWEPT,
        "vfioapctl start vault",
    ),
    "matrix swept and mended, again and again": (
        with_(matrices=MatrixFacts({}, {"vault": 3}, sweepers=("KubeVirt's virt-handler (PID 3)",))),
        Code.MATRIX_SWEPT,
        "",
    ),
    "sweeper": (
        with_(matrices=MatrixFacts(sweepers=("KubeVirt's virt-handler (PID 3)",))),
        Code.SWEEPER_RUNS,
        "",
    ),
    "no mdevctl": (within("mdevctl", installed=False), Code.MDEVCTL_MISSING, ""),
    "mdevctl without its folders": (
        within("mdevctl", failure="no folder", missing_folders=LACKING),
        Code.MDEVCTL_BROKEN,
        "mkdir -p /etc/mdevctl.d/scripts.d/callouts",
    ),
    "torn definition": (
        within("mdevctl", torn=((f"{FOLDER}/{OTHER}", "is empty"),)),
        Code.MDEVCTL_TORN,
        f"mv {FOLDER}/{OTHER} /root/",
    ),
    "torn definition of ours": (
        within("mdevctl", torn=((f"{FOLDER}/{VAULT}", "is empty"),), definitions={}, edited={"vault": "x"}),
        Code.MDEVCTL_TORN,
        "vfioapctl apply",
    ),
    "value that the kernel refuses": (
        within("mdevctl", bad_values=((f"{FOLDER}/{OTHER}", "has a value '300'"),)),
        Code.MDEVCTL_BAD_VALUE,
        f"mv {FOLDER}/{OTHER} /root/",
    ),
    "stray file": (
        within("mdevctl", strays=(f"{FOLDER}/notes.txt",)),
        Code.MDEVCTL_STRAY,
        f"mv {FOLDER}/notes.txt /root/",
    ),
    "our definition on autostart": (
        within("mdevctl", definitions=OWN_AUTO, edited={"vault": "its definition was changed"}),
        Code.MDEVCTL_OWN_AUTO,
        "vfioapctl apply",
    ),
    "our definition edited": (
        within("mdevctl", edited={"vault": "its definition was changed"}),
        Code.MDEVCTL_OWN_EDITED,
        "vfioapctl apply",
    ),
    "foreign autostart with our queue": (
        foreign("05.0011"),
        Code.MDEVCTL_FOREIGN_CONFLICT,
        f"mdevctl modify -u {OTHER} --manual",
    ),
    "foreign autostart that cannot start": (
        foreign("06.0011"),
        Code.MDEVCTL_FOREIGN_AUTO,
        f"mdevctl modify -u {OTHER} --manual",
    ),
    "no libvirt": (
        both(with_(libvirt=LibvirtFacts(unit=None)), with_(guests=())),
        Code.LIBVIRT_MISSING,
        "",
    ),
    "silent libvirt": (
        within("libvirt", answers=False),
        Code.LIBVIRT_SILENT,
        "systemctl restart libvirtd.service",
    ),
    "old libvirt": (within("libvirt", version=7_000_000), Code.LIBVIRT_OLD, ""),
    "old QEMU": (within("libvirt", qemu=3_000_000), Code.QEMU_OLD, ""),
    "no hook": (
        within("hook", exists=False),
        Code.HOOK_MISSING,
        "install -D -m 755 /usr/share/vfioapd/hooks/vfioapd /etc/libvirt/hooks/qemu.d/vfioapd"
        " && systemctl reload libvirtd.service",
    ),
    "hook not executable": (
        within("hook", executable=False),
        Code.HOOK_NOT_EXECUTABLE,
        "chmod 755 /etc/libvirt/hooks/qemu.d/vfioapd && systemctl reload libvirtd.service",
    ),
    "altered hook": (
        within("hook", same=False),
        Code.HOOK_ALTERED,
        "install -m 755 /usr/share/vfioapd/hooks/vfioapd /etc/libvirt/hooks/qemu.d/vfioapd"
        " && systemctl reload libvirtd.service",
    ),
    "hook newer than libvirt's look": (
        within("hook", changed=200.0),
        Code.HOOK_UNSEEN,
        "systemctl reload libvirtd.service",
    ),
    "guest that nobody knows": (
        within("snapshot", guests=()),
        Code.GUEST_UNKNOWN,
        "",
    ),
    "guest without its device": (guest(devices=()), Code.GUEST_UNATTACHED, "vfioapctl attach vault bastion"),
    "second device": (
        both(
            guest(devices=(HostdevFacts(OTHER), HostdevFacts(VAULT))),
            within("mdevctl", definitions={**OURS, OTHER: ForeignDefinition(OTHER, EMPTY_MATRIX, False)}),  # noqa: FBT003
        ),
        Code.GUEST_TWO_DEVICES,
        "echo \"<hostdev mode='subsystem' type='mdev' model='vfio-ap'><source>"
        f"<address uuid='{OTHER}'/></source></hostdev>\" | virsh detach-device bastion /dev/stdin --config",
    ),
    "device that exists nowhere": (
        both(
            within("desired", definitions=(replace(DEFINITION, guest=None),)),
            guest(devices=(HostdevFacts(OTHER),)),
        ),
        Code.GUEST_DEVICE_GONE,
        "echo \"<hostdev mode='subsystem' type='mdev' model='vfio-ap'><source>"
        f"<address uuid='{OTHER}'/></source></hostdev>\" | virsh detach-device bastion /dev/stdin --config",
    ),
    "managed device": (
        guest(devices=(HostdevFacts(VAULT, managed=True),)),
        Code.GUEST_DEVICE_MANAGED,
        r"""VISUAL="sed -i -E \"/type='mdev'/s/managed='yes'/managed='no'/\"" virsh edit bastion""",
    ),
    "CPU with ap off": (
        guest(ap="disable", cpu_mode="custom"),
        Code.GUEST_AP_DISABLED,
        r"""VISUAL="sed -i -E \"/<feature /s/policy='(disable|forbid)' name='ap'/"""
        r"""policy='require' name='ap'/\"" virsh edit bastion""",
    ),
    "CPU model without ap": (
        guest(cpu_mode="custom", cpu_model="z14"),
        Code.GUEST_AP_UNSTATED,
        r"""VISUAL="sed -i -E \"/<cpu /,/<\/cpu>/s,</model>,</model><feature policy='require' name='ap'/>"""
        r"""<feature policy='require' name='apft'/>,\"" virsh edit bastion""",
    ),
    "no unit": (unit(SERVICE, load="not-found", file=""), Code.UNIT_MISSING, ""),
    "masked unit": (
        unit(SERVICE, load="masked"),
        Code.UNIT_MASKED,
        "systemctl unmask vfioapd.service && systemctl enable --now vfioapd.service",
    ),
    "disabled unit": (
        unit("vfioapd.socket", file="disabled"),
        Code.UNIT_DISABLED,
        "systemctl enable --now vfioapd.socket",
    ),
    "failed unit": (
        unit("vfioapd-ro.socket", active="failed"),
        Code.UNIT_FAILED,
        "systemctl reset-failed vfioapd-ro.socket; systemctl start vfioapd-ro.socket",
    ),
    "stale unit": (unit(READY, stale=True), Code.UNIT_STALE, "systemctl daemon-reload"),
    "libvirt before us": (
        unit("libvirtd.service", after=frozenset()),
        Code.ORDER_MISSING,
        f"systemctl revert {READY} && systemctl daemon-reload && systemctl enable --now {READY}",
    ),
    "no group": (with_(libvirt_group=False), Code.GROUP_MISSING, "groupadd --system libvirt"),
    "no folder": (path(0, exists=False), Code.PATH_MISSING, "install -d /etc/vfioapd"),
    "folder of somebody": (path(0, owner="eve"), Code.PATH_OWNER, "chown root /etc/vfioapd"),
    "folder that everybody writes": (path(0, mode=0o777), Code.PATH_OPEN, "chmod go-w /etc/vfioapd"),
    "folder that a group writes": (
        path(0, mode=0o775, group="users"),
        Code.PATH_OPEN,
        "chmod go-w /etc/vfioapd",
    ),
    "open socket": (
        path(1, mode=0o666),
        Code.SOCKET_MODE,
        "chgrp libvirt /run/vfioapd/vfioapd.sock && chmod 660 /run/vfioapd/vfioapd.sock",
    ),
    "socket of root's group": (
        path(1, group="root"),
        Code.SOCKET_MODE,
        "chgrp libvirt /run/vfioapd/vfioapd.sock && chmod 660 /run/vfioapd/vfioapd.sock",
    ),
}


# What looks like a defect and is none.
SOUND: dict[str, Change] = {
    "chzdev agrees": boot(MaskSetter.CHZDEV, apmask=MASKS.apmask),
    "chzdev sets one mask, and the queues are away by the other": both(
        boot(MaskSetter.CHZDEV, apmask=FULL_MASK),
        within("snapshot", masks=HostMasks(FULL_MASK, FULL_MASK - Mask.of([17]))),
    ),
    "command line agrees": boot(MaskSetter.COMMAND_LINE, apmask=MASKS.apmask),
    "command line leaves all to the host, as a kernel without it": boot(
        MaskSetter.COMMAND_LINE, apmask=FULL_MASK, aqmask=FULL_MASK
    ),
    "lock held for the length of a change": within("daemon", lock_holder="chzdev (PID 9)", lock_seconds=5.0),
    "foreign autostart whose queues are free at boot": both(
        foreign("06.0011"), boot(MaskSetter.COMMAND_LINE, apmask=FULL_MASK - Mask.of([5, 6, 7]))
    ),
    "device once removed and back again": with_(matrices=MatrixFacts({}, {"vault": 1})),
    "folder that root's group may write": path(0, mode=0o775),
    "folder more closed than needed": path(0, mode=0o700),
    "hook newer than libvirt's look, beside an older one": within("hook", changed=200.0, others_since=50.0),
    "hook changed after libvirt's look, and called since libvirt's start": both(
        within("hook", changed=200.0, called=150.0), within("libvirt", started=100.0)
    ),
    "libvirt asleep": both(within("libvirt", pid=None, looked_for_hooks=None), within("hook", changed=200.0)),
    "CPU model that names ap": guest(cpu_mode="custom", cpu_model="z14", ap="require"),
    "CPU model of an emulated guest": guest(kind="qemu", cpu_mode="custom", cpu_model="qemu"),
    "guest without a matrix and without AP": lambda facts: replace(
        facts, guests=(*(facts.guests or ()), GuestFacts("web", ap="disable"))
    ),
    "modular libvirt": lambda facts: replace(
        facts,
        libvirt=replace(facts.libvirt, unit="virtqemud.service"),
        units={**(facts.units or {}), "virtqemud.service": UnitFacts(after=frozenset({READY}))},
    ),
}
