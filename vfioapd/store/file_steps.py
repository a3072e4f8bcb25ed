# SPDX-License-Identifier: Apache-2.0
"""File steps carried out: one rename each, and only over what the plan saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.domain.problems import Problem, VfioApError
from vfioapd.store import atomic

if TYPE_CHECKING:
    from vfioapd.plan.steps import WriteFile


class FileSteps:
    """Carries out and checks the steps that change files."""

    def __init__(self, *, definitions: Path, staging: Path) -> None:
        """Files in ``definitions`` (mdevctl's) are written by way of ``staging``, since libvirt and
        mdevctl look at everything that appears in their own folder."""
        self._definitions = definitions
        self._staging = staging

    def execute(self, step: WriteFile) -> None:
        """Put the file in place; refused when somebody changed it since the plan was made."""
        path = Path(step.path)
        if atomic.read(path) != step.before:
            raise VfioApError(
                Problem.VERIFY_FAILED,
                f"{path} was changed by somebody else while the change was being made",
                hint="look at it, then repeat the command",
            )
        self._staging.mkdir(parents=True, exist_ok=True)
        atomic.replace(path, step.after, via=self._staging if path.parent == self._definitions else None)

    def holds(self, step: WriteFile) -> bool:
        """Whether the file is as the step leaves it."""
        return atomic.read(Path(step.path)) == step.after
