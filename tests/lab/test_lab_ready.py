# SPDX-License-Identifier: Apache-2.0
"""Who is told that the daemon is ready can call it, also where systemd holds no sockets for it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from vfioapd.lab.harness import running_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vfioapd.lab.harness import Lab

# Prints what the daemon answers at the moment in which it has said that it is ready.
CALL_WHEN_READY = """
import os, socket, subprocess
from vfioapd.rpc.client import READ_ONLY_SOCKET, SOCKET, call
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
    ear.bind("/run/notify")
    ear.settimeout(30)
    daemon = subprocess.Popen(["vfioapd"], env={**os.environ, "NOTIFY_SOCKET": "/run/notify"})
    while b"READY=1" not in ear.recv(4096):
        pass
try:
    for path in (SOCKET, READ_ONLY_SOCKET):
        print(call(path, "Status")["status"]["queues_total"])
finally:
    daemon.terminate()
    daemon.wait()
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Lab]:
    with running_lab("rdbkvm4") as lab:
        yield lab


def test_a_daemon_that_makes_its_own_sockets_is_ready_when_they_are(host: Lab) -> None:
    assert host.run(sys.executable, "-c", CALL_WHEN_READY).stdout.split() == ["16", "16"]
