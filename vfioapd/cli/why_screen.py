# SPDX-License-Identifier: Apache-2.0
"""The screen of ``vfioapctl why``: one line for each link, then the first broken one and its mend."""

from vfioapd.cli.text import BOLD, DIM, GREEN, RED, YELLOW, paint

Record = dict[str, object]

_MARKS = {"ok": ("ok", GREEN), "broken": ("BROKEN", RED), "unknown": ("?", YELLOW)}
_NAMES = {
    "definition": "definition",
    "lpar": "LPAR",
    "adapter": "adapter",
    "module": "vfio_ap",
    "masks": "masks",
    "driver": "driver",
    "mdev": "mdev",
    "matrix": "matrix",
    "guest_matrix": "guest_matrix",
    "hostdev": "hostdev",
    "guest": "guest",
}


def why(reply: Record) -> str:
    """The chain; the first broken link is marked with an arrow, since it is the one to mend."""
    lines = [paint(str(reply["subject"]), BOLD)]
    links = reply["links"] if isinstance(reply["links"], list) else []
    lines += [_line(link, first=link["link"] == reply["broken"]) for link in links]
    return "\n".join([*lines, "", *_verdict(reply)])


def _line(link: Record, *, first: bool) -> str:
    mark, colour = _MARKS[str(link["health"])]
    name = _NAMES.get(str(link["link"]), str(link["link"]))
    return f"{'->' if first else '  '} {name:<13} {paint(f'{mark:<7}', colour)} {link['sentence']}"


def _verdict(reply: Record) -> list[str]:
    if reply["broken"] is None:
        return [paint("nothing is known to be broken", GREEN)]
    cause = paint(str(reply["cause"]), RED)
    if reply["mend"] is None:
        return [cause, paint("no command mends this", DIM)]
    word = {"HMC": "at the HMC or SE", "editor": "by hand"}.get(str(reply["mend_with"]), "mend it with")
    return [cause, f"{word}: {paint(str(reply['mend']), BOLD)}"]
