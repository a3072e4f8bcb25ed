# SPDX-License-Identifier: Apache-2.0
"""What doctor says of host.toml, of mdevctl and its folder, and of who may write what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.domain.apqn import format_apqns
from vfioapd.domain.queue_set import QueueSet
from vfioapd.plan.doctor_finding import Code, Finding
from vfioapd.plan.doctor_masks import masks_at_boot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.domain.snapshot import ForeignDefinition
    from vfioapd.plan.doctor_facts import HostFacts, PathFacts

_BLIND = "while it is there mdevctl and libvirt see no definition at all"


def host_file(facts: HostFacts) -> Iterator[Finding]:
    """A file that cannot be read, or that is not in force."""
    file = facts.host_file
    if file.error is not None:
        sentence, hint = file.error
        command = f"vfioapctl restore {file.last_revision}" if file.last_revision else ""
        yield Finding(
            Code.HOST_FILE_BAD,
            sentence,
            "no command changes anything before it can be read; the last good version stays in force",
            command,
            hint or f"correct {file.path}, then run: vfioapctl apply",
        )
    elif file.edited:
        yield Finding(
            Code.HOST_FILE_EDITED,
            f"{file.path} was edited and the edit is not in force",
            "commands that change something are refused, and the next boot puts it in force unseen",
            "vfioapctl apply",
            "look first: vfioapctl plan",
        )


def unconfirmed(facts: HostFacts) -> Iterator[Finding]:
    """A change on trial."""
    if facts.host_file.waiting:
        yield Finding(
            Code.CHANGE_UNCONFIRMED,
            "the last change was made on trial and is not confirmed",
            "it goes back by itself, and until then other changes are refused",
            "vfioapctl confirm",
        )


def mdevctl(facts: HostFacts) -> Iterator[Finding]:
    """The program itself."""
    found = facts.mdevctl
    if not found.installed:
        yield Finding(
            Code.MDEVCTL_MISSING,
            "mdevctl is not installed",
            "matrices work, but virsh nodedev-list --inactive does not show them",
            advice="install the package mdevctl",
        )
    elif found.failure is not None:
        yield Finding(
            Code.MDEVCTL_BROKEN,
            f"mdevctl does not run: {found.failure}",
            "libvirt shows no definition of a matrix, and starts no node device",
            f"mkdir -p {' '.join(found.missing_folders)}" if found.missing_folders else "",
            "" if found.missing_folders else "install the package mdevctl again",
        )


def folder(facts: HostFacts) -> Iterator[Finding]:
    """Files that mdevctl, or the kernel behind it, does not take."""
    ours = {f"{facts.mdevctl.folder}/{one.uuid}" for one in facts.desired.definitions}
    for path, why in facts.mdevctl.torn:
        mend = "vfioapctl apply" if path in ours else f"mv {path} /root/"
        yield Finding(Code.MDEVCTL_TORN, f"{path} is torn: it {why}", _BLIND, mend)
    for path, why in facts.mdevctl.bad_values:
        mend = "vfioapctl apply" if path in ours else f"mv {path} /root/"
        consequence = "mdevctl shows the device and cannot start it"
        yield Finding(Code.MDEVCTL_BAD_VALUE, f"{path} {why}", consequence, mend)
    for path in facts.mdevctl.strays:
        yield Finding(
            Code.MDEVCTL_STRAY,
            f"{path} is no definition: its name is no UUID",
            "mdevctl complains of it at each call, and libvirt logs that",
            f"mv {path} /root/",
        )


def own_definitions(facts: HostFacts) -> Iterator[Finding]:
    """Ours must be start: manual, to the letter as we wrote them."""
    if facts.mdevctl.folder in {one.path for one in facts.paths if not one.exists}:
        return  # told as a path that is not there
    torn = {path for path, _ in (*facts.mdevctl.torn, *facts.mdevctl.bad_values)}
    for definition in facts.desired.definitions:
        path = f"{facts.mdevctl.folder}/{definition.uuid}"
        found = facts.mdevctl.definitions.get(definition.uuid)
        if found is not None and found.starts_itself:
            yield Finding(
                Code.MDEVCTL_OWN_AUTO,
                f"{path} of {definition} has start: auto, so that mdevctl starts it as well",
                "at boot mdevctl and vfioapd make the same device; mdevctl may come before the masks are set",
                "vfioapctl apply",
            )
        elif definition.name in facts.mdevctl.edited and path not in torn:
            yield Finding(
                Code.MDEVCTL_OWN_EDITED,
                f"{definition}: {facts.mdevctl.edited[definition.name]}",
                "mdevctl and libvirt show something else than what vfioapd starts",
                "vfioapctl apply",
            )


def foreign_definitions(facts: HostFacts) -> Iterator[Finding]:
    """Those of others that mdevctl starts by itself."""
    for uuid, found in sorted(facts.mdevctl.definitions.items()):
        if not found.starts_itself or facts.desired.by_uuid(uuid) is not None:
            continue
        yield from _conflicts(facts, found)
        if not _overlaps(facts, found):
            yield from _cannot_start(facts, found)


def others(facts: HostFacts) -> int:
    """How many devices, active or defined, are not ours."""
    devices = facts.snapshot.by_uuid.keys() if facts.snapshot else set()
    known = devices | facts.mdevctl.definitions.keys()
    return sum(facts.desired.by_uuid(uuid) is None for uuid in known)


def paths(facts: HostFacts) -> Iterator[Finding]:
    """Who may write what root reads, and who may talk to the daemon."""
    for one in facts.paths:
        if not one.exists:
            yield Finding(
                Code.PATH_MISSING, f"{one.path} is not there", "vfioapd cannot work without it", one.mend
            )
        elif one.exact:
            yield from _socket(one)
        else:
            yield from _owner(one)
            yield from _writers(one)


def group(facts: HostFacts) -> Iterator[Finding]:
    """The socket for changes is this group's."""
    if not facts.libvirt_group:
        yield Finding(
            Code.GROUP_MISSING,
            "there is no group libvirt",
            "systemd cannot make the socket for changes, and only root could use it",
            "groupadd --system libvirt",
        )


def _conflicts(facts: HostFacts, found: ForeignDefinition) -> Iterator[Finding]:
    for definition, queues in _overlaps(facts, found):
        yield Finding(
            Code.MDEVCTL_FOREIGN_CONFLICT,
            f"{facts.mdevctl.folder}/{found.uuid}, which vfioapd did not write, has start: auto and holds"
            f" {format_apqns(queues)} of {definition}",
            "at boot mdevctl and vfioapd fight for these queues; one of the two devices cannot start",
            f"mdevctl modify -u {found.uuid} --manual",
        )


def _overlaps(facts: HostFacts, found: ForeignDefinition) -> list[tuple[str, QueueSet]]:
    theirs = QueueSet.of_matrix(found.matrix)
    both = [(str(one), QueueSet.of_matrix(one.matrix) & theirs) for one in facts.desired.definitions]
    return [(name, queues) for name, queues in both if queues]


def _cannot_start(facts: HostFacts, found: ForeignDefinition) -> Iterator[Finding]:
    hosts = QueueSet.of_matrix(found.matrix) & QueueSet.owned_by_host(masks_at_boot(facts))
    if hosts:
        yield Finding(
            Code.MDEVCTL_FOREIGN_AUTO,
            f"{facts.mdevctl.folder}/{found.uuid}, which vfioapd did not write, has start: auto, and nothing"
            f" takes {format_apqns(hosts)} from the host at boot",
            "mdevctl tries it once, when vfio_ap is loaded, and cannot start it",
            f"mdevctl modify -u {found.uuid} --manual",
        )


def _owner(one: PathFacts) -> Iterator[Finding]:
    if one.owner != "root":
        yield Finding(
            Code.PATH_OWNER,
            f"{one.path} belongs to {one.owner} and not to root",
            f"{one.owner} decides what root carries out",
            f"chown root {one.path}",
        )


def _writers(one: PathFacts) -> Iterator[Finding]:
    """A group's right to write counts, too, unless it is root's own."""
    extra = one.mode & 0o022 & ~one.wanted_mode
    if one.group == "root":
        extra &= 0o002
    if extra:
        who = "everybody" if extra & 0o002 else f"the group {one.group}"
        yield Finding(
            Code.PATH_OPEN,
            f"{one.path} has mode {one.mode:04o}: {who} may write it",
            f"{who} decides what root carries out",
            f"chmod go-w {one.path}",
        )


def _socket(one: PathFacts) -> Iterator[Finding]:
    if one.mode == one.wanted_mode and one.wanted_group in (None, one.group):
        return
    wanted = f"{one.wanted_mode:04o}" + (f" and group {one.wanted_group}" if one.wanted_group else "")
    chgrp = f"chgrp {one.wanted_group} {one.path} && " if one.wanted_group else ""
    more = one.mode & ~one.wanted_mode
    yield Finding(
        Code.SOCKET_MODE,
        f"{one.path} has mode {one.mode:04o} and group {one.group} in place of {wanted}",
        "users who may not change queues can" if more else "users who should reach vfioapd cannot",
        f"{chgrp}chmod {one.wanted_mode:o} {one.path}",
    )
