# SPDX-License-Identifier: Apache-2.0
"""`vfioapctl why` names the link that is really broken, and what it prints mends it, run as printed.

Each fault is planted on the emulated kernel, in libvirt's answers or in the files. Commands of ours run
through the real client and server; those of others are played by a few lines each (`Shell`).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from doubles import ADMIN, KERNELS, RunningServer, uuid_of

from vfioapd.cli import main
from vfioapd.domain.problems import Problem, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from doubles import Rig

    from vfioapd.rpc.types import WhyAnswer

MATRIX = "devices/vfio_ap/matrix"
CREATE = f"{MATRIX}/mdev_supported_types/vfio_ap-passthrough/create"
VAULT = uuid_of("vault")
STRANGER = uuid_of("stranger")


class Shell:
    """Runs the command lines that are printed."""

    def __init__(self, rig: Rig, server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self._rig = rig
        monkeypatch.setenv("VFIOAPD_SOCKET", server.rw)

    def run(self, line: str) -> None:
        """A line of commands joined by &&."""
        copied = re.fullmatch(r'matrix=\$\(cat (\S+)\) && echo "\$matrix" > (\S+)', line)
        if copied:
            self._echo(self._rig.kernel.sysfs.read(copied[1].removeprefix("/sys/")).strip(), copied[2])
            return
        for command in line.split(" && "):
            self._one(shlex.split(command))

    def _one(self, words: list[str]) -> None:
        match words:
            case ["vfioapctl", *rest]:
                assert main.main(rest) == 0, words
            case ["modprobe", name]:
                self._rig.kernel.load_module(name)
            case ["echo", text, ">", path]:
                self._echo(text, path)
            case ["chzcrypt", "--config-on", *cards]:
                for card in cards:
                    self._rig.kernel.sysfs.write(f"devices/ap/{card}/config", "1")
                self._rig.kernel.scan()  # the queues follow at the next scan, within config_time
            case ["virsh", "start", name]:
                self._rig.guests.start(name)
            case ["systemctl", "start", "libvirtd"]:
                self._rig.guests.is_up = True
            case ["mdevctl", "stop", "-u", uuid]:
                self._rig.kernel.sysfs.write(f"{MATRIX}/{uuid}/remove", "1")
            case _:
                raise AssertionError(f"nobody plays {words}")

    def _echo(self, text: str, path: str) -> None:
        self._rig.kernel.sysfs.write(path.removeprefix("/sys/"), text)


@dataclass(frozen=True)
class Fault:
    name: str
    plant: Callable[[Rig], object]
    asked: str
    link: str | None
    words: str  # in the cause
    tool: str | None
    mend: str | None  # the text to the letter, None: whatever it is
    hmc: Callable[[Rig], object] | None = None  # what an operator does when told so
    kernels: tuple[str, ...] = field(default=KERNELS)

    def __str__(self) -> str:
        return self.name


def scene(rig: Rig) -> None:
    """vault belongs to bastion, which runs; spare is started by hand and for nobody."""
    rig.restore()
    rig.guests.add("bastion", running=True)
    rig.guests.add("other")
    rig.define("vault", queues="00.000d,02.000d", guest="bastion")
    rig.define("spare", queues="04.0011", start="manual")


def play(**action: object) -> Callable[[Rig], object]:
    return lambda rig: rig.kernel.play(action)


def write(path: str, text: str) -> Callable[[Rig], object]:
    return lambda rig: rig.kernel.sysfs.write(path, text)


def both(*acts: Callable[[Rig], object]) -> Callable[[Rig], object]:
    return lambda rig: [act(rig) for act in acts]


def destroyed(rig: Rig) -> None:
    rig.guests.destroy("bastion")


def reloaded(rig: Rig) -> None:
    rig.guests.destroy("bastion")
    rig.kernel.unload_module("vfio_ap")


def device_gone(rig: Rig) -> None:
    rig.guests.destroy("bastion")
    rig.kernel.sysfs.write(f"{MATRIX}/{VAULT}/remove", "1")


def stopped(rig: Rig) -> None:
    rig.guests.destroy("bastion")
    rig.stop("vault")


def thief(rig: Rig) -> None:
    """Somebody's own device has taken a queue of vault while vault had no device."""
    device_gone(rig)
    rig.kernel.sysfs.write(CREATE, str(STRANGER))
    rig.kernel.sysfs.write(f"{MATRIX}/{STRANGER}/assign_adapter", "2")
    rig.kernel.sysfs.write(f"{MATRIX}/{STRANGER}/assign_domain", "13")


def emptied(rig: Rig) -> None:
    rig.guests.destroy("bastion")
    rig.kernel.sysfs.write(f"{MATRIX}/{VAULT}/unassign_adapter", "2")


def more(rig: Rig) -> None:
    rig.kernel.sysfs.write("bus/ap/apmask", "-6")
    rig.kernel.sysfs.write(f"{MATRIX}/{VAULT}/assign_adapter", "6")


def back_to_host(rig: Rig) -> None:
    """The device is gone and another tool has given the queues back."""
    device_gone(rig)
    if rig.kernel.host.kernel.name != "7.3":
        rig.kernel.sysfs.write("bus/ap/apmask", "+0,+2")
        return
    for queue in ("00.000d", "02.000d"):
        rig.kernel.sysfs.write("bus/ap/drivers/vfio_ap/unbind", queue)
        rig.kernel.sysfs.write(f"devices/ap/card{queue[:2]}/{queue}/driver_override", "\n")
        rig.kernel.sysfs.write("bus/ap/drivers/cex4queue/bind", queue)


def unbound(rig: Rig) -> None:
    rig.kernel.sysfs.write("bus/ap/drivers/vfio_ap/unbind", "02.000d")


def neighbour_unbound(rig: Rig) -> None:
    """Two domains on one adapter; the queue asked for is well, the other costs it its adapter."""
    rig.define("wide", adapters="6", domains="13,17")
    rig.kernel.sysfs.write("bus/ap/drivers/vfio_ap/unbind", "06.0011")


def not_looked_again(rig: Rig) -> None:
    """The domain that cost the adapter has gone, but unassigning does not make the kernel filter."""
    rig.define("wide", adapters="6", domains="13")
    path = f"{MATRIX}/{uuid_of('wide')}"
    rig.kernel.sysfs.write("bus/ap/aqmask", "-17")
    rig.kernel.sysfs.write("bus/ap/drivers/vfio_ap/unbind", "06.0011")
    rig.kernel.sysfs.write(f"{path}/assign_domain", "17")
    rig.kernel.sysfs.write(f"{path}/unassign_domain", "17")


def not_looked_again_overrides(rig: Rig) -> None:
    rig.define("wide", adapters="6", domains="13,17", control_domains="13")
    rig.kernel.sysfs.write("bus/ap/drivers/vfio_ap/unbind", "06.0011")
    rig.kernel.sysfs.write(f"{MATRIX}/{uuid_of('wide')}/unassign_domain", "17")


def undefined_guest(rig: Rig) -> None:
    rig.guests.destroy("bastion")
    del rig.guests.rooms["bastion"]


def edited_out(rig: Rig) -> None:
    """virsh edit has taken the device out of the definition."""
    rig.guests.rooms["bastion"].config.clear()


def unplugged(rig: Rig) -> None:
    rig.kernel.guest_close("bastion")
    rig.guests.rooms["bastion"].live.clear()


def swapped(rig: Rig) -> None:
    """By hand, another guest was given the device."""
    rig.guests.destroy("bastion")
    rig.guests.rooms["other"].config = {VAULT}
    rig.guests.start("other")


def occupied(rig: Rig) -> None:
    """The guest has somebody else's matrix of ours in its definition instead."""
    rig.guests.destroy("bastion")
    rig.define("rival", queues="06.000d")
    rig.guests.rooms["bastion"].config = {uuid_of("rival")}


def two_devices(rig: Rig) -> None:
    rig.guests.rooms["bastion"].config.add(STRANGER)


def edited_file(rig: Rig) -> None:
    rig.places.host_file.write_text(rig.places.host_file.read_text() + "# a comment\n")


def torn_file(rig: Rig) -> None:
    rig.places.host_file.write_text("version = \n")


def emptied_file(rig: Rig) -> None:
    rig.places.host_file.write_text("")


def unconfirmed(rig: Rig) -> None:
    text = rig.places.host_file.read_text().replace('start = "manual"', 'start = "auto"')
    rig.service.apply(text, replace(ADMIN, confirm_within=60))


def kept(rig: Rig) -> None:
    text = rig.places.host_file.read_text()
    rig.service.apply(f'{text}\n[host]\nkeep = ["06.0011"]\n', ADMIN)


FAULTS = [
    Fault("adapter unassigned", play(action="remove-adapter", adapter=2), "vault", "lpar",
          "adapter 2 (0x02)", "HMC", None, play(action="add-adapter", adapter=2, type="CEX8C")),
    Fault("adapter unassigned, by queue", play(action="remove-adapter", adapter=2), "02.000d", "lpar",
          "adapter 2 (0x02)", "HMC", None, play(action="add-adapter", adapter=2, type="CEX8C")),
    Fault("adapter that never was", lambda rig: None, "0a.000d", "lpar", "adapter 10 (0x0a)", "HMC", None,
          play(action="add-adapter", adapter=10, type="CEX8C")),
    Fault("domain unassigned", play(action="remove-domain", domain=13), "bastion", "lpar",
          "usage domain 13 (0x000d)", "HMC", None, play(action="add-domain", domain=13)),
    Fault("adapter in standby", play(action="deconfigure", adapter=2), "vault", "adapter",
          "adapter 2 (0x02) is deconfigured", "shell", "chzcrypt --config-on card02"),
    Fault("two adapters in standby",
          both(play(action="deconfigure", adapter=0), play(action="deconfigure", adapter=2)), "bastion",
          "adapter", "adapter 0 (0x00), adapter 2 (0x02) are", "shell", "chzcrypt --config-on card00 card02"),
    Fault("adapter checkstopped", play(action="checkstop", adapter=2), "02.000d", "adapter",
          "adapter 2 (0x02) is checkstopped", "HMC", None, play(action="configure", adapter=2)),
    Fault("module not loaded", reloaded, "vault", "module", "not loaded", "shell", "modprobe vfio_ap"),
    Fault("module not loaded, a free queue", reloaded, "06.000d", "module", "not loaded", "shell",
          "modprobe vfio_ap"),
    Fault("queues went back to the host", back_to_host, "vault", "masks", "00.000d, 02.000d are in the host",
          "vfioapctl", "vfioapctl start vault"),
    Fault("one queue went back", back_to_host, "02.000d", "masks", "02.000d is in the host", "vfioapctl",
          "vfioapctl start vault"),
    Fault("started by hand, and nobody has", lambda rig: None, "spare", "masks", 'start = "manual"',
          "vfioapctl", "vfioapctl start spare"),
    Fault("queue unbound", unbound, "vault", "driver", "02.000d is not bound", None, None),
    Fault("queue unbound, by queue", unbound, "02.000d", "driver", "02.000d is not bound", None, None),
    Fault("device removed", device_gone, "vault", "mdev", "has no device", "vfioapctl",
          "vfioapctl start vault"),
    Fault("stopped by the admin", stopped, "bastion", "mdev", "it was stopped (vfioapctl stop)",
          "vfioapctl", "vfioapctl start vault"),
    Fault("stopped, by queue", stopped, "00.000d", "mdev", "it was stopped", "vfioapctl",
          "vfioapctl start vault"),
    Fault("somebody else has the queue", thief, "vault", "mdev", f"held by mdev {STRANGER}", "shell",
          f"mdevctl stop -u {STRANGER} && vfioapctl start vault"),
    Fault("adapter unassigned from the device", emptied, "vault", "matrix", "not assigned 02.000d",
          "vfioapctl", "vfioapctl start vault"),
    Fault("adapter unassigned, by queue", emptied, "02.000d", "matrix", "not assigned 02.000d",
          "vfioapctl", "vfioapctl start vault"),
    Fault("the device has more", more, "vault", "matrix", "beware: running guest bastion loses 06.000d",
          "vfioapctl", "vfioapctl start vault --disrupt", kernels=("6.1", "6.12")),
    Fault("another queue costs the adapter", neighbour_unbound, "06.000d", "guest_matrix",
          "because 06.0011 is not ready", "vfioapctl", "vfioapctl start wide"),
    Fault("the kernel has not filtered again", not_looked_again, "06.000d", "guest_matrix",
          "has not looked again", "shell", None, kernels=("6.12",)),
    Fault("the kernel has not filtered again, 6.1", not_looked_again, "06.000d", "guest_matrix",
          "has not looked again", "vfioapctl", "vfioapctl stop wide && vfioapctl start wide",
          kernels=("6.1",)),
    Fault("the kernel has not filtered again, 7.3", not_looked_again_overrides, "06.000d", "guest_matrix",
          "has not looked again", "shell", None, kernels=("7.3",)),
    Fault("no matrix holds the queue", lambda rig: None, "06.0011", "definition", "no matrix holds 06.0011",
          "vfioapctl", "vfioapctl define q06.0011 --queues 06.0011"),
    Fault("the host keeps the queue", kept, "06.0011", "definition", "keeps 06.0011", "editor", None),
    Fault("host.toml edited", edited_file, "vault", "definition", "edit is not in force", "vfioapctl",
          "vfioapctl apply"),
    Fault("host.toml torn", torn_file, "vault", "definition", "host.toml:1", "editor", None),
    Fault("host.toml emptied", emptied_file, "vault", "definition", "says nothing", "editor", None),
    Fault("change unconfirmed", unconfirmed, "vault", "definition", "waits to be confirmed", "vfioapctl",
          "vfioapctl confirm"),
    Fault("libvirt away", lambda rig: setattr(rig.guests, "is_up", False), "vault", "hostdev",
          "libvirt does not answer", "shell", "systemctl start libvirtd"),
    Fault("guest undefined", undefined_guest, "vault", "hostdev", "bastion, which libvirt does not know",
          "vfioapctl", "vfioapctl detach vault bastion"),
    Fault("guest undefined, by its name", undefined_guest, "bastion", "hostdev", "does not know", "vfioapctl",
          "vfioapctl detach vault bastion"),
    Fault("device edited out of the definition", edited_out, "vault", "hostdev",
          "missing in the definition of guest bastion", "vfioapctl", "vfioapctl attach vault bastion"),
    Fault("device unplugged from the running guest", unplugged, "bastion", "hostdev",
          "missing in the running guest bastion", "vfioapctl", "vfioapctl attach vault bastion"),
    Fault("another guest has it", swapped, "vault", "hostdev", "guest other has it", "vfioapctl",
          "vfioapctl detach vault other"),
    Fault("the guest has another matrix", occupied, "bastion", "hostdev", "it has matrix rival", "vfioapctl",
          "vfioapctl detach rival bastion && vfioapctl attach vault bastion"),
    Fault("two devices in one definition", two_devices, "bastion", "hostdev", "has 2 vfio-ap devices",
          "shell", "virsh edit bastion"),
    Fault("a guest without any matrix", lambda rig: None, "other", "hostdev", "no matrix names guest other",
          "vfioapctl", "vfioapctl attach spare other"),
    Fault("guest shut off", destroyed, "vault", "guest", "bastion is not running", "shell",
          "virsh start bastion"),
    Fault("guest shut off, by queue", destroyed, "02.000d", "guest", "not running", "shell",
          "virsh start bastion"),
]  # fmt: skip

CASES = [(fault, kernel) for fault in FAULTS for kernel in fault.kernels]


@pytest.fixture
def planted(new_rig: Callable[..., Rig]) -> Callable[[Fault, str], Rig]:
    def make(fault: Fault, kernel: str) -> Rig:
        rig = new_rig(kernel)
        scene(rig)
        fault.plant(rig)
        return rig

    return make


@pytest.mark.parametrize(("fault", "kernel"), CASES, ids=str)
def test_the_link_that_is_broken_is_named_and_its_mend_mends_it(
    planted: Callable[[Fault, str], Rig], monkeypatch: pytest.MonkeyPatch, fault: Fault, kernel: str
) -> None:
    rig = planted(fault, kernel)
    answer = rig.service.why(fault.asked)
    assert answer.broken == fault.link, answer
    assert answer.cause is not None
    assert fault.words in answer.cause
    assert fault.tool is None or answer.mend_with == fault.tool
    assert fault.mend is None or answer.mend == fault.mend
    mend(rig, answer, fault, monkeypatch)


def mend(rig: Rig, answer: WhyAnswer, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what is printed; then another link is the first broken one, or none."""
    if answer.mend_with == "HMC":
        assert fault.hmc is not None
        fault.hmc(rig)
    elif answer.mend_with == "editor" or (answer.mend or "").startswith("virsh edit"):
        return  # a person's work
    else:
        with RunningServer(rig) as server:
            Shell(rig, server, monkeypatch).run(str(answer.mend))
    after = rig.service.why("vault" if fault.asked == "bastion" else fault.asked)
    assert (after.broken, after.cause) != (answer.broken, answer.cause)
    order = [one.link for one in answer.links]
    before = order[: order.index(str(answer.broken)) + 1]
    assert not [one for one in after.links if one.link in before and one.health == "broken"], after


def test_there_are_enough_faults() -> None:
    assert len({fault.name for fault in FAULTS}) >= 25


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("asked", ["vault", "bastion", "00.000d", "matrix:vault", "guest:bastion"])
def test_a_healthy_chain_has_no_broken_link(new_rig: Callable[..., Rig], kernel: str, asked: str) -> None:
    rig = new_rig(kernel)
    scene(rig)
    answer = rig.service.why(asked)
    assert (answer.broken, answer.cause, answer.mend) == (None, None, None)
    assert {one.health for one in answer.links} == {"ok"}


def following(rig: Rig, asked: str) -> Iterator[WhyAnswer]:
    """Ask, do as told, ask again, until nothing is broken."""
    for _ in range(12):
        answer = rig.service.why(asked)
        yield answer
        if answer.broken is None:
            return
    raise AssertionError("what is printed leads round in circles")


@pytest.mark.parametrize("kernel", KERNELS)
def test_doing_as_told_again_and_again_ends_with_a_healthy_chain(
    new_rig: Callable[..., Rig], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = new_rig(kernel)
    scene(rig)
    reloaded(rig)
    rig.guests.rooms["bastion"].config.clear()
    rig.kernel.play({"action": "deconfigure", "adapter": 2})
    seen = []
    with RunningServer(rig) as server:
        shell = Shell(rig, server, monkeypatch)
        for answer in following(rig, "vault"):
            seen.append(answer.broken)
            if answer.mend:
                shell.run(answer.mend)
    assert seen[0] == "adapter"
    assert seen[-1] is None
    assert "module" in seen


def test_a_name_of_nothing_is_refused_with_what_there_is(rig: Rig) -> None:
    scene(rig)
    with pytest.raises(Refused) as error:
        rig.service.why("ghost")
    assert error.value.problem is Problem.UNKNOWN_MATRIX
    assert "vault" in str(error.value.hint)
    assert "bastion" in str(error.value.hint)


def test_a_name_that_is_both_can_be_asked_for_as_either(rig: Rig) -> None:
    scene(rig)
    rig.define("other", queues="06.000d")
    assert rig.service.why("other").subject == "matrix other"
    assert rig.service.why("guest:other").subject == "guest other"


def test_a_foreign_device_is_explained_and_left_alone(rig: Rig) -> None:
    scene(rig)
    rig.kernel.sysfs.write("bus/ap/apmask", "-6")
    rig.kernel.sysfs.write(CREATE, str(STRANGER))
    rig.kernel.sysfs.write(f"{MATRIX}/{STRANGER}/assign_adapter", "6")
    rig.kernel.sysfs.write(f"{MATRIX}/{STRANGER}/assign_domain", "13")
    answer = rig.service.why("06.000d")
    assert "was not defined by vfioapd" in answer.links[0].sentence
    assert answer.broken is None


def test_asking_changes_nothing(any_rig: Rig) -> None:
    scene(any_rig)
    before, writes = any_rig.state(), any_rig.kernel.write_count
    for asked in ("vault", "spare", "bastion", "other", "00.000d", "06.0011", "0a.000d"):
        any_rig.service.why(asked)
    assert any_rig.state() == before
    assert any_rig.kernel.write_count == writes


def test_the_screen_marks_the_broken_link_and_prints_the_command_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene(rig)
    stopped(rig)
    with RunningServer(rig) as server:
        monkeypatch.setenv("VFIOAPD_SOCKET", server.ro)
        assert main.main(["why", "vault"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("->")] == ["mdev"]
    assert lines[-1] == "mend it with: vfioapctl start vault"
