# SPDX-License-Identifier: Apache-2.0
"""``vfioapctl queues``: which of them are shown, as a list or as a grid of adapters and domains."""

import argparse

from vfioapd.cli import screens
from vfioapd.cli.text import BLUE, BOLD, DIM, GREEN, RED, YELLOW, Cell, columns, terminal_width
from vfioapd.rpc.client import CallError

Record = dict[str, object]

_LEGEND = "h host  k kept  . free  m matrix  G guest  - no driver  ! not operational"
_COLOURS = {"h": DIM, "k": YELLOW, ".": "", "m": BLUE, "G": GREEN, "-": YELLOW, "!": RED}
_MODES = ("CCA", "EP11", "Accelerator", "unknown")
_DOWN = {"deconfigured", "checkstopped", "gone"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The filters; each one given must fit."""
    command.add_argument("--mode", metavar="MODE", help="CCA, EP11 or Accelerator")
    command.add_argument("--guest", metavar="GUEST", help="that this running guest has")
    command.add_argument("--free", action="store_true", help="under vfio_ap and in no matrix")
    command.add_argument("--driver", metavar="DRIVER", help="cex4queue, vfio_ap or none")
    command.add_argument("--adapter", metavar="NUMBER", help="of this adapter, such as 5 or 0x05")
    command.add_argument("--grid", action="store_true", help="adapters × domains, one letter a queue")


def choose(options: argparse.Namespace, rows: list[Record]) -> list[Record]:
    """The rows that fit every filter, in the order in which they came."""
    adapter = _number(options.adapter)
    mode = _mode(options.mode)
    driver = None if options.driver == "none" else options.driver
    return [
        row
        for row in rows
        if (mode is None or row["mode"] == mode)
        and (options.guest is None or row["guest"] == options.guest)
        and (not options.free or row["owner"] == "free")
        and (options.driver is None or row["driver"] == driver)
        and (adapter is None or row["adapter"] == adapter)
    ]


def show(options: argparse.Namespace, rows: list[Record]) -> str:
    """The screen that was asked for."""
    is_filtered = any((options.mode, options.guest, options.free, options.driver, options.adapter))
    if not rows and is_filtered:
        return "no queue fits"
    return grid(rows) if options.grid and rows else screens.queues(rows)


def grid(rows: list[Record]) -> str:
    """Adapters down, domains across, in as many blocks as the terminal is narrow; both in hexadecimal,
    as a queue is written."""
    cells = {(row["adapter"], row["domain"]): row for row in rows}
    adapters = sorted({_int(row["adapter"]) for row in rows})
    domains = sorted({_int(row["domain"]) for row in rows})
    width = max(1, (terminal_width() - len("ADAPTER")) // len("  0011"))
    blocks = [domains[at : at + width] for at in range(0, len(domains), width)]
    return "\n\n".join([*(_block(cells, adapters, block) for block in blocks), _LEGEND])


def _block(cells: dict[tuple[object, object], Record], adapters: list[int], domains: list[int]) -> str:
    header = ["ADAPTER", *(f"{domain:04x}" for domain in domains)]
    lines: list[list[Cell]] = [
        [(f"{adapter:02x}", BOLD), *(_cell(cells.get((adapter, domain))) for domain in domains)]
        for adapter in adapters
    ]
    return columns(header, lines)


def _cell(row: Record | None) -> Cell:
    if row is None:
        return " ", ""
    letter = _letter(row)
    return letter, _COLOURS[letter]


def _letter(row: Record) -> str:
    if row["state"] in _DOWN:
        return "!"
    if row["guest"]:
        return "G"
    if row["owner"] == "host":
        return "k" if row["keep"] else "h"
    return {"free": ".", "nobody": "-"}.get(str(row["owner"]), "m")


def _mode(text: str | None) -> str | None:
    """By its first letters, large or small."""
    if text is None:
        return None
    found = [mode for mode in _MODES if text and mode.lower().startswith(text.lower())]
    if len(found) != 1:
        raise CallError("bad-request", f"there is no mode {text!r}", f"modes: {', '.join(_MODES)}")
    return found[0]


def _number(text: str | None) -> int | None:
    """As the daemon reads numbers: a leading zero could be meant in two bases and is refused."""
    if text is None:
        return None
    try:
        number = int(text, 16) if text.startswith("0x") else int(text)
        if not 0 <= number <= 255 or (text.startswith("0") and len(text) > 1 and not text.startswith("0x")):
            raise ValueError
    except ValueError:
        raise CallError(
            "bad-number", f"adapter {text!r} is not a number from 0 to 255", "write it as 5 or as 0x05"
        ) from None
    return number


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
