# SPDX-License-Identifier: Apache-2.0
"""Where the daemon begins."""

from __future__ import annotations

import gc


def main() -> int:
    """Run the daemon; see vfioapd.daemon.main.

    Collections stop first, until the host is restored (there): what is loaded and read until then stays, and
    looking through all of it again and again is a fifth of a boot's imports, which libvirt's start waits for.
    """
    gc.disable()
    from vfioapd.daemon.main import main as run

    return run()
