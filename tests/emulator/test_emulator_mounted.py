# SPDX-License-Identifier: Apache-2.0
"""The served emulator: real system calls on the mounted tree, real uevents, control, and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from emulated import BUS, MATRIX, TYPE, U1, errno_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
M1 = f"{MATRIX}/{U1}"

pytestmark = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]

# Prints the body of each kernel uevent as one JSON line; the first line says that it listens.
LISTENER = """
import json, socket
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
s.bind((0, 1))
print("listening", flush=True)
while True:
    print(json.dumps(s.recv(8192).decode().split(chr(0))), flush=True)
"""


@dataclass
class Served:
    """A served kernel in namespaces of its own."""

    process: subprocess.Popen[str]
    root: Path
    socket_path: Path

    def write(self, path: str, text: str) -> int:
        file = os.open(self.root / path, os.O_WRONLY)
        try:
            return os.write(file, text.encode())
        finally:
            os.close(file)

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def ask(self, **request: object) -> dict[str, object]:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.socket_path))
            client.sendall(json.dumps(request).encode() + b"\n")
            reply: dict[str, object] = json.loads(client.makefile().readline())
            return reply


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    mountpoint = tmp_path / "sys"
    mountpoint.mkdir()
    control = tmp_path / "control"
    command = [
        sys.executable,
        "-m",
        "vfioapd.emulator",
        "rdbkvm4",
        str(mountpoint),
        "--control",
        str(control),
    ]
    process = subprocess.Popen(
        ["unshare", "--mount", "--net", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield Served(process, Path(f"/proc/{process.pid}/root{mountpoint}"), control)
    process.terminate()
    process.wait(10)


@pytest.fixture
def uevents(served: Served) -> Iterator[Iterator[list[str]]]:
    """Kernel uevents in the server's network namespace, as lists of strings."""
    command = ["nsenter", f"--net=/proc/{served.process.pid}/ns/net", sys.executable, "-c", LISTENER]
    listener = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert listener.stdout is not None
    assert listener.stdout.readline() == "listening\n"
    yield (json.loads(line) for line in listener.stdout)
    listener.kill()
    listener.wait()


def test_files_links_and_types_are_those_of_a_sysfs(served: Served) -> None:
    assert served.read(f"{BUS}/bindings") == "16/16 (complete)\n"
    assert served.read(f"{BUS}/devices/05.000d/uevent") == "DEVTYPE=ap_queue\nDRIVER=cex4queue\nMODE=ep11\n"
    with os.scandir(served.root / BUS / "devices") as found:
        assert all(entry.is_symlink() for entry in found)
    status = (served.root / BUS / "apmask").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_size, status.st_uid) == (0o644, 4096, 0)
    # not a device node, whose opening would not reach the server
    assert stat.S_ISREG((served.root / "dev/vfio/vfio").stat().st_mode)


def test_a_vfio_group_opens_once(served: Served) -> None:
    served.write(f"{TYPE}/create", U1)
    group = served.root / "dev/vfio/0"
    os.close(os.open(group, os.O_RDWR))
    served.ask(command="guest_open", uuid=U1, guest="bastion")
    assert errno_of(lambda: os.open(group, os.O_RDWR)) == "EBUSY"


def test_refused_accesses_have_the_kernels_errno(served: Served) -> None:
    assert errno_of(lambda: served.write(f"{BUS}/apmask", "-256")) == "EINVAL"
    assert errno_of(lambda: served.read(f"{BUS}/drivers_probe")) == "EACCES"
    assert errno_of(lambda: served.write(f"{BUS}/features", "x")) == "EACCES"
    assert errno_of(lambda: (served.root / BUS / "nothing").write_text("x")) == "EACCES"
    assert errno_of(lambda: (served.root / "folder").mkdir()) == "EPERM"
    assert errno_of(lambda: (served.root / BUS / "apmask").unlink()) == "EPERM"
    assert errno_of(lambda: served.read(f"{BUS}/devices/99.0004/online")) == "ENOENT"


def test_nobody_else_may_write(served: Served) -> None:
    # /proc/PID/root is closed to nobody, so the process stands in the folder before it gives up root.
    script = "import os; os.setgid(65534); os.setuid(65534)\nopen('apmask').read()\n"
    script += "try: open('apmask', 'w')\nexcept OSError as e: print(e.errno)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=served.root / BUS, capture_output=True, text=True)
    assert done.stdout.strip() == "13", done.stderr


def test_names_follow_the_devices_though_they_are_cached(served: Served) -> None:
    queue = served.root / BUS / "devices/05.000d"
    assert (queue / "online").exists()
    assert not (queue / "status").exists()
    served.write(f"{BUS}/apmask", "-5")
    assert not (queue / "online").exists()
    assert (queue / "status").read_text() == "unassigned\n"
    assert os.readlink(queue / "driver").endswith("vfio_ap")
    served.ask(command="play", action="remove-adapter", adapter=5)
    assert not queue.exists()
    assert not (served.root / "devices/ap/card05").exists()
    assert errno_of(lambda: served.read("devices/ap/card05/type")) == "ENOENT"


def test_an_open_file_of_a_removed_mdev_gives_enodev(served: Served) -> None:
    served.write(f"{TYPE}/create", U1)
    file = os.open(served.root / M1 / "matrix", os.O_RDONLY)
    assert os.read(file, 10) == b""
    served.write(f"{M1}/remove", "1")
    assert errno_of(lambda: os.pread(file, 10, 0)) == "ENODEV"
    os.close(file)


def test_each_change_is_a_real_kernel_uevent(served: Served, uevents: Iterator[list[str]]) -> None:
    served.write(f"{BUS}/apmask", "-5")
    lines = [next(uevents) for _ in range(5)]
    assert [line[0] for line in lines] == [
        "unbind@/devices/ap/card05/05.000d",
        "bind@/devices/ap/card05/05.000d",
        "unbind@/devices/ap/card05/05.0011",
        "bind@/devices/ap/card05/05.0011",
        "change@/devices/ap",
    ]
    assert "DRIVER=vfio_ap" in lines[1]
    assert f"APMASK=0xfb{'f' * 62}\n" in lines[4]
    numbers = [int(key[7:]) for line in lines for key in line if key.startswith("SEQNUM=")]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 5


def test_a_blocked_removal_can_be_killed_and_goes_on(served: Served) -> None:
    served.write(f"{TYPE}/create", U1)
    assert served.ask(command="guest_open", uuid=U1, guest="bastion") == {"ok": True}
    writer = subprocess.Popen(["sh", "-c", f"echo 1 > {served.root / M1 / 'remove'}"])
    while (served.root / M1 / "remove").exists():
        time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(0.3)
    assert served.read(f"{BUS}/bindings") == "16/16 (complete)\n"
    writer.send_signal(signal.SIGCHLD)  # no fatal signal: the writer stays
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(0.3)
    writer.kill()
    assert writer.wait(5) == -signal.SIGKILL
    assert served.read(f"{TYPE}/available_instances") == "65535\n"
    served.ask(command="guest_close", guest="bastion")
    assert served.read(f"{TYPE}/available_instances") == "65536\n"


def test_many_blocked_writers_hold_up_nobody(served: Served) -> None:
    served.ask(command="play", action="hang", path=f"{BUS}/config_time")
    path = served.root / BUS / "config_time"
    writers = [subprocess.Popen(["sh", "-c", f"echo 31 > {path}"]) for _ in range(15)]
    served.write(f"{BUS}/apmask", "-5")
    assert served.read(f"{BUS}/config_time") == "30\n"
    assert all(writer.poll() is None for writer in writers)
    served.ask(command="play", action="mend", path=f"{BUS}/config_time")
    assert [writer.wait(10) for writer in writers] == [0] * 15
    assert served.read(f"{BUS}/config_time") == "31\n"


def test_sigterm_unmounts_and_ends_though_a_writer_blocks(served: Served) -> None:
    served.write(f"{TYPE}/create", U1)
    served.ask(command="guest_open", uuid=U1, guest="bastion")
    writer = subprocess.Popen(
        ["sh", "-c", f"echo 1 > {served.root / M1 / 'remove'}"], stderr=subprocess.DEVNULL
    )
    while (served.root / M1 / "remove").exists():
        time.sleep(0.01)
    served.process.terminate()
    assert served.process.wait(10) == 0
    assert writer.wait(10) != 0
    assert not served.socket_path.exists()


def test_a_host_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vfioapd.emulator", "nowhere", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "rdbkvm4" in done.stderr
