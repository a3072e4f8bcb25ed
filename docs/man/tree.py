# SPDX-License-Identifier: Apache-2.0
"""What an argparse tree offers, as plain values: the one source of manual pages and completions."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Argument:
    """An option, or a positional argument, which has no flags."""

    flags: tuple[str, ...]
    metavar: str  # empty: takes no value
    choices: tuple[str, ...]
    text: str
    repeats: bool
    optional: bool

    def usage(self) -> str:
        value = f" {self.metavar}" if self.metavar and self.flags else self.metavar
        return f"{', '.join(self.flags)}{value}" + (" ..." if self.repeats else "")


@dataclass(frozen=True, slots=True)
class Command:
    """One word of a program and what may follow it."""

    name: str
    text: str
    options: tuple[Argument, ...]
    positionals: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A command line."""

    name: str
    text: str
    options: tuple[Argument, ...]
    commands: tuple[Command, ...]


def read(parser: argparse.ArgumentParser, extra: Iterable[str] = ()) -> Program:
    """The tree of a parser whose one positional argument is the command; `extra` commands take anything."""
    commands = [
        _command(name, helps, parser_of)
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for helps, (name, parser_of) in zip(action._choices_actions, action.choices.items(), strict=True)
    ]
    commands += [Command(name, f"IBM's {name}", (), (_anything(),)) for name in extra]
    return Program(parser.prog, parser.description or "", _options(parser), tuple(commands))


def _command(name: str, helps: argparse.Action, parser: argparse.ArgumentParser) -> Command:
    positionals = tuple(_argument(action) for action in parser._actions if not action.option_strings)
    if "[-- COMMAND...]" in (parser.usage or ""):  # taken off the command line before argparse sees it
        positionals += (Argument((), "-- COMMAND", (), "", repeats=True, optional=True),)
    return Command(name, helps.help or "", _options(parser), positionals)


def _options(parser: argparse.ArgumentParser) -> tuple[Argument, ...]:
    return tuple(_argument(action) for action in parser._actions if action.option_strings)


def _argument(action: argparse.Action) -> Argument:
    choices = tuple(map(str, action.choices or ()))
    takes_value = action.nargs != 0
    metavar = str(action.metavar or "|".join(choices) or action.dest.upper()) if takes_value else ""
    text = (action.help or "") % {"default": action.default, "prog": "the program"}
    return Argument(
        tuple(action.option_strings),
        metavar,
        choices,
        text,
        repeats=action.nargs in ("+", "*"),
        optional=action.nargs in ("?", "*"),
    )


def _anything() -> Argument:
    return Argument((), "ARGUMENT", (), "", repeats=True, optional=True)
