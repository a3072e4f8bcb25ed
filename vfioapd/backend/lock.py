# SPDX-License-Identifier: Apache-2.0
"""s390-tools' AP configuration lock, by s390-tools' own rules (libutil/util_lockfile.c).

chzdev and the mdevctl callout ap-check take the same file. It holds its owner's PID and exists while
it is held; taking it is a link(2) of a temporary file to its name. A dead owner's file is cleared by
the next taker. Must not be held while mdevctl or libvirt's node device calls run: on a host with
ap-check they would wait for us.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import time
from typing import TYPE_CHECKING

from vfioapd.domain.problems import Problem, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

PAUSE = (0.030, 0.033)  # seconds between two tries, as libap waits
EMPTY_IS_STALE = 120.0  # seconds after which a file without a PID has no owner


@contextlib.contextmanager
def ap_lock(path: Path, *, patience: float = 10.0) -> Iterator[None]:
    """Hold the lock. Blocks up to ``patience`` seconds, then refuses and names the owner."""
    try:
        _wait_for(path, patience)
    except OSError as error:
        raise Unavailable(
            Problem.LOCK_HELD,
            f"the AP configuration lock {path} cannot be taken: {error.strerror or error}",
            hint=f"look at the folder {path.parent}",
        ) from error
    try:
        yield
    finally:
        _release(path)


def _wait_for(path: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not _take(path):
        owner = _owner(path)
        if owner is None:
            continue  # released or cleared in between: try again at once
        if time.monotonic() >= deadline:
            raise Unavailable(
                Problem.LOCK_HELD,
                f"the AP configuration lock {path} is held by {_name(owner)}",
                hint="wait for that program to end, then try again",
                owners=[_name(owner)],
            )
        time.sleep(random.uniform(*PAUSE))


def holder(path: Path) -> str | None:
    """The other program that holds the lock now; None when nobody does, or we do. Changes nothing."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    pid = int(text) if text.isdecimal() else 0
    return _name(pid) if pid and pid != os.getpid() and _is_alive(pid) else None


def _take(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid():05d}{int(time.time()) & 0xFF:02x}")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("x") as file:
            file.write(f"{os.getpid()}\n")
        temporary.chmod(0o644)
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _owner(path: Path) -> int | None:
    """The PID that holds the lock, 0 when not yet known; a stale lock is cleared and has none."""
    try:
        with path.open() as file:
            # Two of us may find one dead owner: the slower must not clear the quicker one's new lock.
            fcntl.flock(file, fcntl.LOCK_EX)
            text, found = file.read(32).strip(), os.fstat(file.fileno())
            pid = int(text) if text.isdecimal() else 0
            if (pid and _is_alive(pid)) or (not pid and time.time() - found.st_mtime < EMPTY_IS_STALE):
                return pid
            if os.path.samestat(found, path.stat()):
                path.unlink()
    except FileNotFoundError:
        pass
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no such process, or no PID at all
        return False
    except PermissionError:
        return True
    return True


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as comm:
            return f"{comm.read().strip()} (PID {pid})"
    except OSError:
        return f"PID {pid}"


def _release(path: Path) -> None:
    """Take the lock away, unless somebody found us dead and took it over.

    A failure here must not take the place of the one that ended the change: it is only logged, and the
    next taker waits for us in vain until this process ends.
    """
    try:
        if path.read_text().strip() == str(os.getpid()):
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.error("the lock %s could not be released: %s", path, error)
