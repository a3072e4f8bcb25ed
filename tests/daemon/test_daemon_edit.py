# SPDX-License-Identifier: Apache-2.0
"""``vfioapctl edit`` changes what is given of a matrix and nothing else; its device and its guest follow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from doubles import ADMIN, Rig, uuid_of

from vfioapd.domain.problems import Problem, Refused
from vfioapd.rpc.interface import DefineRequest


@pytest.fixture
def given(rig: Rig) -> Rig:
    rig.restore()
    rig.guests.add("bastion", running=True)
    rig.define("vault", queues="00.000d,02.000d", guest="bastion")
    rig.define("other", queues="04.0011")
    return rig


def edit(rig: Rig, **fields: str) -> list[str]:
    return rig.service.edit(DefineRequest("vault", **fields), replace(ADMIN, disrupt=True)).steps


def holds(rig: Rig) -> list[str]:
    return rig.service.show("vault").guest_matrix or []


def test_a_running_guest_gains_and_loses_what_differs_and_nothing_else(given: Rig) -> None:
    steps = edit(given, adapters="0,6")
    assert holds(given) == ["00.000d", "06.000d"]
    assert not [step for step in steps if "attach" in step or "create" in step or "remove" in step]
    edit(given, domains="13,17")
    assert holds(given) == ["00.000d", "00.0011", "06.000d", "06.0011"]


def test_what_is_not_given_stays(given: Rig) -> None:
    edit(given, require="any")
    shown = given.service.show("vault")
    assert (shown.require, shown.start, shown.guest) == ("any", "auto", "bastion")
    assert shown.uuid == str(uuid_of("vault"))
    assert holds(given) == ["00.000d", "02.000d"]


def test_control_domains_follow_the_usage_domains_unless_they_were_others(given: Rig) -> None:
    edit(given, domains="17")
    assert given.service.show("vault").control_domains == [17]
    edit(given, control_domains="none")
    edit(given, domains="13")
    assert given.service.show("vault").control_domains == []


def test_queues_go_back_to_the_host_when_nobody_needs_them(given: Rig) -> None:
    edit(given, queues="00.000d")
    assert given.kernel.sysfs.readlink("devices/ap/card02/02.000d/driver").endswith("cex4queue")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"queues": "04.0011"}, Problem.QUEUE_TAKEN),
        ({"adapters": "9"}, Problem.QUEUE_NOT_ON_HOST),
        ({"queues": "00.000d", "domains": "13"}, Problem.BAD_REQUEST),
        ({"start": "sometimes"}, Problem.BAD_REQUEST),
        ({"adapters": "0,6"}, Problem.NEEDS_DISRUPT),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    given: Rig, fields: dict[str, str], problem: Problem
) -> None:
    before = given.state()
    with pytest.raises(Refused) as refused:
        given.service.edit(DefineRequest("vault", **fields), ADMIN)
    assert refused.value.problem is problem
    assert given.state() == before


def test_an_unknown_matrix_is_refused_with_the_known_ones(given: Rig) -> None:
    with pytest.raises(Refused) as refused:
        given.service.edit(DefineRequest("nine", queues="00.000d"), ADMIN)
    assert refused.value.problem is Problem.UNKNOWN_MATRIX


def test_nothing_new_is_nothing_to_do_and_a_dry_run_does_nothing(given: Rig) -> None:
    assert edit(given, queues="00.000d,02.000d", start="auto") == []
    before = given.state()
    shown = given.service.edit(
        DefineRequest("vault", adapters="0,6"), replace(ADMIN, dry_run=True, disrupt=True)
    )
    assert shown.steps
    assert given.state() == before


def test_a_stopped_matrix_changes_without_a_device(given: Rig) -> None:
    given.guests.destroy("bastion")
    given.stop("vault")
    edit(given, adapters="0,6")
    assert given.service.show("vault").state == "stopped"
    given.start("vault")
    assert holds(given) == ["00.000d", "06.000d"]
