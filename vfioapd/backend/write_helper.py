# SPDX-License-Identifier: Apache-2.0
"""The program that makes kernel writes for the daemon: one line in, a line out for each write, nothing else.

A write can block in the kernel where no signal reaches it (removing a device that a guest holds,
vfio_main.c:vfio_unregister_group_dev). Then this process is left behind, not the daemon. Run by its
path with ``python -I -S``: standard library only, started in about ten milliseconds.

When the daemon dies in the middle of a line, nobody hears the next answer, and that ends this process: what
comes after the daemon finds no write still being made but the one that was.
"""

import contextlib
import json
import os
import sys


def main() -> None:
    """Read a list of ``[path, text]``, make the writes in turn, answer each with its errno (0: done), up to
    the first that fails; end with standard input, or when nobody hears the answer."""
    with contextlib.suppress(BrokenPipeError):
        for line in sys.stdin:
            _make(json.loads(line))


def _make(writes: list[tuple[str, str]]) -> None:
    for path, text in writes:
        answer = write(path, text)
        os.write(sys.stdout.fileno(), f"{answer}\n".encode())
        if answer:
            return


def write(path: str, text: str) -> int:
    """One write(2) of the whole text; the errno, or 0."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno or 0
    return 0


if __name__ == "__main__":
    main()
