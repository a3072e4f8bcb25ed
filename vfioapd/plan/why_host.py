# SPDX-License-Identifier: Apache-2.0
"""The links of the chain that are the host's: LPAR, adapters, masks, drivers, device, guest_matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.domain.apqn import Apqn, format_apqns
from vfioapd.domain.definition import Start
from vfioapd.domain.numbers import format_adapter, format_domain
from vfioapd.domain.queue_set import QueueSet
from vfioapd.domain.snapshot import VFIO_DRIVER
from vfioapd.plan.why_link import Health, Link, Mend, Tool, broken, ok, unknown
from vfioapd.plan.why_mend import shell, start_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vfioapd.domain.snapshot import Mdev
    from vfioapd.plan.why_link import Device, Facts, Finding

_RESCAN = "then run: echo 1 > /sys/bus/ap/scans"
_DEVICES = "/sys/devices/vfio_ap/matrix"


def queue_links(facts: Facts, device: Device | None, scope: QueueSet) -> Iterator[Finding]:
    """What must hold for each queue by itself; without a device the host's own queues are in order."""
    yield _lpar(facts, scope)
    yield _adapter(facts, scope)
    yield _module(facts)
    if device is not None:
        yield _masks(facts, device, scope)
        yield _driver(facts, device, scope)


def device_links(facts: Facts, device: Device, scope: QueueSet) -> Iterator[Finding]:
    """What must hold for the device: that it is there, with these queues, and that a guest gets them."""
    mdev = facts.snapshot.mdev(device.uuid)
    if mdev is None:
        yield _no_mdev(facts, device)
        yield unknown(Link.MATRIX, "there is no device to hold it")
        yield unknown(Link.GUEST_MATRIX, "there is no device to filter")
        return
    yield ok(Link.MDEV, f"the device {mdev.uuid} is there")
    yield _matrix(facts, device, mdev, scope)
    yield _guest_matrix(facts, device, mdev, scope)


def _lpar(facts: Facts, scope: QueueSet) -> Finding:
    missing = scope - facts.snapshot.present
    if not missing:
        return ok(Link.LPAR, f"{_are(scope)} in the configuration of this LPAR")
    adapters = {queue.adapter for queue in missing} - {card.adapter for card in facts.snapshot.cards}
    usage = facts.snapshot.usage_domains  # empty on a machine without QCI, which does not tell
    domains = {queue.domain for queue in missing} - usage if usage else set()
    gone = [f"adapter {format_adapter(one)}" for one in sorted(adapters)]
    gone += [f"usage domain {format_domain(one)}" for one in sorted(domains)]
    if not gone:
        sentence = f"{format_apqns(missing)} answers nothing, though its adapter and domain are configured"
        return broken(Link.LPAR, sentence, Mend(Tool.HMC, "look at the adapter's hardware messages"))
    what = ", ".join(gone)
    mend = f"assign {what} to this LPAR (Change LPAR Cryptographic Controls), {_RESCAN}"
    return broken(Link.LPAR, f"this LPAR does not have {what}", Mend(Tool.HMC, mend))


def _adapter(facts: Facts, scope: QueueSet) -> Finding:
    details = [(queue, facts.details.get(queue)) for queue in scope & facts.snapshot.present]
    stopped = _adapters(queue for queue, detail in details if detail and detail.checkstopped)
    standby = _adapters(queue for queue, detail in details if detail and not detail.configured)
    if standby:
        cards = " ".join(f"card{number:02x}" for number in standby)
        sentence = f"{_adapter_list(standby)} deconfigured (standby)"
        return broken(Link.ADAPTER, sentence, shell(f"chzcrypt --config-on {cards}"))
    if stopped:
        mend = f"have the hardware error of {_adapter_names(stopped)} repaired, or toggle it off and on"
        return broken(Link.ADAPTER, f"{_adapter_list(stopped)} checkstopped", Mend(Tool.HMC, mend))
    unread = sorted(queue for queue, detail in details if detail is None)
    if unread or not details:
        return unknown(
            Link.ADAPTER, f"the state of {format_apqns(unread) or 'the adapter'} could not be read"
        )
    return ok(Link.ADAPTER, f"{_adapter_list(_adapters(scope))} configured and not checkstopped")


def _module(facts: Facts) -> Finding:
    if facts.snapshot.kernel.vfio_ap:
        return ok(Link.MODULE, "the vfio_ap driver is loaded")
    sentence = "the vfio_ap driver is not loaded, so no queue can be given to a guest"
    return broken(Link.MODULE, sentence, shell("modprobe vfio_ap"))


def _masks(facts: Facts, device: Device, scope: QueueSet) -> Finding:
    hosts = (scope & facts.snapshot.present) - facts.snapshot.outside
    if not hosts:
        return ok(Link.MASKS, f"{_are(scope)} outside of the host's pool, {_by_what(facts)}")
    sentence = f"{_are(hosts)} in the host's own pool{_because(facts, device)}"
    if device.definition is None:
        adapters = ",".join(f"-{number}" for number in _adapters(hosts))
        return broken(Link.MASKS, sentence, shell(f"echo {adapters} > /sys/bus/ap/apmask"))
    mend, words = start_command(facts, device)
    return broken(Link.MASKS, sentence + words, mend)


def _by_what(facts: Facts) -> str:
    return "by driver_override" if facts.snapshot.overridden else "by apmask and aqmask"


def _driver(facts: Facts, device: Device, scope: QueueSet) -> Finding:
    astray = _not_under_vfio_ap(facts, scope & facts.snapshot.outside)
    if not facts.snapshot.kernel.vfio_ap:
        return unknown(Link.DRIVER, "without vfio_ap loaded no queue can be bound to it")
    if not astray:
        return ok(Link.DRIVER, f"the driver vfio_ap has {_counted(scope & facts.snapshot.outside)}")
    sentence = f"{_are(astray)} not bound to vfio_ap"
    mend, words = start_command(facts, device) if device.definition else (None, "")
    return broken(Link.DRIVER, sentence + words, mend or _bind(astray))


def _bind(queues: QueueSet) -> Mend:
    lines = [f"echo {queue} > /sys/bus/ap/drivers/vfio_ap/bind" for queue in queues]
    return shell(" && ".join(lines))


def _no_mdev(facts: Facts, device: Device) -> Finding:
    mend, words = start_command(facts, device)
    return broken(Link.MDEV, f"{device} has no device{_because(facts, device)}{words}", mend)


def _because(facts: Facts, device: Device) -> str:
    """Why a matrix is not started, as far as that is known."""
    definition = device.definition
    if definition is None or facts.snapshot.mdev(device.uuid) is not None:
        return ""
    if definition.name in facts.state.stopped:
        return ": it was stopped (vfioapctl stop)"
    if definition.start is Start.MANUAL:
        return ': it has start = "manual" and was not started'
    failure = facts.failures.get(definition.name)
    return f": {failure}" if failure else ""


def _matrix(facts: Facts, device: Device, mdev: Mdev, scope: QueueSet) -> Finding:
    missing = scope - QueueSet.of_matrix(mdev.matrix)
    differs = scope == device.queues and mdev.matrix != device.matrix
    if not missing and not differs:
        return ok(Link.MATRIX, f"the device was assigned {_counted(scope)}")
    what = f"the device was not assigned {format_apqns(missing)}" if missing else ""
    sentence = what or "the device was assigned another matrix than the one defined"
    mend, words = start_command(facts, device)
    return broken(Link.MATRIX, sentence + words, mend)


def _guest_matrix(facts: Facts, device: Device, mdev: Mdev, scope: QueueSet) -> Finding:
    if mdev.guest_matrix is None:
        return unknown(Link.GUEST_MATRIX, "too many queues to be read safely from this kernel")
    missing = (scope & QueueSet.of_matrix(mdev.matrix)) - QueueSet.of(mdev.guest_matrix)
    if not missing:
        return ok(Link.GUEST_MATRIX, f"a guest gets {_counted(scope)}")
    dropped = _adapters(missing)
    culprits = _culprits(facts, mdev, dropped)
    if not culprits:
        sentence = f"the kernel's filter left out {format_apqns(missing)} and has not looked again"
        return broken(Link.GUEST_MATRIX, sentence, _filter_again(facts, device))
    sentence = (
        f"the kernel drops {_adapter_names(dropped)} as a whole, because {_are(culprits)} not ready for it"
    )
    return _with_cause(facts, device, culprits, sentence)


def _culprits(facts: Facts, mdev: Mdev, adapters: list[int]) -> QueueSet:
    """The queues for which the kernel drops these adapters (vfio_ap_ops.c:vfio_ap_mdev_filter_matrix);
    a domain that the LPAR does not have costs nothing but itself."""
    usage = facts.snapshot.usage_domains
    held = QueueSet.of_matrix(mdev.matrix).of_adapters(adapters)
    counted = QueueSet.of(queue for queue in held if not usage or queue.domain in usage)
    return _not_under_vfio_ap(facts, counted)


def _with_cause(facts: Facts, device: Device, culprits: QueueSet, sentence: str) -> Finding:
    """The reason why a queue is not ready is the first broken link of that queue's own chain."""
    for cause in queue_links(facts, device, culprits):
        if cause.health is Health.BROKEN:
            return broken(Link.GUEST_MATRIX, f"{sentence}: {cause.sentence}", cause.mend)
    return broken(Link.GUEST_MATRIX, sentence, _bind(culprits))


def _filter_again(facts: Facts, device: Device) -> Mend | None:
    """Writing the same matrix again is the one thing that makes the kernel filter and changes nothing."""
    if facts.snapshot.kernel.ap_config:
        path = f"{_DEVICES}/{device.uuid}/ap_config"
        return shell(f'matrix=$(cat {path}) && echo "$matrix" > {path}')
    if device.definition is None or facts.snapshot.user_of(device.uuid) is not None:
        return None
    name = device.definition.name
    return shell(f"vfioapctl stop {name} && vfioapctl start {name}")


def _not_under_vfio_ap(facts: Facts, queues: QueueSet) -> QueueSet:
    bound = QueueSet.of(one.queue for one in facts.snapshot.queues if one.driver == VFIO_DRIVER)
    return queues - bound


def _adapters(queues: Iterable[Apqn]) -> list[int]:
    return sorted({int(queue.adapter) for queue in queues})


def _adapter_names(numbers: Iterable[int]) -> str:
    return ", ".join(f"adapter {format_adapter(number)}" for number in numbers)


def _adapter_list(numbers: list[int]) -> str:
    return f"{_adapter_names(numbers)} {'is' if len(numbers) == 1 else 'are'}"


def _counted(queues: QueueSet) -> str:
    """Few queues by name, many by number."""
    return format_apqns(queues) if len(queues) <= 4 else f"all {len(queues)} queues"


def _are(queues: QueueSet) -> str:
    """The same with the verb that fits."""
    return f"{_counted(queues)} {'is' if len(queues) == 1 else 'are'}"
