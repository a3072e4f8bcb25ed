# SPDX-License-Identifier: Apache-2.0
"""Real tools as judges of the emulated kernel. All of it needs root, and programs that are fetched once.

A program that cannot be fetched is a skip that says why.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from newer_stack import NewerStack

from vfioapd.lab import peers
from vfioapd.lab.errors import LabError
from vfioapd.lab.harness import running_lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vfioapd.lab.harness import Lab

HOST = "rdbkvm4"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("labs need root")


@pytest.fixture(scope="session")
def ibm_tools() -> Path:
    """lszcrypt and its family are on the PATH of the labs."""
    return _fetched(peers.IBM_TOOLS)


@pytest.fixture(scope="session")
def newer_root() -> Path:
    return _fetched(peers.NEWER_STACK)


def _fetched(peer: peers.Peer) -> Path:
    try:
        return peers.fetch(peer)
    except LabError as error:
        pytest.skip(str(error))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A fresh Redbook host without libvirt."""
    with running_lab(HOST, "--no-libvirt") as running:
        yield running


@pytest.fixture
def libvirt_lab() -> Iterator[Lab]:
    """A fresh Redbook host with this machine's own libvirtd."""
    with running_lab(HOST) as running:
        yield running


@pytest.fixture
def newer(lab: Lab, newer_root: Path) -> NewerStack:
    """mdevctl 1.4 and libvirt 11.3 inside the fresh host."""
    return NewerStack(lab, newer_root)


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Waits for what sends no event: wait_until(condition, "what", seconds=60)."""
    return _wait_until


def _wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain until {what}"
        time.sleep(0.05)
