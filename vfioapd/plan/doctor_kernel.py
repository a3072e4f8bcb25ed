# SPDX-License-Identifier: Apache-2.0
"""What doctor says of the kernel, its modules, and the queues that matrices are to hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.domain.apqn import format_apqns
from vfioapd.domain.numbers import format_adapter
from vfioapd.domain.queue_set import QueueSet
from vfioapd.plan.doctor_finding import Code, Finding, Unchecked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vfioapd.domain.snapshot import QueueDetail
    from vfioapd.plan.doctor_facts import HostFacts

LOAD_FILE = "/etc/modules-load.d/vfio_ap.conf"


def bus(facts: HostFacts) -> Iterator[Finding]:
    """Without it there is nothing to give."""
    if facts.snapshot is None:
        yield Finding(
            Code.AP_BUS_MISSING,
            facts.no_bus,
            "no queue can be seen or given to a guest",
            "modprobe ap",
        )


def module(facts: HostFacts) -> Iterator[Finding]:
    """vfio_ap makes the devices."""
    if facts.snapshot is not None and not facts.snapshot.kernel.vfio_ap:
        yield Finding(
            Code.VFIO_AP_MISSING,
            "the kernel's module vfio_ap is not loaded",
            "no matrix can be started",
            "modprobe vfio_ap",
        )


def module_at_boot(facts: HostFacts) -> Iterator[Finding]:
    """No device of the AP bus asks for vfio_ap, so that some file has to."""
    for path in facts.modules.forbidden_by:
        yield Finding(
            Code.VFIO_AP_FORBIDDEN,
            f"{path} keeps the module vfio_ap from being loaded",
            "after the next boot no matrix can be started",
            **_permit(path),
        )
    if not facts.modules.loaded_by and not facts.modules.forbidden_by:
        yield Finding(
            Code.VFIO_AP_NOT_AT_BOOT,
            "nothing loads the module vfio_ap at boot: no file in modules-load.d names it",
            "after the next boot no matrix can be started",
            f"echo vfio_ap > {LOAD_FILE}",
        )


def present(facts: HostFacts) -> Iterator[Finding | Unchecked]:
    """Queues that are defined and that this LPAR does not have."""
    if facts.snapshot is None:
        yield Unchecked("queues", "there is no AP bus")
        return
    for definition in facts.desired.definitions:
        missing = QueueSet.of_matrix(definition.matrix) - facts.snapshot.present
        if missing:
            yield Finding(
                Code.QUEUE_MISSING,
                f"{definition} holds {format_apqns(missing)}, which this LPAR does not have",
                "its guest does not get them, nor another queue of the same adapter",
                advice=f"assign them to the LPAR at the HMC, or see vfioapctl why {definition.name}",
            )


def usable(facts: HostFacts) -> Iterator[Finding]:
    """Adapters that are there and switched off or broken."""
    standby = _adapters(facts, lambda detail: not detail.configured)
    stopped = _adapters(facts, lambda detail: detail.configured and detail.checkstopped)
    for number, names in standby.items():
        yield Finding(
            Code.QUEUE_DECONFIGURED,
            f"adapter {format_adapter(number)} of {names} is deconfigured (standby)",
            "guests see its queues and cannot use them",
            f"chzcrypt --config-on card{number:02x}",
        )
    for number, names in stopped.items():
        yield Finding(
            Code.QUEUE_CHECKSTOPPED,
            f"adapter {format_adapter(number)} of {names} is checkstopped: its hardware has failed",
            "guests see its queues and cannot use them",
            advice="look at the adapter's hardware messages at the HMC, or toggle it off and on there",
        )


def bound(facts: HostFacts) -> Iterator[Finding]:
    """Queues of the host's own that no driver has taken; those of guests are a matter of the matrix."""
    snapshot = facts.snapshot
    if snapshot is None:
        return
    hosts = QueueSet.of(one.queue for one in snapshot.queues if one.driver is None) - snapshot.outside
    if hosts:
        few = format_apqns(hosts) if len(hosts) <= 4 else f"{len(hosts)} queues of the host"
        yield Finding(
            Code.QUEUE_UNBOUND,
            f"{few}: no driver has them, though the masks leave them to the host",
            "the host's own zcrypt cannot use them",
            "modprobe zcrypt_cex4",
        )


def _permit(path: str) -> dict[str, str]:
    if path.startswith("/proc/"):
        return {"advice": "take vfio_ap out of module_blacklist= in the boot loader's configuration"}
    pattern = r"^[[:space:]]*(blacklist|install)[[:space:]]+vfio[-_]ap([[:space:]]|$)"
    return {"command": f"sed -i -E '/{pattern}/s/^/#/' {path}"}


def _adapters(facts: HostFacts, is_bad: Callable[[QueueDetail], bool]) -> dict[int, str]:
    """Adapters with such a queue in a matrix, and the matrices."""
    found: dict[int, dict[str, None]] = {}
    for definition in facts.desired.definitions:
        for queue in definition.matrix.queues():
            detail = facts.details.get(queue)
            if detail is not None and is_bad(detail):
                found.setdefault(int(queue.adapter), {})[str(definition)] = None
    return {number: ", ".join(names) for number, names in sorted(found.items())}
