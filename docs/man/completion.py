# SPDX-License-Identifier: Apache-2.0
"""Completions for bash, zsh and fish out of the tree of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tree import Argument, Program

HEAD = "# Made by docs/man/generate.py out of the program's own list of commands."
# What a value can be, asked for when it is needed. host.toml is read and not the daemon: it may be down.
NAMES = "sed -n 's/^name *= *\"\\(.*\\)\"/\\1/p' /etc/vfioapd/host.toml 2>/dev/null"
GUESTS = "virsh -q -c qemu:///system list --all --name 2>/dev/null"
SOURCES = {"NAME": NAMES, "GUEST": GUESTS}
FILES = ("FILE", "HOSTFILE", "DEB")


def bash(program: Program) -> str:
    """One function; what may follow is chosen by the command and the word before."""
    function = f"_{program.name.replace('-', '_')}"
    lines = [
        HEAD,
        f"{function}() {{",
        "    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}",
        "    local verb=${COMP_WORDS[1]} words=",
        "    COMPREPLY=()",
        "    if [[ $COMP_CWORD -eq 1 ]]; then",
        f"        words='{_words(program)}'",
        "    else",
        '        case "$verb:$before" in',
        *_bash_values(program),
        '        *) case "$verb" in',
        *_bash_commands(program),
        "            esac ;;",
        "        esac",
        "    fi",
        '    COMPREPLY+=($(compgen -W "$words" -- "$current"))',
        "}",
        f"complete -F {function} {program.name}",
    ]
    return "\n".join(lines) + "\n"


def zsh(program: Program) -> str:
    """One function for the compdef system."""
    lines = [f"#compdef {program.name}", HEAD, "local -a commands", "commands=("]
    lines += [f"    {_quoted(f'{command.name}:{command.text}')}" for command in program.commands]
    lines += [")", "if (( CURRENT == 2 )); then", "    _describe command commands"]
    top = " ".join(_quoted(spec) for option in program.options for spec in _zsh_option(option))
    lines += [
        f"    _arguments {top}",
        "    return",
        "fi",
        "local verb=$words[2]",
        "shift words",
        "(( CURRENT-- ))",
    ]
    lines += ['case "$verb" in']
    for command in program.commands:
        specs = [spec for option in command.options for spec in _zsh_option(option)]
        specs += [_zsh_positional(argument) for argument in command.positionals]
        lines.append(f"{command.name}) _arguments {' '.join(map(_quoted, specs))} ;;")
    return "\n".join([*lines, "esac"]) + "\n"


def fish(program: Program) -> str:
    """One line for each command, option and kind of value."""
    start = f"complete -c {program.name}"
    lines = [HEAD, f"{start} -f"]
    lines += [f"{start} -n __fish_use_subcommand {_fish_option(option)}" for option in program.options]
    for command in program.commands:
        lines.append(f"{start} -n __fish_use_subcommand -a {command.name} -d {_fish_quoted(command.text)}")
        seen = f"{start} -n '__fish_seen_subcommand_from {command.name}'"
        lines += [f"{seen} {_fish_option(option)}" for option in command.options]
        for argument in command.positionals:
            if argument.metavar in FILES:
                lines.append(f"{seen} -F")
            elif values := _fish_values(argument):
                lines.append(f"{seen} -a {values}")
    return "\n".join(lines) + "\n"


def _words(program: Program) -> str:
    flags = [flag for option in program.options for flag in option.flags]
    return " ".join([*(command.name for command in program.commands), *flags])


def _bash_values(program: Program) -> Iterator[str]:
    """The values of options that take one."""
    for command in program.commands:
        for option in command.options:
            if option.metavar:
                pattern = "|".join(f"{command.name}:{flag}" for flag in option.flags)
                yield f"        {pattern}) {_bash_value(option)} ;;"


def _bash_commands(program: Program) -> Iterator[str]:
    for command in program.commands:
        flags = " ".join(flag for option in command.options for flag in option.flags)
        values = "; ".join(_bash_value(argument) for argument in command.positionals)
        yield f"            {command.name}) {values or ':'}; words+=' {flags}' ;;"


def _bash_value(argument: Argument) -> str:
    if argument.choices:
        return f"words+=' {' '.join(argument.choices)}'"
    if source := _source(argument):
        return f'words+=" $({source})"'
    if argument.metavar in FILES:
        return 'COMPREPLY+=($(compgen -f -- "$current"))'
    return ":"


def _zsh_option(option: Argument) -> Iterator[str]:
    value = f":{_zsh_text(option.metavar)}:{_zsh_values(option)}" if option.metavar else ""
    for flag in option.flags:
        yield f"{flag}[{_zsh_text(option.text)}]{value}"


def _zsh_positional(argument: Argument) -> str:
    return f"{'*' if argument.repeats else ''}:{_zsh_text(argument.metavar)}:{_zsh_values(argument)}"


def _zsh_values(argument: Argument) -> str:
    if argument.choices:
        return f"({' '.join(argument.choices)})"
    if source := _source(argument):
        return f"{{compadd -- $({source})}}"
    return "_files" if argument.metavar in FILES else ""


def _zsh_text(text: str) -> str:
    return text.replace("[", "(").replace("]", ")").replace(":", "\\:")


def _fish_option(option: Argument) -> str:
    flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
    value = ""
    if option.metavar:
        value = " -r -F" if option.metavar in FILES else " -x"
        value += f" -a {values}" if (values := _fish_values(option)) else ""
    return f"{flags}{value} -d {_fish_quoted(option.text)}"


def _fish_values(argument: Argument) -> str:
    if argument.choices:
        return _fish_quoted(" ".join(argument.choices))
    source = _source(argument)
    return _fish_quoted(f"({source})") if source else ""


def _source(argument: Argument) -> str:
    """The shell commands that list what the value can be."""
    return "; ".join(SOURCES[word] for word in argument.metavar.split("|") if word in SOURCES)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
