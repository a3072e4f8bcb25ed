# SPDX-License-Identifier: Apache-2.0
"""Manual pages: a small part of Markdown, and the commands of a program, in the man(7) language."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tree import Argument, Program

_TITLE = re.compile(r"# (?P<name>\S+)\((?P<section>\d)\) (?P<date>[\d-]+): (?P<text>.+)")
_INLINE = re.compile(r"`([^`]+)`|\*([^*]+)\*")
_ASCII = {"×": r"\(mu", "–": r"\(en", "→": r"\(->", "…": "..."}


def page(markdown: str, version: str, program: Program | None) -> str:
    """The whole page. A line `{commands}` stands for all that the program's parser knows."""
    title, _, rest = markdown.partition("\n")
    match = _TITLE.fullmatch(title)
    if match is None:
        raise ValueError(f"the first line is not '# NAME(SECTION) DATE: TEXT': {title}")
    name, section, date, text = match.groups()
    lines = [
        f'.\\" Made by docs/man/generate.py out of docs/man/{name}.{section}.md; change that instead.',
        f'.TH {name.upper()} {section} {date} "vfioapd {version}" "vfioapd manual"',
        ".nh",  # a hyphen that the formatter puts into an option would be typed by somebody
        ".ad l",
        ".SH NAME",
        f"{_escape(name)} \\- {_escape(text)}",
    ]
    for block in re.split(r"\n{2,}(?!    )", rest.strip()):
        lines += commands(program) if block == "{commands}" and program else _block(block)
    text = "\n".join(lines) + "\n"
    return re.sub(r"^(\.SH .*\n)\.PP\n", r"\1", text, flags=re.MULTILINE)  # a heading begins a paragraph


def commands(program: Program) -> Iterator[str]:
    """Each command with its usage, text and options; those that all share are for the page's prose."""
    shared = set.intersection(*({option.flags for option in one.options} for one in program.commands))
    for command in program.commands:
        yield f".SS {_escape(command.name)}"
        usage = [rf"\fB{_escape(program.name)} {_escape(command.name)}\fR"]
        usage += ["[\\fIOPTION\\fR]..."] if command.options else []
        usage += [_positional(argument) for argument in command.positionals]
        yield " ".join(usage)
        yield ".PP"
        yield f"{_escape(_sentence(command.text))}"
        for argument in (*command.positionals, *command.options):
            if argument.text and "--help" not in argument.flags and argument.flags not in (shared - {()}):
                yield from _term(_flags(argument), _escape(_sentence(argument.text)))


def _positional(argument: Argument) -> str:
    text = rf"\fI{_escape(argument.metavar)}\fR" + ("..." if argument.repeats else "")
    return f"[{text}]" if argument.optional else text


def _flags(argument: Argument) -> str:
    if not argument.flags:
        return rf"\fI{_escape(argument.metavar)}\fR"
    value = rf" \fI{_escape(argument.metavar)}\fR" if argument.metavar else ""
    return ", ".join(rf"\fB{_escape(flag)}\fR" for flag in argument.flags) + value


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", ")")) else ".")


def _block(block: str) -> Iterator[str]:
    if block.startswith("## "):
        heading, _, rest = block[3:].partition("\n")
        yield f".SH {_escape(heading)}"
        if rest:
            yield from _block(rest)
    elif block.startswith("    "):
        yield from (".PP", ".RS 4", ".nf", *(_escape(line[4:]) for line in block.split("\n")), ".fi", ".RE")
    elif "\n: " in block:
        term, _, text = block.partition("\n: ")
        yield from _term(_inline(term), _text(text))
    elif block.startswith("* "):
        for item in re.split(r"^\* ", block, flags=re.MULTILINE)[1:]:
            yield from (r".IP \[u2022] 2", _text(item))
    else:
        yield from (".PP", _text(block))


def _term(term: str, text: str) -> Iterator[str]:
    yield from (".TP", term, text)


def _text(text: str) -> str:
    """A paragraph, one sentence a line."""
    joined = " ".join(line.strip() for line in text.strip().split("\n"))
    return re.sub(r"(?<=[.:;]) (?=[A-Z`])", "\n", _inline(joined))


def _inline(text: str) -> str:
    parts, end = [], 0
    for match in _INLINE.finditer(text):
        code, word = match.groups()
        parts += [
            _escape(text[end : match.start()]),
            rf"\fB{_escape(code)}\fR" if code else rf"\fI{_escape(word)}\fR",
        ]
        end = match.end()
    return "".join([*parts, _escape(text[end:])])


def _escape(text: str) -> str:
    """Plain text; a hyphen stays the one that can be copied, and no line becomes a request."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq")
    for character, name in _ASCII.items():
        text = text.replace(character, name)
    return rf"\&{text}" if text.startswith(".") else text
