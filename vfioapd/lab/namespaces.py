# SPDX-License-Identifier: Apache-2.0
"""Into private namespaces, and out of them without a trace.

The lab is a PID namespace: when its first process ends, the kernel ends all others, and with the last
of them the mounts and the network are gone. That first process dies with the one that started it
(parent death signal), so even `kill -9` of the outer process leaves nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vfioapd.lab import syscalls
from vfioapd.lab.errors import Exit, LabError
from vfioapd.lab.layout import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

NAMESPACES = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWIPC
FORWARDED = (signal.SIGTERM, signal.SIGHUP)
# The terminal sends these to the whole foreground group; the command inside decides what they mean.
LEFT_TO_COMMAND = (signal.SIGINT, signal.SIGQUIT)


def run_new(body: Callable[[], int]) -> int:
    """Run `body` as PID 1 of new namespaces; return its status when all of them are gone."""
    try:
        syscalls.unshare(NAMESPACES)
    except OSError as error:
        raise LabError(
            f"a lab needs namespaces, which this machine refuses ({error.strerror}); "
            "in a container, run it with CAP_SYS_ADMIN",
            Exit.NOT_ROOT,
        ) from error
    return _fork_and_wait(body)


def run_inside(pid: int, body: Callable[[], int]) -> int:
    """Run `body` in the namespaces of process `pid`, in the same folder."""
    folder = Path.cwd()
    descriptor = os.pidfd_open(pid)
    syscalls.setns(descriptor, NAMESPACES)
    os.close(descriptor)
    os.chdir(folder if folder.is_dir() else "/")
    return _fork_and_wait(body)


def find_lab(pid: int | None) -> int:
    """PID of a lab's first process: of the lab that `pid` started, or of the only one running."""
    labs = list(_running_labs())
    if pid is not None:
        labs = [lab for lab in labs if pid in _lineage(lab)]
        if not labs:
            raise LabError(f"process {pid} has not started a lab", Exit.NO_LAB)
    if len(labs) != 1:
        found = f"{len(labs)} labs are running ({', '.join(map(str, labs))})" if labs else "no lab is running"
        hint = "name one with --lab PID" if labs else "start one with: vfioap-lab run HOSTFILE -- bash"
        raise LabError(f"{found}; {hint}", Exit.NO_LAB)
    return labs[0]


def _running_labs() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # processes come and go while we look
            if _is_first_of_namespace(entry) and (entry / "root" / ROOT.relative_to("/")).is_dir():
                yield int(entry.name)


def _is_first_of_namespace(process: Path) -> bool:
    numbers = _status_field(process, "NSpid:")
    return len(numbers) > 1 and numbers[-1] == "1"


def _parent(pid: int) -> int:
    return int(_status_field(Path("/proc", str(pid)), "PPid:")[0])


def _lineage(pid: int) -> Iterator[int]:
    """A process and all that it descends from: a booted lab has systemd-nspawn in between.

    Ends early where a process has ended meanwhile, as that of any other lab may.
    """
    with contextlib.suppress(OSError):
        while pid:
            yield pid
            pid = _parent(pid)


def _status_field(process: Path, name: str) -> list[str]:
    lines = (process / "status").read_text().splitlines()
    return next((line.split()[1:] for line in lines if line.startswith(name)), [])


def _fork_and_wait(body: Callable[[], int]) -> int:
    # The pipe tells the child whether its parent lived long enough for the death signal to be armed.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        _become_child(reader, body)
    os.close(reader)
    _forward_signals(pid)
    _, status = os.waitpid(pid, 0)
    os.close(writer)
    return exit_status(os.waitstatus_to_exitcode(status))


def _become_child(reader: int, body: Callable[[], int]) -> NoReturn:
    status = int(Exit.FAILED)
    try:
        syscalls.set_parent_death_signal(signal.SIGKILL)
        if _is_alive(reader):
            status = body()
    except LabError as error:
        print(f"vfioap-lab: {error}", file=sys.stderr)
        status = int(error.status)
    except BaseException:  # the last frame of a process: nobody else would report it
        traceback.print_exc()
    finally:
        os._exit(status)


def _is_alive(reader: int) -> bool:
    os.set_blocking(reader, False)
    with contextlib.suppress(BlockingIOError):
        return os.read(reader, 1) != b""
    return True


def _forward_signals(pid: int) -> None:
    for number in FORWARDED:
        signal.signal(number, lambda received, _frame: os.kill(pid, received))
    for number in LEFT_TO_COMMAND:
        signal.signal(number, signal.SIG_IGN)


def exit_status(code: int) -> int:
    """A shell's status for what subprocess calls a return code: -9 is 137."""
    return 128 - code if code < 0 else code


def exec_command(command: Sequence[str], environment: dict[str, str]) -> int:
    """Replace this process by the command; returns a shell's status only if that is impossible."""
    for number in LEFT_TO_COMMAND:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), environment)
    except OSError as error:
        raise LabError(f"cannot start {command[0]}: {error.strerror}") from error
