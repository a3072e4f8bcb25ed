# SPDX-License-Identifier: Apache-2.0
"""`vfioapctl queues`: filters and the grid."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from doubles import RunningServer

from vfioapd.cli import exits, main
from vfioapd.emulator.hostfile import load_host_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from doubles import Rig


@pytest.fixture
def ask(
    rig: Rig, server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """The queues that a command lists; bastion runs with vault."""
    monkeypatch.setenv("VFIOAPD_SOCKET", server.ro)
    rig.guests.add("bastion", running=True)
    rig.define("vault", queues="00.000d,02.000d", guest="bastion")

    def run(*words: str) -> list[str]:
        capsys.readouterr()
        assert main.main(["queues", *words, "--json"]) == exits.OK
        return [row["queue"] for row in json.loads(capsys.readouterr().out)]

    return run


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--mode EP11", "05.000d 05.0011 07.000d 07.0011"),
        ("--mode ep11 --adapter 5", "05.000d 05.0011"),
        ("--mode accel --adapter 3", "03.000d 03.0011"),
        ("--adapter 0x05", "05.000d 05.0011"),
        ("--guest bastion", "00.000d 02.000d"),
        ("--guest nobody", ""),
        ("--free", "00.0011 02.0011"),
        ("--driver vfio_ap", "00.000d 00.0011 02.000d 02.0011"),
        ("--driver none", ""),
        ("--driver vfio_ap --free --adapter 2", "02.0011"),
    ],
)
def test_filters_leave_what_fits_all_of_them(ask: Callable[..., list[str]], words: str, found: str) -> None:
    assert ask(*words.split()) == found.split()


def test_without_a_filter_all_are_listed(ask: Callable[..., list[str]]) -> None:
    assert len(ask()) == 16


@pytest.mark.parametrize("number", ["x", "256", "-1", "011", "0xg", ""])
def test_an_adapter_that_is_none_is_refused(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    monkeypatch.setenv("VFIOAPD_SOCKET", server.ro)
    assert main.main(["queues", f"--adapter={number}"]) == exits.REFUSED
    assert "bad-number" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["x", "EP12", "CCA-Coproc", ""])
def test_a_mode_that_is_none_is_refused_with_those_that_are(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    """An empty list would be taken for: there are none."""
    monkeypatch.setenv("VFIOAPD_SOCKET", server.ro)
    assert main.main(["queues", f"--mode={mode}"]) == exits.REFUSED
    assert capsys.readouterr().err == (
        f"vfioapctl: there is no mode {mode!r} [bad-request]\n(modes: CCA, EP11, Accelerator, unknown)\n"
    )


def screen(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main.main(["queues", *words]) == exits.OK
    return capsys.readouterr().out


def test_the_grid_shows_each_queue_with_one_letter(
    rig: Rig, ask: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    rig.kernel.play({"action": "checkstop", "adapter": 7})
    lines = screen(capsys, "--grid").splitlines()
    assert lines[0].split() == ["ADAPTER", "000d", "0011"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:9]}
    assert rows["00"] == ["G", "."]
    assert rows["05"] == ["h", "h"]
    assert rows["07"] == ["!", "!"]
    assert "h host" in lines[-1]


def test_nothing_that_fits_is_said(ask: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--guest", "nobody"), ("--guest", "nobody", "--grid")):
        assert screen(capsys, *words) == "no queue fits\n"


def test_a_full_size_lpar_fits_the_terminal_and_is_quick(
    new_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    big = load_host_file("full-lpar")
    rig = new_rig(cards=big.cards, usage_domains=big.usage_domains, control_domains=big.control_domains)
    rig.restore()
    monkeypatch.setenv("COLUMNS", "100")
    with RunningServer(rig) as server:
        monkeypatch.setenv("VFIOAPD_SOCKET", server.ro)
        started = time.monotonic()
        text = screen(capsys, "--grid")
        seconds = time.monotonic() - started
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("h") >= 5100
    assert seconds < 10, "the emulated kernel in one process, not what is measured for the goal"
