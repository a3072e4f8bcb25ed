# SPDX-License-Identifier: Apache-2.0
"""The Redbook's host, set up by hand with its own commands, is adopted; then it survives what it did not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from guest_host import SYSTEMS, guest_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guest_host import GuestHost

    from vfioapd.lab.harness import Lab

THIRTEEN = "000d000d-000d-000d-000d-000d000d000d"
SEVENTEEN = "00110011-0011-0011-0011-001100110011"
NODEDEV = "825b3872-0001-0003-0011-28a403f8b357"
DEVICES = {THIRTEEN: "05.000d 07.000d", SEVENTEEN: "05.0011 07.0011", NODEDEV: "01.0011 03.0011"}
MATRIX = "/sys/devices/vfio_ap/matrix"

# Examples 3-8 to 3-14: the script frees all there is and fills two devices. Then somebody has the second one
# defined, too: without ap-check's callout mdevctl cannot read what it holds.
S1 = f"""
echo 0x0 > /sys/bus/ap/apmask
echo 0x0 > /sys/bus/ap/aqmask
for device in {THIRTEEN}/13 {SEVENTEEN}/17; do
    echo ${{device%/*}} > {MATRIX}/mdev_supported_types/vfio_ap-passthrough/create
    cd {MATRIX}/${{device%/*}}
    echo 5 > assign_adapter
    echo 7 > assign_adapter
    echo ${{device#*/}} > assign_domain
    echo ${{device#*/}} > assign_control_domain
done
mdevctl define -u {SEVENTEEN} --auto
"""
# Examples 3-15 to 3-18.
S2 = f"""
vfioap-lab guest bastion --start
cat > /root/thirteen.xml <<END
<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-ap'>
  <source><address uuid='{THIRTEEN}'/></source>
</hostdev>
END
virsh attach-device bastion /root/thirteen.xml --live
"""
# Examples 3-20 to 3-29, after what the book leaves out: the guest lets go of the first device.
S3 = f"""
virsh detach-device bastion /root/thirteen.xml --live
cat > /root/nodedev.xml <<END
<device>
  <parent>ap_matrix</parent>
  <capability type='mdev'>
    <type id='vfio_ap-passthrough'/>
    <uuid>{NODEDEV}</uuid>
    <attr name='assign_adapter' value='0x01'/>
    <attr name='assign_adapter' value='0x03'/>
    <attr name='assign_domain' value='0x0011'/>
  </capability>
</device>
END
virsh nodedev-define /root/nodedev.xml
virsh nodedev-start mdev_{NODEDEV.replace("-", "_")}_matrix
sed 's/{THIRTEEN}/{NODEDEV}/' /root/thirteen.xml > /root/accel.xml
virsh attach-device bastion /root/accel.xml --live
"""


def define(lab: Lab, uuid: str, start: str, **members: tuple[int, ...]) -> None:
    """By mdevctl, as libvirt calls it."""
    attrs = [{f"assign_{kind[:-1]}": str(number)} for kind, numbers in members.items() for number in numbers]
    document = {"mdev_type": "vfio_ap-passthrough", "start": start, "attrs": attrs}
    command = ("mdevctl", "define", "--parent=matrix", "--jsonfile=/dev/stdin", f"--uuid={uuid}")
    lab.run(*command, stdin=json.dumps(document))


def adopt(lab: Lab, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.run("vfioapctl", "adopt", *options, "--json").stdout)
    return found


def findings(adoption: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["code"], one["uuid"]) for one in adoption["findings"]}


def matrices(lab: Lab) -> dict[str, str]:
    """What a guest would get of each active device."""
    uuids = lab.run("ls", "/sys/bus/mdev/devices").stdout.split()
    return {u: " ".join(lab.run("cat", f"{MATRIX}/{u}/guest_matrix").stdout.split()) for u in uuids}


def untouched(lab: Lab) -> list[str]:
    """What adopting must not touch: masks, and both documents of the guest."""
    masks = lab.run("cat", "/sys/bus/ap/apmask", "/sys/bus/ap/aqmask").stdout
    live = lab.run("virsh", "dumpxml", "bastion").stdout
    return [masks, live, lab.run("virsh", "dumpxml", "bastion", "--inactive").stdout]


@pytest.fixture(scope="module", params=SYSTEMS)
def whole(request: pytest.FixtureRequest) -> Iterator[GuestHost]:
    """The book's host; the daemon comes last. The tests below are one story."""
    with guest_host(request.param) as host:
        host.take_down_daemon()
        for script in (S1, S2, S3):
            host.lab.shell(script)
        host.start_daemon()
        yield host


@pytest.fixture
def host(whole: GuestHost) -> Lab:
    return whole.lab


def test_the_books_host_is_read_with_all_that_does_not_last(host: Lab) -> None:
    found = adopt(host)
    assert [(one["name"], one["uuid"], one["guest"], one["start"]) for one in found["matrices"]] == [
        ("bastion", NODEDEV, None, "auto"),
        ("ap-05.000d", THIRTEEN, None, "auto"),
    ]
    assert findings(found) == {
        ("no-definition", THIRTEEN),
        ("definition-differs", SEVENTEEN),
        ("live-only", NODEDEV),
    }


def test_what_is_settled_as_the_hint_says_is_adopted(host: Lab) -> None:
    (differs,) = (one for one in adopt(host)["findings"] if one["code"] == "definition-differs")
    host.shell(differs["hint"].partition(": ")[2])
    assert ("no-definition", SEVENTEEN) in findings(adopt(host))
    define(host, SEVENTEEN, "auto", adapters=(5, 7), domains=(17,), control_domains=(17,))
    host.shell("virsh attach-device bastion /root/accel.xml --config")
    found = adopt(host)
    assert [(one["name"], one["guest"]) for one in found["matrices"]] == [
        ("bastion", "bastion"),
        ("ap-05.000d", None),
        ("ap-05.0011", None),
    ]
    assert findings(found) == {("no-definition", THIRTEEN)}


def test_a_torn_file_and_an_overlap_are_left_and_named(host: Lab) -> None:
    worker, torn = "00020103-0507-000d-0011-28a403f8b357", "11111111-2222-3333-4444-555555555555"
    define(host, worker, "manual", adapters=(0, 7), domains=(13,))
    host.shell(f"echo '{{' > /etc/mdevctl.d/matrix/{torn}")
    found = adopt(host)
    assert {one["uuid"] for one in found["matrices"]} == {NODEDEV, SEVENTEEN}
    assert findings(found) == {
        ("torn-definition", torn),
        ("queue-taken", worker),
        ("queue-taken", THIRTEEN),
    }
    host.shell(f"rm /etc/mdevctl.d/matrix/{torn}; mdevctl undefine -u {worker}")


def test_adopting_touches_neither_masks_nor_devices_nor_guests(host: Lab) -> None:
    before, devices = untouched(host), matrices(host)
    assert devices == DEVICES
    done = adopt(host, "--write")["change"]
    assert done["made"]
    assert all(step.startswith("write /etc/") for step in done["steps"])
    assert (untouched(host), matrices(host)) == (before, devices)
    assert host.run("vfioapctl", "plan").stdout == "plan: nothing to do\n"
    assert adopt(host)["matrices"] == []
    listed = filter(None, host.run("mdevctl", "list", "-d").stdout.splitlines())
    assert sorted(listed) == [f"{u} matrix vfio_ap-passthrough manual (active)" for u in sorted(DEVICES)]


def test_a_daemon_that_is_killed_finds_all_as_it_was(whole: GuestHost, host: Lab) -> None:
    before = untouched(host)
    whole.kill_daemon()
    whole.start_daemon()
    assert (untouched(host), matrices(host)) == (before, DEVICES)
    assert host.run("vfioapctl", "plan").stdout == "plan: nothing to do\n"


def test_after_a_reboot_the_devices_are_there_and_the_guest_has_its_own(whole: GuestHost, host: Lab) -> None:
    whole.reboot()
    assert matrices(host) == DEVICES
    assert host.run("vfioapctl", "plan").stdout == "plan: nothing to do\n"
    host.run("virsh", "-q", "start", "bastion", "--paused")
    shown = json.loads(host.run("vfioapctl", "show", "bastion", "--json").stdout)
    assert (shown["state"], shown["live"], shown["problem"]) == ("in-use", "bastion", None)
