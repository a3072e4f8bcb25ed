# SPDX-License-Identifier: Apache-2.0
"""What doctor says of libvirt and of vfioapd's hook in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.plan.doctor_finding import Code, Finding, Unchecked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.plan.doctor_facts import HostFacts

LIBVIRT_NEEDED = 7_008_000  # names a matrix's node device as vfioapd does
QEMU_NEEDED = 3_001_000  # the first with a vfio-ap device


def libvirt(facts: HostFacts) -> Iterator[Finding | Unchecked]:
    """Whether there is one, and whether it answers."""
    if facts.libvirt.unit is None:
        yield Finding(
            Code.LIBVIRT_MISSING,
            "no libvirt daemon for QEMU is installed (libvirtd, virtqemud)",
            "matrices can be started and be given to no guest",
            advice="install libvirt",
        )
    elif not facts.libvirt.answers:
        yield Finding(
            Code.LIBVIRT_SILENT,
            f"libvirt ({facts.libvirt.unit}) does not answer",
            "no guest can be seen, started or given a matrix",
            f"systemctl restart {facts.libvirt.unit}" if facts.units is not None else "",
            "" if facts.units is not None else "start libvirtd or virtqemud",
        )
    elif facts.libvirt.version is None:
        yield Unchecked("versions", "libvirt does not tell them")


def versions(facts: HostFacts) -> Iterator[Finding]:
    """What is too old for vfio-ap."""
    if facts.libvirt.version is not None and facts.libvirt.version < LIBVIRT_NEEDED:
        yield Finding(
            Code.LIBVIRT_OLD,
            f"libvirt is {_dotted(facts.libvirt.version)}, older than {_dotted(LIBVIRT_NEEDED)}",
            "its node devices have other names than vfioapctl xml prints",
            advice="update libvirt",
        )
    if facts.libvirt.qemu is not None and facts.libvirt.qemu < QEMU_NEEDED:
        yield Finding(
            Code.QEMU_OLD,
            f"QEMU is {_dotted(facts.libvirt.qemu)}, older than {_dotted(QEMU_NEEDED)}",
            "it has no vfio-ap device: a guest with a matrix does not start",
            advice="update QEMU",
        )


def hook(facts: HostFacts) -> Iterator[Finding | Unchecked]:
    """The file itself: there, executable, ours."""
    found = facts.hook
    if facts.libvirt.unit is None:
        yield Unchecked("hook", "no libvirt here")
    elif not found.exists:
        yield Finding(
            Code.HOOK_MISSING,
            f"libvirt's hook {found.path} is not installed",
            "a guest starts without its queues being made ready, or fails without the reason",
            _and_reload(facts, f"install -D -m 755 {found.original} {found.path}") if found.original else "",
            "" if found.original else "install the package vfioapd again",
        )
    elif not found.executable:
        yield Finding(
            Code.HOOK_NOT_EXECUTABLE,
            f"libvirt's hook {found.path} is not executable",
            "libvirt passes it over",
            _and_reload(facts, f"chmod 755 {found.path}"),
        )
    elif not found.same:
        yield Finding(
            Code.HOOK_ALTERED,
            f"libvirt's hook {found.path} is not the one of this vfioapd ({found.original})",
            "guests may be started without their queues, or refused without need",
            _and_reload(facts, f"install -m 755 {found.original} {found.path}"),
        )


def hook_seen(facts: HostFacts) -> Iterator[Finding | Unchecked]:
    """libvirt looks for hooks when it starts or is told to reload; a second one it finds by itself."""
    found, looked = facts.hook, facts.libvirt.looked_for_hooks
    if not (found.exists and found.executable and found.same) or facts.libvirt.pid is None:
        return  # the mend of the file has it looked for, and a libvirt that sleeps looks when it wakes
    if looked is None:
        yield Unchecked("whether libvirt has seen the hook", "its start is not known")
    elif found.changed > looked and not _is_known(facts, looked):
        yield Finding(
            Code.HOOK_UNSEEN,
            f"libvirt (PID {facts.libvirt.pid}) has not looked for hooks since {found.path} was installed"
            " or changed",
            "libvirt does not call it",
            f"systemctl reload {facts.libvirt.unit}" if facts.units is not None else "",
            "" if facts.units is not None else "restart libvirt's daemon; guests run on",
        )


def _is_known(facts: HostFacts, looked: float) -> bool:
    """libvirt keeps in mind that there are QEMU hooks, and then calls every file that it finds."""
    others, called, started = facts.hook.others_since, facts.hook.called, facts.libvirt.started
    if called is not None and started is not None and called > started:
        return True
    return others is not None and others < looked


def _and_reload(facts: HostFacts, command: str) -> str:
    if facts.units is None or facts.libvirt.pid is None:
        return command
    return f"{command} && systemctl reload {facts.libvirt.unit}"


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"
