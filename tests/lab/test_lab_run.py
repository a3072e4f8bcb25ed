# SPDX-License-Identifier: Apache-2.0
"""`vfioap-lab run`: the command's own status comes back, and nothing at all stays behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import shutil
import signal
import subprocess
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vfioapd.lab import namespaces
from vfioapd.lab.harness import VFIOAP_LAB, Lab, Result, running_lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO

HOST = "rdbkvm4"
REPOSITORY = Path(__file__).resolve().parents[2]
FILLED = "vfioap-lab guest stray --start; setsid sleep infinity & echo up"


@pytest.fixture
def traceless(machine_state: Callable[[], object]) -> Iterator[None]:
    before = machine_state()
    yield
    assert machine_state() == before


@pytest.fixture
def end_and_watch(wait_until: Callable[..., None]) -> Callable[..., int]:
    """Starts a lab with a guest and a stray process in it, ends it, waits until it is empty."""

    def end(how: Callable[[subprocess.Popen[str]], object], command: str = "sleep infinity") -> int:
        with subprocess.Popen(
            [*VFIOAP_LAB, "run", HOST, "--", "bash", "-c", f"{FILLED}; {command}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as lab:
            try:
                assert lab.stdout
                assert lab.stdout.readline() == "up\n"
                namespaces = namespaces_of(Lab(lab.pid).first)
                assert len(members(namespaces)) > 5
                how(lab)
                status = lab.wait(30)
            finally:
                lab.kill()
        wait_until(lambda: not members(namespaces), "no process of the lab is left")
        return status

    return end


def namespaces_of(pid: int) -> frozenset[str]:
    return frozenset(os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("pid", "mnt", "net"))


def members(namespaces: frozenset[str]) -> list[int]:
    """Processes that live in any of the namespaces."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it ended while we looked
                if namespaces & namespaces_of(int(entry.name)):
                    found.append(int(entry.name))
    return found


def let_go(lab: subprocess.Popen[str]) -> None:
    assert lab.stdin
    lab.stdin.write("\n")
    lab.stdin.flush()


@pytest.mark.usefixtures("traceless")
class TestNothingIsLeft:
    def test_when_the_command_ends(self, end_and_watch: Callable[..., int]) -> None:
        assert end_and_watch(let_go, "read; exit 7") == 7

    def test_when_the_command_crashes(self, end_and_watch: Callable[..., int]) -> None:
        assert end_and_watch(let_go, "read; kill -SEGV $$") == 128 + signal.SIGSEGV

    def test_when_the_lab_is_asked_to_end(self, end_and_watch: Callable[..., int]) -> None:
        assert end_and_watch(lambda lab: lab.terminate()) == 128 + signal.SIGTERM

    def test_when_the_terminal_hangs_up(self, end_and_watch: Callable[..., int]) -> None:
        status = end_and_watch(lambda lab: lab.send_signal(signal.SIGHUP))
        assert status == 128 + signal.SIGHUP

    def test_when_the_outer_process_is_killed(self, end_and_watch: Callable[..., int]) -> None:
        assert end_and_watch(lambda lab: lab.kill()) == -signal.SIGKILL

    def test_when_the_first_process_is_killed(self, end_and_watch: Callable[..., int]) -> None:
        def kill_first(lab: subprocess.Popen[str]) -> None:
            os.kill(Lab(lab.pid).first, signal.SIGKILL)

        assert end_and_watch(kill_first) == 128 + signal.SIGKILL

    def test_when_ctrl_c_is_pressed(self) -> None:
        process = subprocess.Popen(
            [*VFIOAP_LAB, "run", HOST, "--", "sh", "-c", "echo up; exec sleep infinity"],
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # as a shell does: the terminal signals the whole group
        )
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
        process.stdout.close()

    def test_when_a_service_does_not_start(self, tmp_path: Path) -> None:
        broken = tmp_path / "udevadm"
        broken.write_text("#!/bin/sh\necho no luck today >&2\nexit 1\n")
        broken.chmod(0o755)
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        result = subprocess.run(
            [*VFIOAP_LAB, "run", HOST, "--", "true"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 1
        assert "udevd cannot be used: udevadm: no luck today; the end of its log" in result.stderr
        assert "no luck today" in result.stderr


def test_an_interactive_shell_has_its_terminal_and_its_job_control() -> None:
    main, terminal = pty.openpty()
    shell = subprocess.Popen(
        [*VFIOAP_LAB, "run", "--no-libvirt", HOST, "--", "bash", "--norc", "-i"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    with shell, open(main, "r+b", buffering=0) as keyboard:
        try:
            # what it prints comes from the child, which then has the terminal for sure
            keyboard.write(b"sh -c 'echo be$((1))gun; exec sleep 100'\n")
            screen = read_until(keyboard, b"be1gun")
            keyboard.write(b"\x03")  # ctrl-C ends the sleep, not the shell
            keyboard.write(b"echo status $?; exit 3\n")
            screen += read_until(keyboard, b"status 130")
            assert shell.wait(30) == 3
        finally:
            shell.kill()
    assert b"no job control" not in screen


def read_until(screen: FileIO, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        assert select.select([screen], [], [], 20)[0], f"no {text!r} in {seen!r}"
        seen += screen.read(1024) or b""
    return seen


def test_writes_to_etc_var_and_dev_stay_in_the_lab(lab_run: Callable[..., Result]) -> None:
    files = ["/etc/vfioap-lab-test", "/var/lib/vfioap-lab-test", "/var/log/vfioap-lab-test"]
    script = (
        "touch $* && mkdir -p /etc/libvirt/qemu/x && mknod /dev/vfioap-lab-test c 1 3 && chmod 600 /dev/full"
    )
    before = os.stat("/dev/full").st_mode
    lab_run(HOST, ["bash", "-euc", script, "sh", *files])
    assert not any(Path(path).exists() for path in [*files, "/etc/libvirt/qemu/x", "/dev/vfioap-lab-test"])
    assert os.stat("/dev/full").st_mode == before


def test_the_callers_folder_stays_the_real_one(lab_run: Callable[..., Result], tmp_path: Path) -> None:
    result = lab_run(HOST, ["sh", "-c", f"pwd; echo here > {tmp_path}/made"], "--no-libvirt")
    assert result.stdout == f"{Path.cwd()}\n"
    assert (tmp_path / "made").read_text() == "here\n"


@pytest.mark.parametrize("folder", ["/var/tmp", "/run"])
def test_a_folder_that_the_lab_covers_is_kept_for_its_caller(folder: str) -> None:
    here = Path(folder, f"vfioap-lab-test-{os.getpid()}")
    here.mkdir()
    try:
        subprocess.run(
            [*VFIOAP_LAB, "run", "--no-libvirt", HOST, "--", "touch", "made"],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            check=True,
            timeout=60,
        )
        assert (here / "made").exists()
    finally:
        shutil.rmtree(here)


def test_the_rest_of_sys_is_seen_but_cannot_be_changed(lab_run: Callable[..., Result]) -> None:
    script = "ls /sys/bus /sys/class; echo 1 > /sys/bus/platform/drivers_probe"
    result = lab_run(HOST, ["bash", "-c", script], "--no-libvirt", check=False)
    for name in ("platform", "ap", "block", "mdev_bus"):
        assert name in result.stdout.split()
    assert "Read-only file system" in result.stderr


def test_the_lab_has_its_own_network(lab_run: Callable[..., Result]) -> None:
    result = lab_run(HOST, ["sh", "-c", "ls /sys/class/net; cat /sys/class/net/lo/operstate"])
    assert result.stdout.split() == ["lo", "unknown"]  # lo is never "up", but "down" before it is


def test_two_labs_do_not_see_each_other() -> None:
    with running_lab(HOST, "--no-libvirt") as one, running_lab(HOST, "--no-libvirt") as other:
        one.shell("echo -n -5 > /sys/bus/ap/apmask; touch /run/only-here /etc/only-here")
        mask = other.run("cat", "/sys/bus/ap/apmask").stdout
        assert mask == "0x" + "f" * 64 + "\n"
        assert other.run("test", "-e", "/run/only-here", check=False).returncode == 1
        assert other.run("test", "-e", "/etc/only-here", check=False).returncode == 1


def test_a_command_that_cannot_be_entered_with_is_named() -> None:
    with running_lab(HOST, "--no-libvirt") as lab:
        result = lab.run("/nosuchprogram", check=False)
    assert result.stderr == "vfioap-lab: cannot start /nosuchprogram: No such file or directory\n"
    assert result.returncode == 1


def test_a_lab_can_stand_in_a_lab() -> None:
    with running_lab(HOST, "--no-libvirt") as lab:
        lab.shell("echo -n -5 > /sys/bus/ap/apmask")
        inner = lab.run("vfioap-lab", "run", HOST, "--no-libvirt", "--", "cat", "/sys/bus/ap/apmask")
        assert inner.stdout == "0x" + "f" * 64 + "\n"


def test_a_module_that_is_loaded_late_brings_its_folders(tmp_path: Path) -> None:
    host = tmp_path / "late.toml"
    host.write_text(
        'kernel = "6.12"\nmodules = []\n[machine]\nusage_domains = [1]\n'
        '[[card]]\nadapter = 1\ntype = "CEX8P"\n'
    )
    with running_lab(str(host)) as lab:
        for folder in ("/sys/bus/matrix", "/sys/class/mdev_bus", "/sys/module/vfio_ap", "/dev/vfio"):
            assert lab.run("test", "-d", folder, check=False).returncode == 1
        lab.run("vfioap-lab", "module", "load", "vfio_ap")
        for folder in ("/sys/bus/matrix", "/sys/class/mdev_bus", "/sys/module/vfio_ap", "/dev/vfio"):
            lab.run("test", "-d", folder)
        assert lab.run("virsh", "-q", "nodedev-list", "--cap", "ap_matrix").stdout.split() == ["ap_matrix"]


def test_entering_needs_a_choice_between_several_labs() -> None:
    with running_lab(HOST, "--no-libvirt"), running_lab(HOST, "--no-libvirt"):
        result = subprocess.run([*VFIOAP_LAB, "enter", "--", "true"], capture_output=True, text=True)
        assert result.returncode == 3
        assert "name one with --lab PID" in result.stderr


def test_another_lab_that_ends_meanwhile_does_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with subprocess.Popen(["sleep", "60"]) as ours:
        monkeypatch.setattr(namespaces, "_running_labs", lambda: iter([ended.pid, ours.pid]))
        try:
            assert namespaces.find_lab(os.getpid()) == ours.pid
        finally:
            ours.kill()
