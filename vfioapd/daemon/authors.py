# SPDX-License-Identifier: Apache-2.0
"""Who made a change, as it is written into the history and read from it."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.rpc.types import RevisionRow
from vfioapd.store.history import Author

if TYPE_CHECKING:
    from vfioapd.rpc.interface import Asked
    from vfioapd.store.history import Revision


def author_of(asked: Asked) -> Author:
    """Who asks, by the credentials of the socket's peer."""
    try:
        name = Path(f"/proc/{asked.peer.pid}/comm").read_text().strip()
    except OSError:  # the client has ended already
        name = ""
    return Author(asked.peer.uid, asked.peer.pid, name)


def revision_row(revision: Revision) -> RevisionRow:
    """A revision as it travels."""
    author = revision.author
    return RevisionRow(
        number=revision.number,
        time=revision.time.isoformat().replace("+00:00", "Z") if revision.time else None,
        user=_user(author.uid) if author else None,
        program=f"{author.name} (PID {author.pid})" if author else None,
        reason=revision.reason,
        steps=revision.summary.splitlines(),
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
