# SPDX-License-Identifier: Apache-2.0
"""One consistent read of the bus, whatever moves while it is read."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from doubles import KERNELS, host_of, uuid_of

from vfioapd.backend.bus import ATTEMPTS, read_snapshot
from vfioapd.backend.mdev import format_ap_config, parse_ap_config
from vfioapd.backend.sysfs import HostSysfs
from vfioapd.domain.apqn import format_apqns, parse_apqns
from vfioapd.domain.mask import ALL_HOST, HostMasks, Mask
from vfioapd.domain.matrix import EMPTY_MATRIX, READABLE_PAIRS, Matrix
from vfioapd.domain.problems import Problem, Refused, Unavailable
from vfioapd.domain.snapshot import Mode
from vfioapd.emulator.kernel import Kernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MATRIX = "devices/vfio_ap/matrix"
CREATE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create"
DEVICE = uuid_of("device")


class Watched:
    """The emulated kernel's files, each access told beforehand."""

    def __init__(self, kernel: Kernel) -> None:
        self._sysfs = kernel.sysfs
        self.reads: list[str] = []
        self.before: Callable[[str], None] = lambda path: None

    def read(self, path: str) -> str:
        self.before(path)
        self.reads.append(path)
        return self._sysfs.read(path)

    def names(self, directory: str) -> list[str]:
        self.before(directory)
        return self._sysfs.names(directory)

    def write(self, path: str, value: str) -> None:
        self._sysfs.write(path, value)

    def readlink(self, path: str) -> str:
        return self._sysfs.readlink(path)


def kernel_of(generation: str = "6.12", **changes: object) -> Kernel:
    return Kernel(host_of(generation, **changes))


def make_device(kernel: Kernel, adapters: str = "5,7", domains: str = "17", uuid: object = DEVICE) -> None:
    """A device made by hand: its adapters leave the host, it gets them and the domains."""
    kernel.sysfs.write("bus/ap/apmask", ",".join(f"-{number}" for number in adapters.split(",")))
    kernel.sysfs.write(CREATE, str(uuid))
    for number in adapters.split(","):
        kernel.sysfs.write(f"{MATRIX}/{uuid}/assign_adapter", number)
    for number in domains.split(","):
        kernel.sysfs.write(f"{MATRIX}/{uuid}/assign_domain", number)


@pytest.mark.parametrize("generation", KERNELS)
def test_a_snapshot_holds_the_whole_host(generation: str) -> None:
    kernel = kernel_of(generation)
    make_device(kernel)
    kernel.sysfs.write(f"{MATRIX}/{DEVICE}/assign_control_domain", "13")
    found = read_snapshot(kernel.sysfs)
    assert found.masks == HostMasks(ALL_HOST.apmask - Mask.of([5, 7]), ALL_HOST.aqmask)
    assert [(card.adapter, card.type) for card in found.cards] == list(
        enumerate(["CEX8C", "CEX8A", "CEX8C", "CEX8A", "CEX8C", "CEX8P", "CEX8C", "CEX8P"])
    )
    assert {card.mode for card in found.cards} == {Mode.CCA, Mode.ACCELERATOR, Mode.EP11}
    assert len(found.queues) == 16
    assert {state.driver for state in found.queues if state.queue.adapter in (5, 7)} == {"vfio_ap"}
    assert {state.driver for state in found.queues if state.queue.adapter not in (5, 7)} == {"cex4queue"}
    assert found.usage_domains == found.control_domains == {13, 17}
    (device,) = found.mdevs
    assert device.uuid == DEVICE
    assert device.matrix == Matrix(frozenset({5, 7}), frozenset({17}), frozenset({13}))
    assert format_apqns(device.guest_matrix or ()) == "05.0011, 07.0011"
    assert not device.in_use
    assert found.kernel.vfio_ap
    assert found.kernel.complete
    assert found.kernel.ap_config is (generation != "6.1")
    assert found.guests == ()


@pytest.mark.parametrize("generation", KERNELS)
def test_a_device_that_a_guest_holds_is_in_use(generation: str) -> None:
    kernel = kernel_of(generation)
    make_device(kernel)
    kernel.guest_open(str(DEVICE), "bastion")
    assert read_snapshot(kernel.sysfs).mdevs[0].in_use
    kernel.guest_close("bastion")
    assert not read_snapshot(kernel.sysfs).mdevs[0].in_use


@pytest.mark.parametrize(
    ("adapters", "domains"), [("5", ""), ("", "17"), ("", "")], ids=["adapter only", "domain only", "empty"]
)
@pytest.mark.parametrize("generation", KERNELS)
def test_half_a_matrix_is_read_as_what_it_is(generation: str, adapters: str, domains: str) -> None:
    kernel = kernel_of(generation)
    kernel.sysfs.write("bus/ap/apmask", "-5")
    kernel.sysfs.write(CREATE, str(DEVICE))
    for member, text in (("adapter", adapters), ("domain", domains)):
        if text:
            kernel.sysfs.write(f"{MATRIX}/{DEVICE}/assign_{member}", text)
    (device,) = read_snapshot(kernel.sysfs).mdevs
    assert device.matrix.adapters == ({5} if adapters else set())
    assert device.matrix.domains == ({17} if domains else set())
    assert device.guest_matrix == frozenset()


@pytest.mark.parametrize("generation", KERNELS)
def test_without_vfio_ap_there_is_a_host_without_devices(generation: str) -> None:
    kernel = kernel_of(generation, modules=("zcrypt_cex4",))
    found = read_snapshot(kernel.sysfs)
    assert not found.kernel.vfio_ap
    assert not found.kernel.ap_config
    assert found.mdevs == ()
    assert len(found.queues) == 16


@pytest.mark.parametrize("generation", KERNELS)
def test_a_machine_without_qci_has_cards_and_queues_but_no_domain_list(generation: str) -> None:
    found = read_snapshot(kernel_of(generation, qci=False, usage_domains=(3,), control_domains=(3,)).sysfs)
    assert found.usage_domains == found.control_domains == frozenset()
    assert found.queues


def test_no_ap_bus_is_said_with_what_helps(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as error:
        read_snapshot(HostSysfs(str(tmp_path)))
    assert error.value.problem is Problem.AP_BUS_MISSING
    assert "vfioap-lab" in str(error.value.hint)


# What another program does while the bus is read, and how it can be told that it was done before.
MOVES: dict[str, Callable[[Kernel], None]] = {
    "masks": lambda kernel: kernel.sysfs.write("bus/ap/apmask", "-0"),
    "device made": lambda kernel: kernel.sysfs.write(CREATE, str(uuid_of("other"))),
    "device removed": lambda kernel: kernel.sysfs.write(f"{MATRIX}/{DEVICE}/remove", "1"),
    "card gone": lambda kernel: kernel.play({"action": "remove-adapter", "adapter": 2}),
    "domain gone": lambda kernel: kernel.play({"action": "remove-domain", "domain": 13}),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES.keys())
@pytest.mark.parametrize("generation", KERNELS)
def test_a_bus_that_changes_at_any_moment_of_the_read_is_seen_as_it_was_or_as_it_is(
    generation: str, move: Callable[[Kernel], None]
) -> None:
    untouched = kernel_of(generation)
    make_device(untouched)
    watched = Watched(untouched)
    old = read_snapshot(watched)
    accesses = []
    watched.before = accesses.append
    read_snapshot(watched)
    move(untouched)
    new = read_snapshot(untouched.sysfs)
    assert old != new
    for moment in range(0, len(accesses), 7):
        kernel = kernel_of(generation)
        make_device(kernel)
        assert read_snapshot(MovedAt(kernel, moment, move)) in (old, new), accesses[moment]


class MovedAt(Watched):
    """Another program acts once, just before the access of that number."""

    def __init__(self, kernel: Kernel, moment: int, move: Callable[[Kernel], None]) -> None:
        super().__init__(kernel)
        left = iter(range(moment, -1, -1))

        def before(_path: str) -> None:
            if next(left, None) == 0:
                move(kernel)

        self.before = before


def test_a_queue_replaced_by_another_during_the_read_is_noticed() -> None:
    """The number of queues stays the same, so bindings alone tells nothing."""

    def replace(kernel: Kernel) -> None:
        kernel.play({"action": "remove-adapter", "adapter": 7, "scan": False})
        kernel.play({"action": "add-adapter", "adapter": 9, "type": "CEX8C"})

    kernel = kernel_of()
    replace(kernel)
    new = read_snapshot(kernel.sysfs)
    kernel = kernel_of()
    old = read_snapshot(kernel.sysfs)
    watched = Watched(kernel)
    done: list[str] = []

    def before(path: str) -> None:
        if path == "devices/ap/card02/type" and not done:
            done.append(path)
            replace(kernel)

    watched.before = before
    assert read_snapshot(watched) in (old, new)
    assert done


def test_a_queue_that_moves_from_one_device_to_another_is_never_seen_in_both() -> None:
    kernel = kernel_of()
    make_device(kernel, "5,7", "17")
    kernel.sysfs.write(CREATE, str(uuid_of("other")))
    first, second = sorted([str(DEVICE), str(uuid_of("other"))])
    if first != str(DEVICE):
        kernel.sysfs.write(f"{MATRIX}/{DEVICE}/unassign_adapter", "7")
        kernel.sysfs.write(f"{MATRIX}/{first}/assign_adapter", "7")
        kernel.sysfs.write(f"{MATRIX}/{first}/assign_domain", "17")
    watched = Watched(kernel)
    done: list[str] = []

    def before(path: str) -> None:
        if path.startswith(f"{MATRIX}/{second}/") and not done:
            done.append(path)
            kernel.sysfs.write(f"{MATRIX}/{first}/unassign_adapter", "7")
            kernel.sysfs.write(f"{MATRIX}/{second}/assign_adapter", "7")
            kernel.sysfs.write(f"{MATRIX}/{second}/assign_domain", "17")

    watched.before = before
    found = [queue for mdev in read_snapshot(watched).mdevs for queue in mdev.matrix.queues()]
    assert done
    assert len(found) == len(set(found))


def test_a_device_that_cannot_be_read_does_not_pass_for_one_that_is_not_there() -> None:
    kernel = kernel_of()
    make_device(kernel)
    kernel.play({"action": "fail", "path": f"{MATRIX}/{DEVICE}/ap_config", "errno": "EIO"})
    with pytest.raises(OSError, match="Input/output"):
        read_snapshot(kernel.sysfs)


def test_a_bus_that_never_rests_is_refused_after_a_few_reads() -> None:
    kernel = kernel_of()
    watched = Watched(kernel)
    writes = 0

    def before(path: str) -> None:
        nonlocal writes
        if path == "bus/ap/ap_usage_domain_mask":
            writes += 1
            kernel.sysfs.write("bus/ap/apmask", "-0" if writes % 2 else "+0")

    watched.before = before
    with pytest.raises(Unavailable, match="changed during each") as error:
        read_snapshot(watched)
    assert writes == ATTEMPTS
    assert error.value.hint


def wide(generation: str) -> Kernel:
    """A host with 8 adapters and 85 domains, half of each in one device: more pairs than fit a page."""
    kernel = kernel_of(generation, usage_domains=tuple(range(85)), control_domains=tuple(range(85)))
    make_device(kernel, ",".join(map(str, range(8))), ",".join(map(str, range(85))))
    return kernel


@pytest.mark.parametrize("generation", ["6.12", "7.3"])
def test_a_matrix_too_large_for_a_page_is_read_without_its_dangerous_files(generation: str) -> None:
    kernel = wide(generation)
    watched = Watched(kernel)
    (device,) = read_snapshot(watched).mdevs
    assert len(device.matrix.queues()) == 8 * 85 > READABLE_PAIRS
    assert device.guest_matrix is None
    assert not [path for path in watched.reads if path.endswith("/matrix") or "guest_matrix" in path]


@pytest.mark.parametrize("generation", ["6.12", "7.3"])
def test_a_guest_with_a_matrix_too_large_for_a_page_is_still_seen_to_use_it(generation: str) -> None:
    kernel = wide(generation)
    assert not read_snapshot(kernel.sysfs).mdevs[0].in_use
    kernel.guest_open(str(DEVICE), "bastion")
    assert read_snapshot(kernel.sysfs).mdevs[0].in_use


def test_ap_config_is_written_in_full_and_read_back() -> None:
    matrix = Matrix(frozenset({0, 5, 255}), frozenset({17}), frozenset({16, 17}))
    text = format_ap_config(matrix)
    assert [len(field) for field in text.rstrip("\n").split(",")] == [66, 66, 66]
    assert text.startswith("0x84")
    assert parse_ap_config(text) == matrix
    assert parse_ap_config(format_ap_config(EMPTY_MATRIX)) == EMPTY_MATRIX


@pytest.mark.parametrize("text", ["", "\n", "0x0,0x0", "0x0,0x0,0x0,0x0", ",,", "0x0,,0x0"])
def test_an_ap_config_that_is_not_three_masks_is_refused(text: str) -> None:
    with pytest.raises((ValueError, Refused)):
        parse_ap_config(text)


def test_the_hosts_own_sysfs_makes_one_write_and_tells_the_errno(tmp_path: Path) -> None:
    sysfs = HostSysfs(str(tmp_path))
    (tmp_path / "bus").mkdir()
    (tmp_path / "bus" / "apmask").write_text("0xff\n")
    (tmp_path / "bus" / "link").symlink_to("../elsewhere")
    assert sysfs.read("bus/apmask") == "0xff\n"
    assert sysfs.names("bus") == ["apmask", "link"]
    assert sysfs.readlink("bus/link") == "../elsewhere"
    sysfs.write("bus/apmask", "-5\n")
    assert (tmp_path / "bus" / "apmask").read_text() == "-5\nf\n", "in place, as an attribute is written"
    for act in (
        lambda: sysfs.read("bus/none"),
        lambda: sysfs.write("bus/none", "1"),
        lambda: sysfs.names("x"),
    ):
        with pytest.raises(FileNotFoundError):
            act()
    assert os.listdir(tmp_path / "bus") == sorted(os.listdir(tmp_path / "bus")), "nothing is created"
    with pytest.raises(OSError, match="directory") as error:
        sysfs.read("bus")
    assert error.value.errno == errno.EISDIR


def test_what_is_read_is_sorted_and_the_same_each_time() -> None:
    kernel = kernel_of()
    make_device(kernel, "5", "17")
    make_device(kernel, "3", "13", uuid_of("other"))
    found = read_snapshot(kernel.sysfs)
    assert list(found.queues) == sorted(found.queues, key=lambda state: state.queue)
    assert [mdev.uuid for mdev in found.mdevs] == sorted(mdev.uuid for mdev in found.mdevs)
    assert found == read_snapshot(kernel.sysfs)
    assert set(found.present) >= parse_apqns("00.000d,07.0011")
