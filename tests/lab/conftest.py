# SPDX-License-Identifier: Apache-2.0
"""Labs for tests: one for a whole module (`lab`), or one for a single command (`lab_run`).

All of them need root and are skipped with the reason where it is missing. Whatever the tests did, the
machine outside must look the same afterwards, which is checked at the end of the session.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from labs import mark_as_lab, skip_without_root, wait

from vfioapd.lab.harness import Lab, Result, run_in_new_lab, running_lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOST = "rdbkvm4"
HERE = Path(__file__).parent
WATCHED = (
    "/etc/libvirt",
    "/etc/libvirt/hooks",
    "/etc/libvirt/qemu",
    "/etc/mdevctl.d",
    "/etc/udev/rules.d",
    "/etc/vfioapd",
    "/var/lib/libvirt",
    "/var/lib/vfioapd",
    "/var/log/libvirt",
)
State = dict[str, object]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_as_lab(items, HERE)


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    skip_without_root()


@pytest.fixture(scope="session")
def machine_state() -> Callable[[], State]:
    """Tells what a lab could have changed outside of its namespaces."""
    return _machine_state


@pytest.fixture(scope="session", autouse=True)
def unchanged_machine() -> Iterator[None]:
    before = _machine_state()
    yield
    assert _machine_state() == before


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab with the Redbook's host for all tests of a module; they clean up after themselves."""
    with running_lab(HOST) as running:
        yield running


@pytest.fixture(scope="session")
def lab_run() -> Callable[..., Result]:
    """Runs one command in a lab of its own: lab_run(host, command, *options, timeout=60, check=True)."""
    return run_in_new_lab


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Waits for what sends no event: wait_until(condition, "what", seconds=10)."""
    return partial(wait, seconds=10)


def _machine_state() -> State:
    nodes = [path for path in ("/dev/null", "/dev/full", "/dev/kvm", "/dev/fuse") if Path(path).exists()]
    return {
        "mounts": sorted(Path("/proc/self/mountinfo").read_text().splitlines()),
        "folders": {folder: _listing(Path(folder)) for folder in WATCHED},
        "nodes": {path: os.stat(path).st_mode for path in nodes},
        "AP bus": Path("/sys/bus/ap").exists(),
        "boot id": Path("/proc/sys/kernel/random/boot_id").read_text(),
        "lab folder": Path("/run/vfioap-lab").exists(),
        "vfio": Path("/dev/vfio").exists(),
    }


def _listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.lstat().st_mtime_ns) for path in folder.glob("*"))
