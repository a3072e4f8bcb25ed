# SPDX-License-Identifier: Apache-2.0
"""Defects planted on a whole host: doctor finds each, and the command that it prints mends it."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from labs import DAEMON_PID, START_DAEMON, signal_daemon

from vfioapd.lab.harness import running_lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vfioapd.lab.harness import Lab

HOOK = Path(__file__).parents[2] / "etc/libvirt/hooks/qemu.d/vfioapd"
HOOKS = "/etc/libvirt/hooks/qemu.d"
UUID = "825b3872-0001-0003-0011-28a403f8b357"
OTHER = "11111111-2222-3333-4444-555555555555"
FOLDER = "/etc/mdevctl.d/matrix"
DEVICE = f"/sys/devices/vfio_ap/matrix/{UUID}"
KEEP = 'version = 1\n\n[host]\nkeep = ["00.000d"]\n'
LIBVIRT_LOOKS = "vfioap-lab service restart libvirtd"
SETUP = f"""
echo vfio_ap > /etc/modules-load.d/vfio_ap.conf
mkdir -p /etc/modprobe.d
install -D -m 755 {HOOK} {HOOKS}/vfioapd
{LIBVIRT_LOOKS}
vfioap-lab guest bastion
{START_DAEMON}
printf '{KEEP.encode("unicode_escape").decode()}' > /etc/vfioapd/host.toml
vfioapctl apply
vfioapctl define vault --queues 02.0011,04.0011 --uuid {UUID} --guest bastion
"""


@dataclass(frozen=True)
class Plant:
    """How a defect is made, and what there is to do besides the command; without a command all of it."""

    script: str
    then: str = "true"


def definition(start: str, adapter: str, domain: str) -> str:
    attrs = [{"assign_adapter": adapter}, {"assign_domain": domain}]
    return json.dumps({"mdev_type": "vfio_ap-passthrough", "start": start, "attrs": attrs})


def foreign(start: str, adapter: str, domain: str) -> Plant:
    return Plant(
        f"echo '{definition(start, adapter, domain)}' > {FOLDER}/{OTHER}",
        f"rm -f {FOLDER}/{OTHER} /root/{OTHER}",
    )


def edited(script: str) -> str:
    return f'VISUAL="sed -i -E \\"{script}\\"" virsh -q edit bastion'


def hostdev(uuid: str) -> str:
    source = f"<source><address uuid='{uuid}'/></source>"
    return f"<hostdev mode='subsystem' type='mdev' model='vfio-ap'>{source}</hostdev>"


PLANTS = {
    "vfio-ap-not-at-boot": Plant("rm /etc/modules-load.d/vfio_ap.conf"),
    "vfio-ap-forbidden": Plant(
        "echo 'blacklist vfio_ap' > /etc/modprobe.d/hardening.conf", "rm /etc/modprobe.d/hardening.conf"
    ),
    "udev-masks": Plant(
        """echo 'SUBSYSTEM=="ap", ATTR{../../bus/ap/apmask}="0xffff"' > /etc/udev/rules.d/50-ap.rules"""
    ),
    "kernel-masks": Plant(
        "echo 'parameters=\"ro ap.apmask=0x7fff\"' > /etc/zipl.conf\n"
        "echo 'ro ap.apmask=0x7fff' > /run/cmdline; mount --bind /run/cmdline /proc/cmdline",
        "grep -x 'parameters=\"ro\"' /etc/zipl.conf; umount /proc/cmdline",
    ),
    "modprobe-masks": Plant(
        "echo 'options ap domain=6 apmask=0x7fff' > /etc/modprobe.d/ap.conf",
        "grep -x 'options ap domain=6' /etc/modprobe.d/ap.conf; rm /etc/modprobe.d/ap.conf",
    ),
    "boot-masks-too-wide": Plant(
        "echo 'options ap apmask=-0-255,+0-6' > /etc/modprobe.d/ap.conf",
    ),
    "boot-masks-unreadable": Plant("echo 'options ap apmask=0,1,2' > /etc/modprobe.d/ap.conf"),
    "keep-lost": Plant("echo -0 > /sys/bus/ap/apmask"),
    "queue-missing": Plant(
        "vfioap-lab play remove-adapter adapter=4", "vfioap-lab play add-adapter adapter=4 type=CEX8C"
    ),
    "host-file-edited": Plant("echo '# a word' >> /etc/vfioapd/host.toml"),
    "host-file-bad": Plant("echo 'keeep = 1' >> /etc/vfioapd/host.toml"),
    "change-unconfirmed": Plant(
        "vfioapctl define extra --queues 06.0011 --start manual\n"
        "vfioapctl start extra; cp /etc/vfioapd/host.toml /run/t.toml\n"
        'sed -i \'s/start = "manual"/start = "auto"/\' /run/t.toml\n'
        "vfioapctl stop extra; vfioapctl apply /run/t.toml --confirm-within 600",
        "vfioapctl undefine extra",
    ),
    "matrix-broken": Plant(f"echo 0x11 > {DEVICE}/unassign_domain"),
    "matrix-swept": Plant(
        f"echo 1 > {DEVICE}/remove\n"
        "for _ in $(seq 100); do vfioapctl status | grep -q 'is gone' && exit 0; sleep 0.05; done; exit 1"
    ),
    "sweeper-runs": Plant(
        "cp /bin/sleep /run/virt-handler\n/run/virt-handler 900 >/dev/null 2>&1 & echo $! > /run/h.pid",
        "kill $(cat /run/h.pid)",
    ),
    "lock-held": Plant(
        "echo 1 > /run/lock/s390apconfig.lock; touch -d -10min /run/lock/s390apconfig.lock",
        "rm /run/lock/s390apconfig.lock",
    ),
    "mdevctl-broken": Plant("rmdir /etc/mdevctl.d/scripts.d/notifiers"),
    "mdevctl-torn": Plant(f"echo '{{' > {FOLDER}/{OTHER}", f"rm /root/{OTHER}"),
    "mdevctl-bad-value": foreign("manual", "300", "17"),
    "mdevctl-stray": Plant(f"touch {FOLDER}/notes.txt"),
    "mdevctl-own-auto": Plant(f"mdevctl modify -u {UUID} --auto"),
    "mdevctl-own-edited": Plant(f"mdevctl undefine -u {UUID}"),
    "mdevctl-foreign-conflict": foreign("auto", "2", "17"),
    "mdevctl-foreign-auto": foreign("auto", "6", "17"),
    "libvirt-silent": Plant("vfioap-lab service stop libvirtd", "vfioap-lab service start libvirtd"),
    "hook-missing": Plant(f"rm {HOOKS}/vfioapd", LIBVIRT_LOOKS),
    "hook-not-executable": Plant(f"chmod 644 {HOOKS}/vfioapd", LIBVIRT_LOOKS),
    "hook-altered": Plant(f"echo '# mine' >> {HOOKS}/vfioapd", LIBVIRT_LOOKS),
    "hook-unseen": Plant(
        f"mv {HOOKS}/vfioapd /root; {LIBVIRT_LOOKS}; install -m 755 /root/vfioapd {HOOKS}/vfioapd",
        LIBVIRT_LOOKS,
    ),
    "guest-unknown": Plant(
        "virsh dumpxml bastion > /run/b.xml; virsh -q undefine bastion", "virsh -q define /run/b.xml"
    ),
    "guest-device-gone": Plant(
        f'vfioap-lab guest web; echo "{hostdev(OTHER)}" | virsh attach-device web /dev/stdin --config',
        "virsh -q undefine web",
    ),
    "guest-device-managed": Plant(edited("/type='mdev'/s/managed='no'/managed='yes'/")),
    "guest-ap-disabled": Plant(
        edited(r"/<cpu /,/<\/cpu>/s,</model>,</model><feature policy='disable' name='ap'/>,")
    ),
    "path-open": Plant("chmod 777 /etc/vfioapd"),
    "path-owner": Plant("chown nobody /var/lib/vfioapd"),
    "path-missing": Plant("rm -r /etc/mdevctl.d/matrix", "vfioapctl apply"),
    "socket-mode": Plant("chmod 666 /run/vfioapd/vfioapd.sock"),
    "daemon-dead": Plant(
        f"kill $(cat {DAEMON_PID}); while vfioapctl status >/dev/null 2>&1; do :; done", START_DAEMON
    ),
}


@pytest.fixture(scope="module")
def host() -> Iterator[Lab]:
    """A host in order: hook, module, daemon, a guest with its matrix."""
    with running_lab("rdbkvm4") as lab:
        lab.shell(SETUP)
        yield lab


def findings(lab: Lab) -> list[dict[str, Any]]:
    answer = json.loads(lab.run("vfioapctl", "doctor", "--json", check=False).stdout)
    return [one for subject in answer["subjects"] for one in subject["findings"]]


def test_a_host_in_order_has_no_findings_and_ends_with_0(host: Lab) -> None:
    assert findings(host) == []
    answer = host.run("vfioapctl", "doctor")
    assert "units        unchecked\n  not checked: units: no systemd here" in answer.stdout
    assert answer.stdout.endswith("nothing is known to be wrong\n")


@pytest.mark.parametrize("code", PLANTS)
def test_a_planted_defect_is_found_alone_and_mended_by_its_command(host: Lab, code: str) -> None:
    plant = PLANTS[code]
    host.shell(plant.script)
    found = findings(host)
    status = host.run("vfioapctl", "doctor", check=False).returncode
    mended = [host.run("bash", "-c", one["command"] or "true", check=False) for one in found]
    host.shell(plant.then)
    assert [one["code"] for one in found] == [code], found
    assert status == (6 if found[0]["severity"] == "error" else 0)
    assert mended[0].returncode == 0, mended[0].stderr
    assert findings(host) == []


def test_a_daemon_that_hangs_is_found_from_outside(host: Lab) -> None:
    signal_daemon(host, signal.SIGSTOP)
    try:
        found = findings(host)
    finally:
        signal_daemon(host, signal.SIGCONT)
    assert [one["code"] for one in found] == ["daemon-dead"]
    assert findings(host) == []


# As KubeVirt's virt-handler does it with devices of types that are not in its list.
SWEEP = """
cp /bin/bash /run/virt-handler
cat > /run/sweep <<'END'
while sleep 0.1; do
    for device in /sys/bus/mdev/devices/*/remove; do [ -e "$device" ] && echo 1 > "$device"; done
done
END
setsid /run/virt-handler /run/sweep >/dev/null 2>&1 & echo $! > /run/h.pid
"""


def test_a_program_that_sweeps_devices_away_is_named_with_the_setting_that_stops_it(
    wait_until: Callable[..., None],
) -> None:
    with running_lab("rdbkvm4") as lab:
        lab.shell(SETUP)
        lab.shell(SWEEP)
        wait_until(lambda: "matrix-swept" in {one["code"] for one in findings(lab)}, "the loss is noticed")
        (once,) = findings(lab)
        lab.shell(once["command"])
        wait_until(lambda: "2 times" in findings(lab)[0]["sentence"], "the next loss is noticed")
        (twice,) = findings(lab)
        lab.shell("kill $(cat /run/h.pid)")
        lab.shell(twice["command"])
        (after,) = findings(lab)
        status = json.loads(lab.run("vfioapctl", "show", "vault", "--json").stdout)
    pattern = r"matrix vault was removed 2 times by another program .*KubeVirt's virt-handler \(PID \d+\)"
    assert re.search(pattern, twice["sentence"])
    assert "mediatedDevicesConfiguration.enabled: false" in twice["advice"]
    assert (after["code"], after["command"]) == ("matrix-swept", None)
    assert status["state"] == "started"
