# SPDX-License-Identifier: Apache-2.0
"""A host with a whole LPAR to restore, booted: how long its guests wait, against other ways to do it."""

from __future__ import annotations

import sys
import time

from bench import boot_ways
from bench.apply_time import DOMAINS, host_file
from bench.figures import Figure, Goal, Section, ratio
from vfioapd.lab.boot_harness import BootedLab, booted_lab

UNITS = ("vfioapd.service", "vfioapd.socket", "vfioapd-ro.socket", "vfioapd-ready.target")
OURS = ""  # no other program in the place of vfioapd
WAY_SECONDS = 600
IDLE_SECONDS = 10.0
# Boots of ours and of the bare writes for each round: both take half as long again when udevd, on as few
# processors, comes to the queues that the mask has moved before they are done.
ROUNDS = 3
DROP_IN = "/etc/systemd/system/vfioapd.service.d/way.conf"

METHOD = """\
Host full-lpar (5,100 queues), booted under systemd in one container for the whole section. 85 matrices of
60 adapters × 1 domain are in host.toml; a sample is the time that systemd gives to `vfioapd.service`, from
its start to READY=1, in one boot of a host that had been idle: sandbox, interpreter, imports, one read of
the host, plan, journal, writes and the check, while udevd sees to the queues that it finds. The same
devices are made at the same place of other boots, in turn, by the same unit with another program, from its
start to its end: by the bare writes that it takes at least (the process that makes the daemon's writes,
given all of them at once), by the Redbook's script (a mask, then each adapter and domain echoed on its own)
without its sleeps, and by the mask and `mdevctl start`, one after the other. The mask and `virsh
nodedev-start` need libvirtd, and are timed on a host that has booted, with udevd idle. None of these plans,
keeps a journal or checks anything. Last, host rdbkvm4 with nothing defined: from basic.target until
libvirtd is started, with vfioapd's units enabled and disabled in turn."""


def measure(rounds: int) -> Section:
    """Boots two hosts, several times. For outside of a lab."""
    ours = Figure("boot: `vfioapd.service` restores 85 matrices", "ms", [])
    ways = {
        "bare": Figure("the bare writes", "ms", []),
        "script": Figure("the Redbook's script without its sleeps", "ms", []),
        "mdevctl": Figure("the mask, then 85 × `mdevctl start`", "ms", []),
    }
    virsh = Figure("the mask, then 85 × `virsh nodedev-start`", "ms", [])
    with booted_lab("full-lpar") as lab:
        lab.run("tee", "/etc/vfioapd/host.toml", stdin=host_file(DOMAINS))
        lab.reboot()  # the file is taken up
        for number in range(ROUNDS * rounds):
            for name in [OURS, *ways] if number < max(2, rounds // 2) else [OURS, "bare"]:
                _put_in_place(lab, name)
                time.sleep(IDLE_SECONDS)  # the end of a boot is not to reach into the next
                lab.reboot()
                _check_restored(lab)
                (ours if name == OURS else ways[name]).samples.append(_restore_time(lab))
        lab.run("systemctl", "stop", *UNITS)
        virsh.samples.append(_by_virsh(lab))
    added, without = _libvirt_waits(rounds)
    waits = added.median - without.median
    return Section(
        "A whole LPAR restored at boot",
        METHOD,
        [ours, *ways.values(), virsh, added, without],
        [
            _faster(ours, ways["bare"], 1.5),
            *(_faster(ours, other) for other in (ways["script"], ways["mdevctl"], virsh)),
            Goal("nothing defined: libvirtd starts later by", "ms", waits, 300, inclusive=False),
        ],
    )


def _faster(ours: Figure, other: Figure, limit: float = 1.0) -> Goal:
    what = f"restore at boot, against {other.what}"
    return Goal(what, "×", ratio(ours, other), limit, inclusive=False)


def _put_in_place(lab: BootedLab, way: str) -> None:
    """At the next boot that program runs as vfioapd.service."""
    lab.run("rm", "-f", DROP_IN)
    if way != OURS:
        lab.run("tee", DROP_IN, stdin=boot_ways.drop_in(way))
        lab.run("tee", boot_ways.SAVED, stdin=boot_ways.text(way))


def _by_virsh(lab: BootedLab) -> float:
    return float(lab.run(sys.executable, "-m", "bench.boot_ways", timeout=WAY_SECONDS).stdout)


def _libvirt_waits(rounds: int) -> tuple[Figure, Figure]:
    added = Figure("nothing defined: basic.target until libvirtd starts, with vfioapd", "ms", [])
    without = Figure("the same without vfioapd", "ms", [])
    with booted_lab("rdbkvm4") as lab:
        for _ in range(rounds):
            for figure, verb in ((added, "enable"), (without, "disable")):
                lab.run("systemctl", "--quiet", verb, *UNITS)
                lab.reboot()
                begun, started = _moment(lab, "basic.target", "ActiveEnter"), _started(lab)
                figure.samples.append(started - begun)
    return added, without


def _started(lab: BootedLab) -> float:
    return _moment(lab, "libvirtd.service", "InactiveExit")


def _restore_time(lab: BootedLab) -> float:
    begun, ready = (_moment(lab, "vfioapd.service", what) for what in ("InactiveExit", "ActiveEnter"))
    return ready - begun


def _moment(lab: BootedLab, unit: str, what: str) -> float:
    """In milliseconds."""
    return int(lab.value(unit, f"{what}TimestampMonotonic")) / 1000


def _check_restored(lab: BootedLab) -> None:
    found = len(lab.run("ls", "/sys/bus/mdev/devices").stdout.split())
    if found != len(DOMAINS):
        raise SystemExit(f"bench: the boot restored {found} devices, not {len(DOMAINS)}")
