# SPDX-License-Identifier: Apache-2.0
"""A host on Linux 7.3 goes from one way of taking queues to the other and back, with a guest running."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from guest_host import GuestHost

from vfioapd.lab.harness import running_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

SHIPPED = Path(__file__).parents[2] / "vfioapd/lab/hosts/rdbkvm4.toml"
HOST_FILE = "/etc/vfioapd/host.toml"
OURS = ("02.000d", "05.0011", "07.0011")
ALL_THE_HOSTS = f"0x{'f' * 64}"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GuestHost]:
    """Two matrices by driver_override, which is what is chosen there; bastion runs with one of them."""
    newer = tmp_path / "newer.toml"
    lines = SHIPPED.read_text().splitlines()
    newer.write_text("\n".join('kernel = "7.3"' if line.startswith("kernel =") else line for line in lines))
    with running_lab(str(newer)) as lab:
        made = GuestHost(lab)
        made.start_daemon()
        made.guest("bastion", "--start")
        made.ctl("define", "vault", "--queues", "05.0011,07.0011", "--guest", "bastion")
        made.ctl("define", "other", "--queues", "02.000d")
        lab.shell(f"sed -i '/^version/a [host]\\nbinding = \"driver_override\"' {HOST_FILE}")
        made.ctl("apply")
        yield made


def convert(host: GuestHost, binding: str) -> None:
    host.lab.shell(f"sed -i 's/^binding = .*/binding = \"{binding}\"/' {HOST_FILE}")


def masks(host: GuestHost) -> list[str]:
    return host.lab.run("cat", "/sys/bus/ap/apmask", "/sys/bus/ap/aqmask").stdout.split()


def overridden(host: GuestHost) -> list[str]:
    """The queues that are reserved for vfio_ap."""
    script = "grep -lx vfio_ap /sys/devices/ap/card*/*.*/driver_override | cut -d/ -f6 || true"
    return host.lab.shell(script).stdout.split()


def test_a_host_is_converted_to_masks_and_back_and_its_guest_has_its_queues_each_time(
    host: GuestHost,
) -> None:
    assert (masks(host), overridden(host)) == ([ALL_THE_HOSTS] * 2, [*OURS])

    convert(host, "masks")
    refused = host.ctl("apply", check=False)
    assert refused.returncode == 3
    assert "running guest bastion, for a moment, loses 05.0011, 07.0011" in refused.stderr
    assert overridden(host) == [*OURS], "nothing was changed"

    host.ctl("apply", "--disrupt")
    assert overridden(host) == []
    assert masks(host) != [ALL_THE_HOSTS] * 2
    assert host.places() == ("bastion", ["bastion"])
    assert host.show("vault")["guest_matrix"] == ["05.0011", "07.0011"]

    convert(host, "driver_override")
    host.ctl("apply", "--disrupt")
    assert (masks(host), overridden(host)) == ([ALL_THE_HOSTS] * 2, [*OURS])
    assert host.places() == ("bastion", ["bastion"])
    assert host.show("vault")["guest_matrix"] == ["05.0011", "07.0011"]
    assert "nothing to do" in host.ctl("apply").stdout


def test_a_conversion_that_fails_halfway_leaves_the_host_as_it_was(host: GuestHost) -> None:
    """The guest refuses to let go, so what would be converted first cannot be."""
    host.guest("bastion", "--refuse-unplug")
    convert(host, "masks")
    assert host.ctl("apply", "--disrupt", check=False).returncode == 1
    assert (masks(host), overridden(host)) == ([ALL_THE_HOSTS] * 2, [*OURS])
    assert host.places() == ("bastion", ["bastion"])
