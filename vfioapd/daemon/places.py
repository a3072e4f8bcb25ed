# SPDX-License-Identifier: Apache-2.0
"""Where a host keeps what vfioapd reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """Every path outside of /sys; ``below`` moves them all, for tests and for image building."""

    host_file: Path = Path("/etc/vfioapd/host.toml")
    definitions: Path = Path("/etc/mdevctl.d/matrix")
    state: Path = Path("/var/lib/vfioapd")
    runtime: Path = Path("/run/vfioapd")
    lock: Path = Path("/run/lock/s390apconfig.lock")
    root: Path = Path("/")  # of all that is configured and installed by others
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")

    @classmethod
    def below(cls, root: Path) -> Places:
        """The same places inside another root."""
        plain = cls()
        return cls(
            host_file=root / plain.host_file.relative_to("/"),
            definitions=root / plain.definitions.relative_to("/"),
            state=root / plain.state.relative_to("/"),
            runtime=root / plain.runtime.relative_to("/"),
            lock=root / plain.lock.relative_to("/"),
            root=root,
        )

    @property
    def hook(self) -> Path:
        """Ours among libvirt's hooks."""
        return self.root / "etc/libvirt/hooks/qemu.d/vfioapd"

    @property
    def journal(self) -> Path:
        """The change being made."""
        return self.state / "journal"

    @property
    def revisions(self) -> Path:
        """Every host.toml that was ever in force."""
        return self.state / "revisions"

    @property
    def stopped(self) -> Path:
        """Names of matrices that an admin stopped, one a line; gone after a reboot."""
        return self.runtime / "stopped"

    @property
    def unplugged(self) -> Path:
        """Names of matrices that an admin took from their running guest, one a line; gone after a reboot."""
        return self.runtime / "unplugged"

    @property
    def started_for(self) -> Path:
        """Matrices that were started for one guest's run, with that guest, one a line."""
        return self.runtime / "started-for"

    @property
    def started(self) -> Path:
        """There once the daemon has run since the host booted."""
        return self.runtime / "started"

    @property
    def unconfirmed(self) -> Path:
        """The change that is taken back unless it is confirmed in time."""
        return self.state / "unconfirmed"

    @property
    def socket(self) -> Path:
        """The socket for changes."""
        return self.runtime / "vfioapd.sock"

    @property
    def read_only_socket(self) -> Path:
        """The socket for everybody."""
        return self.runtime / "vfioapd-ro.sock"
