# SPDX-License-Identifier: Apache-2.0
"""The daemon and a real libvirt that goes, comes back, and whose guests do as they like."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from guest_host import SYSTEMS, GuestHost, guest_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


QUIET_SECONDS = 10
# libvirtd's own pings and ours, both every 5 s, wake one thread; a poll would wake it far more often.
MOST_WAKE_UPS = 10


def wake_ups(host: GuestHost) -> int:
    """Of all threads but the first, which uevents of the whole machine wake."""
    threads = f"p=$({host.PID}); for t in /proc/$p/task/*; do [ ${{t##*/}} = $p ] || cat $t/status; done"
    found = host.lab.shell(threads).stdout.splitlines()
    return sum(int(line.split()[1]) for line in found if line.startswith("voluntary"))


@pytest.fixture(scope="module", params=SYSTEMS)
def host(request: pytest.FixtureRequest) -> Iterator[GuestHost]:
    with guest_host(request.param) as host:
        host.guest("bastion", "--start")
        host.ctl("define", "vault", "--queues", "00.000d,02.000d")
        yield host


@pytest.fixture
def attached(host: GuestHost) -> Iterator[GuestHost]:
    host.ctl("attach", "vault", "bastion")
    yield host
    host.guest("bastion")
    host.ctl("detach", "vault", "bastion")


def test_a_guest_that_refuses_leaves_everything_as_it_was(attached: GuestHost) -> None:
    attached.guest("bastion", "--refuse-unplug")
    done = attached.ctl("detach", "vault", "bastion", check=False)
    assert done.returncode == 1
    assert "rejected by the guest" in done.stderr
    assert attached.places() == ("bastion", ["bastion"])
    assert json.loads(attached.ctl("show", "vault", "--json").stdout)["guest"] == "bastion"


def test_a_slow_guest_is_waited_for_beyond_libvirts_five_seconds(attached: GuestHost) -> None:
    attached.guest("bastion", "--delay-unplug", "6")
    started = time.monotonic()
    attached.ctl("detach", "vault", "bastion")
    assert 5.5 < time.monotonic() - started < 10, "woken by the event, not by the end of its patience"
    assert attached.places() == (None, [])


def test_libvirt_is_found_again_without_a_command_when_it_comes_back(
    attached: GuestHost, wait_until: Callable[..., None]
) -> None:
    seen = attached.log().count("connected to libvirt")
    attached.libvirtd("stop")
    wait_until(lambda: "libvirt has gone" in attached.log(), "the end of libvirt is noticed")
    assert "libvirt does not answer" in attached.ctl("status").stdout
    assert f"systemctl start {attached.libvirts_daemon}" in attached.ctl("why", "vault").stdout
    attached.libvirtd("start")
    wait_until(lambda: attached.log().count("connected to libvirt") > seen, "the daemon is connected again")
    assert attached.places() == ("bastion", ["bastion"])


def test_events_of_guests_are_heard(attached: GuestHost, wait_until: Callable[..., None]) -> None:
    attached.lab.run("virsh", "-q", "suspend", "bastion", check=False)
    attached.lab.run("virsh", "-q", "destroy", "bastion")
    wait_until(lambda: "news: guest bastion stopped" in attached.log(), "the end of the guest is heard")
    assert attached.places() == (None, ["bastion"])
    attached.lab.run("virsh", "-q", "start", "bastion")
    wait_until(lambda: "news: guest bastion started" in attached.log(), "its start is heard")
    assert attached.places() == ("bastion", ["bastion"])


def test_commands_work_at_once_after_libvirt_was_restarted(attached: GuestHost) -> None:
    for _ in range(3):
        attached.libvirtd("restart")
        attached.ctl("detach", "vault", "bastion")
        assert attached.places() == (None, [])
        attached.ctl("attach", "vault", "bastion")
        assert attached.places() == ("bastion", ["bastion"])


def test_an_idle_daemon_sleeps_while_libvirt_is_connected(
    attached: GuestHost, wait_until: Callable[..., None]
) -> None:
    """Any quiet window will do: the bus tells by itself that its bindings are complete, at its next scan,
    and that is worth a look. A daemon that polls has no quiet window."""
    attached.ctl("status")

    def is_quiet() -> bool:
        before = wake_ups(attached)
        time.sleep(QUIET_SECONDS)  # what is measured is that nothing happens in time
        return wake_ups(attached) - before <= MOST_WAKE_UPS

    wait_until(is_quiet, "the daemon sleeps", seconds=6 * QUIET_SECONDS)
