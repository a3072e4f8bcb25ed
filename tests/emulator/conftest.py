# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the emulator's tests."""

from __future__ import annotations

import pytest
from emulated import ALL


@pytest.fixture(params=ALL)
def generation(request: pytest.FixtureRequest) -> str:
    """Each kernel generation in turn."""
    name: str = request.param
    return name
