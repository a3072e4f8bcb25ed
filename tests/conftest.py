# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the unit, daemon and crash tests: hosts that are emulated in this process."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from doubles import KERNELS, Rig, RunningServer, host_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


MEMORY = Path("/dev/shm")  # hundreds of hosts are made, and each change of theirs waits for its fsyncs


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder whose fsync costs nothing, where there is such a place."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="vfioapd-test-", dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def new_rig(fast_path: Path) -> Callable[..., Rig]:
    """Make hosts, each in a folder of its own."""
    made: list[Rig] = []

    def make(kernel: str = "6.12", **changes: object) -> Rig:
        made.append(Rig(host_of(kernel, **changes), fast_path / f"host{len(made)}"))
        return made[-1]

    return make


@pytest.fixture
def rig(new_rig: Callable[..., Rig]) -> Rig:
    """Host rdbkvm4 on Linux 6.12 with an empty host.toml."""
    return new_rig()


@pytest.fixture(params=KERNELS)
def any_rig(request: pytest.FixtureRequest, new_rig: Callable[..., Rig]) -> Rig:
    """Host rdbkvm4 on each kernel generation."""
    return new_rig(request.param)


@pytest.fixture
def server(rig: Rig) -> Iterator[RunningServer]:
    """The real server over ``rig``, which is ready to be changed."""
    rig.restore()
    with RunningServer(rig) as running:
        yield running
