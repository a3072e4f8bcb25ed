# SPDX-License-Identifier: Apache-2.0
"""Real tools as judges of the emulated kernel. All of it needs root, and programs that are fetched once.

A program that cannot be fetched is a skip that says why.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from labs import mark_as_lab, skip_without_root, wait
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
    mark_as_lab(items, HERE)


@pytest.fixture(scope="session", autouse=True)
def root() -> None:
    skip_without_root()


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
    return partial(wait, seconds=60)
