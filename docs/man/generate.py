# SPDX-License-Identifier: Apache-2.0
"""Makes manual pages and completions: python3 docs/man/generate.py FOLDER

The commands and options come from the programs' own parsers, the prose from the Markdown files beside
this one. The same input gives the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import completion  # noqa: E402
import roff  # noqa: E402
import tree  # noqa: E402

from vfioapd import VERSION  # noqa: E402
from vfioapd.cli import main as ctl  # noqa: E402
from vfioapd.lab import main as lab  # noqa: E402

PROGRAMS = {
    "vfioapctl": lambda: tree.read(ctl._parser()),
    "vfioap-lab": lambda: tree.read(lab._parser(), lab.TOOLS),
}


def files() -> dict[str, str]:
    """All of it, by the path below the folder."""
    made = {}
    for path in sorted(HERE.glob("*.md")):
        name, _, section = path.stem.rpartition(".")
        program = PROGRAMS[name]() if name in PROGRAMS else None
        made[f"man{section}/{path.stem}"] = roff.page(path.read_text(), VERSION, program)
    for name, program_of in PROGRAMS.items():
        program = program_of()
        made[f"completions/bash/{name}"] = completion.bash(program)
        made[f"completions/zsh/_{name}"] = completion.zsh(program)
        made[f"completions/fish/{name}.fish"] = completion.fish(program)
    return made


def main() -> None:
    """Write them."""
    for name, text in files().items():
        path = Path(sys.argv[1], name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
