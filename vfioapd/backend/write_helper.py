# SPDX-License-Identifier: Apache-2.0
"""The program that makes kernel writes for the daemon: one line in, one line out, nothing else.

A write can block in the kernel where no signal reaches it (removing a device that a guest holds,
vfio_main.c:vfio_unregister_group_dev). Then this process is left behind, not the daemon. Run by its
path with ``python -I -S``: standard library only, started in about ten milliseconds.
"""

import json
import os
import sys


def main() -> None:
    """Read ``[path, text]``, write once, answer with the errno (0: done); end with standard input."""
    for line in sys.stdin:
        path, text = json.loads(line)
        print(write(path, text), flush=True)


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
