# SPDX-License-Identifier: Apache-2.0
"""Doctor finds every planted defect, says what mends it, and finds nothing on a healthy host."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from doctor_defects import DEFECTS, RULE, SOUND, boot, both, healthy

from vfioapd.domain.boot_masks import MaskSetter
from vfioapd.domain.mask import EMPTY_MASK, Mask
from vfioapd.domain.matrix import EMPTY_MATRIX
from vfioapd.domain.snapshot import ForeignDefinition, Mdev
from vfioapd.plan.doctor import SUBJECTS, diagnose
from vfioapd.plan.doctor_facts import DaemonFacts, HostFacts, LibvirtFacts
from vfioapd.plan.doctor_finding import WARNINGS, Code, Finding, Report, Severity, Subject

OTHER = UUID("11111111-2222-3333-4444-555555555555")


def found(facts: HostFacts) -> list[Finding]:
    return [one for report in diagnose(facts) for one in report.findings]


def test_nothing_is_found_on_a_healthy_host() -> None:
    reports = diagnose(healthy())
    assert [one.subject for one in reports] == list(Subject)
    assert {one.state for one in reports} == {"ok"}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found_alone_with_its_mend(name: str) -> None:
    change, code, command = DEFECTS[name]
    (finding,) = found(change(healthy()))
    assert (finding.code, finding.command) == (code, command)
    assert finding.sentence
    assert finding.consequence
    assert finding.command or finding.advice


def test_every_code_is_planted() -> None:
    assert {code for _, code, _ in DEFECTS.values()} == set(Code)


@pytest.mark.parametrize("name", SOUND)
def test_what_only_looks_like_a_defect_is_not_told(name: str) -> None:
    assert found(SOUND[name](healthy())) == []


def test_devices_of_others_are_no_defect_and_not_passed_over() -> None:
    facts = healthy()
    assert facts.snapshot
    assert "not ours" not in _mdevctl(facts).looked_at
    defined = ForeignDefinition(OTHER, EMPTY_MATRIX, starts_itself=False)
    both_ways = replace(
        facts,
        snapshot=replace(
            facts.snapshot,
            mdevs=(*facts.snapshot.mdevs, Mdev(OTHER, EMPTY_MATRIX, frozenset(), in_use=False)),
        ),
        mdevctl=replace(facts.mdevctl, definitions={**facts.mdevctl.definitions, OTHER: defined}),
    )
    report = _mdevctl(both_ways)
    assert report.state == "ok"
    assert report.looked_at.endswith("; not ours: 1 (look: vfioapctl adopt)")


def _mdevctl(facts: HostFacts) -> Report:
    return next(one for one in diagnose(facts) if one.subject is Subject.MDEVCTL)


def test_what_cannot_be_looked_at_is_said_and_is_no_defect() -> None:
    facts = replace(healthy(), units=None, unread={Subject.MDEVCTL: "no permission"})
    reports = {one.subject: one for one in diagnose(facts)}
    assert found(facts) == []
    assert [str(one) for one in reports[Subject.UNITS].unchecked] == ["units: no systemd here"]
    assert [str(one) for one in reports[Subject.MDEVCTL].unchecked] == ["mdevctl: no permission"]


def test_a_rule_is_told_with_the_queues_and_both_masters() -> None:
    (finding,) = found(boot(MaskSetter.CHZDEV, apmask=EMPTY_MASK | Mask.of([5]))(healthy()))
    assert finding.sentence == (
        f"chzdev's persistent setting ({RULE}) contradicts host.toml: it takes 00.000d from the host, which"
        " [host] keep leaves to it and gives 05.0011 of matrix vault to the host"
    )


def test_kubevirt_is_named_with_its_setting() -> None:
    (finding,) = found(DEFECTS["matrix swept and mended, again and again"][0](healthy()))
    assert (
        "3 times by another program within the last hour; KubeVirt's virt-handler (PID 3) runs here"
        in finding.sentence
    )
    assert "mediatedDevicesConfiguration" in finding.advice


def test_an_error_outweighs_a_warning() -> None:
    facts = both(*(DEFECTS[name][0] for name in ("no mdevctl", "torn definition")))(healthy())
    report = _mdevctl(facts)
    assert {one.severity for one in report.findings} == set(Severity)
    assert report.state == "error"


def test_every_subject_has_checks_and_every_warning_is_a_code() -> None:
    assert set(SUBJECTS) == set(Subject)
    assert set(Code) > WARNINGS


def test_no_facts_crash_doctor() -> None:
    bare = HostFacts(
        snapshot=None, daemon=DaemonFacts(runs=False), guests=None, libvirt=LibvirtFacts(unit=None)
    )
    assert {one.code for one in found(bare)} == {
        Code.DAEMON_DEAD,
        Code.AP_BUS_MISSING,
        Code.LIBVIRT_MISSING,
    }
