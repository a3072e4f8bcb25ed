# SPDX-License-Identifier: Apache-2.0
"""Host files, plays, and control at run time."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from emulated import BUS, M1, TYPE, U1, driver_of, errno_of, host, start

from vfioapd.emulator.control import Control, ControlServer
from vfioapd.emulator.hostfile import HostFileError, load_host_file, parse_host, shipped_hosts
from vfioapd.emulator.kernel import Kernel
from vfioapd.emulator.plays import PlayError

if TYPE_CHECKING:
    from pathlib import Path

MINIMAL = '[machine]\nusage_domains = [4]\n[[card]]\nadapter = 5\ntype = "CEX8P"\n'


def test_every_shipped_host_boots() -> None:
    assert {"rdbkvm4", "full-lpar"} <= set(shipped_hosts())
    for name in shipped_hosts():
        bindings = Kernel(load_host_file(name)).sysfs.read(f"{BUS}/bindings")
        assert bindings.endswith("(complete)\n")


def test_a_full_lpar_boots_in_under_two_seconds() -> None:
    began = time.perf_counter()
    made = Kernel(load_host_file("full-lpar"))
    assert time.perf_counter() - began < 2
    assert made.sysfs.read(f"{BUS}/bindings") == "5100/5100 (complete)\n"


def test_a_small_host_file_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(MINIMAL)
    loaded = load_host_file(path)
    assert (loaded.name, loaded.kernel.name) == ("small", "6.12")
    assert Kernel(loaded).sysfs.read(f"{BUS}/devices/05.0004/uevent").endswith("MODE=ep11\n")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("colour = 1\n" + MINIMAL, "colour"),
        (MINIMAL + "size = 3\n", "size"),
        (MINIMAL.replace("CEX8P", "CEX9P"), "type"),
        (MINIMAL.replace("= 5", "= 256"), "adapter"),
        (MINIMAL.replace("[4]", "[4, 256]"), "usage_domains"),
        (MINIMAL.replace("[4]", '["4"]'), "usage_domains"),
        ('kernel = "5.4"\n' + MINIMAL, "kernel"),
        (MINIMAL + '[[card]]\nadapter = 5\ntype = "CEX8A"\n', "twice"),
        (MINIMAL + '[card.mkvps.4]\n"AES CUR" = "valid 0x0"\n', "AES CUR"),
        ('modules = ["kvm"]\n' + MINIMAL, "modules"),
        ("[limits]\nsclp = 1\n", "limits.sclp"),
        ("x = \n", "TOML"),
    ],
)
def test_a_wrong_host_file_is_refused_by_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(HostFileError, match=named) as refused:
        load_host_file(path)
    assert str(path) in str(refused.value)


def test_an_unknown_host_is_told_which_are_known() -> None:
    with pytest.raises(HostFileError, match="rdbkvm4"):
        load_host_file("nowhere")


# --- plays


def test_the_machine_changes_under_the_kernel(generation: str) -> None:
    made = start("A", generation)
    made.play({"action": "add-adapter", "adapter": 9, "type": "CEX8P"})
    assert driver_of(made, "09.0004") == "cex4queue"
    made.play({"action": "add-domain", "domain": 7})
    assert driver_of(made, "09.0007") == "cex4queue"
    made.play({"action": "remove-domain", "domain": 7})
    made.play({"action": "remove-adapter", "adapter": 9})
    assert made.sysfs.read(f"{BUS}/bindings") == "6/6 (complete)\n"


def test_a_change_waits_for_a_scan_when_told_so(generation: str) -> None:
    made = start("A", generation)
    made.play({"action": "checkstop", "adapter": 5, "scan": False})
    assert made.sysfs.read("devices/ap/card05/chkstop") == "0\n"
    made.scan()
    assert made.sysfs.read("devices/ap/card05/chkstop") == "1\n"
    made.play({"action": "configure", "adapter": 5})
    assert made.sysfs.read("devices/ap/card05/chkstop") == "0\n"


def test_one_queue_alone_can_go(generation: str) -> None:
    made = start("A", generation)
    made.play({"action": "set-queue", "adapter": 5, "domain": 4, "state": "not-available"})
    assert "05.0004" not in made.sysfs.names(f"{BUS}/devices")
    made.play({"action": "set-queue", "adapter": 5, "domain": 4, "state": "deconfigured"})
    assert made.sysfs.read(f"{BUS}/devices/05.0004/config") == "0\n"


def test_a_master_key_changes(generation: str) -> None:
    made = start("A", generation)
    change = {"action": "set-mkvp", "adapter": 5, "domain": 4, "register": "AES CUR"}
    made.play({**change, "value": "valid 0x1122334455667788"})
    assert "AES CUR: valid 0x1122334455667788\n" in made.sysfs.read(f"{BUS}/devices/05.0004/mkvps")


def test_a_file_fails_until_it_is_mended(generation: str) -> None:
    made = start("A", generation)
    made.play({"action": "fail", "path": "devices/ap/card05/online"})
    assert errno_of(lambda: made.sysfs.read("devices/ap/card05/online")) == "EIO"
    made.play({"action": "mend", "path": "devices/ap/card05/online"})
    assert made.sysfs.read("devices/ap/card05/online") == "1\n"


def test_a_hanging_write_holds_up_nothing_else(generation: str) -> None:
    made = start("A", generation)
    made.play({"action": "hang", "path": f"{BUS}/apmask"})
    writer = threading.Thread(target=made.sysfs.write, args=(f"{BUS}/apmask", "-5"), daemon=True)
    writer.start()
    while not made.sleepers:
        writer.join(0.001)
    assert made.sysfs.read(f"{BUS}/apmask").startswith("0xff")
    made.sysfs.write(f"{BUS}/aqmask", "-4")
    made.play({"action": "mend", "path": f"{BUS}/apmask"})
    writer.join(5)
    assert made.sysfs.read(f"{BUS}/apmask").startswith("0xfb")


def test_a_slow_reset_is_paid_by_the_writer() -> None:
    made = start("A", "7.3")
    made.play({"action": "slow-reset", "seconds": 0.02})
    began = time.perf_counter()
    made.sysfs.write(f"{BUS}/apmask", "-5")
    assert time.perf_counter() - began >= 0.06


def test_bindings_can_be_complete_late_after_a_boot() -> None:
    made = start("A", "7.3")
    made.play({"action": "late-bindings", "seconds": 0.05})
    complete = threading.Event()
    made.events.subscribe(lambda event: complete.set() if ("BINDINGS", "complete") in event.keys else None)
    made.reboot()
    assert made.sysfs.read(f"{BUS}/bindings") == "0/6\n"
    assert complete.wait(5)
    assert made.sysfs.read(f"{BUS}/bindings") == "6/6 (complete)\n"


@pytest.mark.parametrize(
    "action",
    [
        {"action": "explode"},
        {"action": "remove-adapter"},
        {"action": "remove-adapter", "adapter": 256},
        {"action": "remove-adapter", "adapter": 5, "color": 1},
        {"action": "deconfigure", "adapter": 77},
        {"action": "set-queue", "adapter": 5, "domain": 4, "state": "asleep"},
        {"action": "add-adapter", "adapter": 9, "type": "CEX3C"},
        {"action": "fail", "path": "x", "errno": "ENOTHING"},
        {},
    ],
)
def test_a_wrong_play_is_refused(action: dict[str, object]) -> None:
    with pytest.raises(PlayError):
        start("A", "7.3").play(action)


def test_a_host_file_with_a_wrong_play_does_not_boot() -> None:
    wrong = parse_host({"play": [{"after": 1, "action": "explode"}]}, "test")
    with pytest.raises(PlayError, match="explode"):
        Kernel(wrong)


# --- control


def ask(control: Control, **request: object) -> dict[str, object]:
    return control.answer(json.dumps(request))


def test_control_carries_out_commands() -> None:
    made = start("D", "7.3")
    control = Control(made)
    assert ask(control, command="guest_open", uuid=U1, guest="bastion") == {"ok": True}
    assert ask(control, command="guests")["guests"] == {"bastion": U1}
    assert ask(control, command="guest_open", uuid=U1, guest="other")["error"] == "EBUSY"
    assert ask(control, command="guest_close", guest="bastion") == {"ok": True}
    assert ask(control, command="guest_close", guest="bastion")["error"] == "ENOENT"
    state = ask(control, command="state")["state"]
    assert isinstance(state, dict)
    assert state["mdevs"][U1]["matrix"] == "05.0004\n05.0010\n"
    assert ask(control, command="writes", reset=True)["writes"] == 6
    assert ask(control, command="writes")["writes"] == 0
    assert ask(control, command="play", action="remove-adapter", adapter=5) == {"ok": True}
    assert ask(control, command="reboot") == {"ok": True}
    assert ask(control, command="unload_module", name="vfio_ap") == {"ok": True}


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", '{"command": "dance"}', '{"command": "play", "action": 1}', "\x00"]
)
def test_control_answers_nonsense_with_an_error(line: str) -> None:
    reply = Control(start("A", "7.3")).answer(line)
    assert reply["error"] == "EINVAL"
    assert reply["message"]


def test_a_watcher_hears_what_a_guest_is_told(tmp_path: Path) -> None:
    made = start("D", "7.3")
    made.guest_open(U1, "bastion")
    server = ControlServer(made, tmp_path / "control")
    server.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "control"))
        client.sendall(b'{"command": "watch"}\n')
        lines = client.makefile()
        assert json.loads(lines.readline()) == {"ok": True}
        made.sysfs.write(f"{M1}/assign_domain", "0x54")
        assert json.loads(lines.readline()) == {"event": "config-changed", "guest": "bastion", "uuid": U1}
    server.shutdown()
    server.server_close()


def test_instances_are_not_shared_between_kernels() -> None:
    first, second = Kernel(host("7.3")), Kernel(host("7.3"))
    first.sysfs.write(f"{TYPE}/create", U1)
    assert second.sysfs.read(f"{TYPE}/available_instances") == "65536\n"
