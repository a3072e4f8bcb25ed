# SPDX-License-Identifier: Apache-2.0
"""What the lab says of a program that did not do its part: purpose, program and reason in one sentence."""

from __future__ import annotations

from functools import partial

import pytest

from vfioapd.lab import programs
from vfioapd.lab.errors import Exit
from vfioapd.lab.programs import ProgramFailed

run = partial(programs.run, purpose="cannot tidy up", status=Exit.MISSING)


def shell(script: str) -> ProgramFailed:
    with pytest.raises(ProgramFailed) as failure:
        run(["sh", "-c", script], seconds=10)
    return failure.value


def test_what_a_program_prints_is_handed_back() -> None:
    assert run(["cat"], document="a line\n") == "a line\n"


def test_errors_that_are_marked_are_the_reason_wherever_they_stand() -> None:
    failed = shell(
        "echo Reading lists; echo E: no route; echo W: old >&2; echo E: no route; echo bye; exit 100"
    )
    assert str(failed) == "cannot tidy up: sh: E: no route; W: old"
    assert failed.status is Exit.MISSING


def test_without_marks_the_last_lines_are_the_reason() -> None:
    assert str(shell("seq 9; echo broken >&2; exit 1")) == "cannot tidy up: sh: 8; 9; broken"


def test_a_program_that_says_nothing_is_named_with_its_status() -> None:
    assert str(shell("exit 7")) == "cannot tidy up: sh: exit status 7"


def test_all_that_was_said_can_be_looked_through() -> None:
    assert "line 9\n" in shell("seq -f 'line %g' 20; exit 1").said


def test_a_program_that_does_not_end_is_ended_and_named() -> None:
    with pytest.raises(ProgramFailed, match=r"^cannot tidy up: sleep took over 0\.1 s$"):
        run(["sleep", "60"], seconds=0.1)


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ProgramFailed, match=r"^cannot tidy up: no-such-tool: No such file or directory$"):
        run(["no-such-tool"])


def test_bytes_that_are_no_text_do_not_hide_the_reason() -> None:
    assert str(shell(r"printf 'bad \377 byte\n'; exit 1")) == "cannot tidy up: sh: bad \ufffd byte"
