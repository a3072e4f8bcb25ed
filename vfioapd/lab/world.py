# SPDX-License-Identifier: Apache-2.0
"""The private file system of a lab: what is empty, what is a copy, what stays the machine's own.

/run is new. /etc, /var and /dev are overlays: all of the machine's is seen, writes stay in the lab. The
folders of the host software under test start empty, so that no guest, network or rule of the machine
itself takes part. The caller's folder, home and checkout stay the real, writable ones.
/sys gets the emulated subtrees; what is real there and lies beside them becomes read-only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from vfioapd.lab import syscalls
from vfioapd.lab.layout import PACKAGE_PARENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vfioapd.lab.layout import Layout

# Per overlay the folders of which nothing of the machine's is seen.
OVERLAYS: dict[str, tuple[str, ...]] = {
    "/etc": ("libvirt", "mdevctl.d", "udev/rules.d", "vfioapd"),
    "/var": ("lib/libvirt", "lib/vfioapd", "log/libvirt", "cache/libvirt"),
    # Private also because udevd sets owner and mode of static nodes when it starts.
    "/dev": (),
}
# The emulated kernel's tree is cut into these and shown at the same place in /sys.
SUBTREES = (
    "bus/ap",
    "bus/matrix",
    "bus/mdev",
    "class/mdev_bus",
    "class/zcrypt",
    "devices/ap",
    "devices/vfio_ap",
    "kernel/iommu_groups",
)
# These come and go with modules; a link to each follows that by itself.
LINKS = ("module/ap", "module/zcrypt", "module/zcrypt_cex4", "module/vfio_ap", "module/mdev")
FOLDERS = (
    "/etc/libvirt/hooks",
    "/etc/mdevctl.d/scripts.d/callouts",  # mdevctl 1.2 refuses to run without these two
    "/etc/mdevctl.d/scripts.d/notifiers",
)
RUN_FOLDERS = ("lock", "udev", "libvirt")
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def build(layout: Layout) -> None:
    """Everything but /sys, which needs the emulated kernel."""
    folder_of_caller = Path.cwd()
    of_caller = [folder_of_caller, Path.home(), Path(sys.prefix), PACKAGE_PARENT]
    kept = _open_kept([*of_caller, *_mounts_below("/dev"), *_mounts_below("/sys")])
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("proc", "/proc", "proc")
    syscalls.mount("sysfs", "/sys", "sysfs")  # a new one shows the interfaces of our own network only
    syscalls.mount("tmpfs", "/run", "tmpfs", data="mode=755")
    make_folders(layout)
    for folder, hidden in OVERLAYS.items():
        _overlay(layout, folder, hidden)
    _restore_kept(kept)
    for folder in FOLDERS:
        os.makedirs(folder)
    new_boot_id(layout)
    syscalls.bind(str(layout.boot_id), BOOT_ID)
    syscalls.bring_up_loopback()
    os.chdir(folder_of_caller)


def new_boot_id(layout: Layout) -> None:
    layout.boot_id.write_text(f"{uuid.uuid4()}\n")


def is_complete(layout: Layout) -> bool:
    """Whether the emulated kernel has all that can be bound."""
    return all((layout.kernel / subtree).is_dir() for subtree in SUBTREES)


def bind_kernel(layout: Layout) -> None:
    """Show the emulated kernel's files in /sys and /dev."""
    _add_to_sysfs(layout)
    for subtree in SUBTREES:
        syscalls.bind(str(layout.kernel / subtree), f"/sys/{subtree}")
    _remove(Path("/dev/vfio"))
    Path("/dev/vfio").symlink_to(layout.kernel / "dev/vfio")


def empty_run(layout: Layout) -> None:
    """What a reboot does to /run; the lab's own folder is no part of the emulated host."""
    for entry in Path("/run").iterdir():
        if entry != layout.root:
            _remove(entry)
    _make_run_folders()


def make_folders(layout: Layout) -> None:
    for folder in (layout.root, layout.kernel, layout.layers, layout.logs, layout.guests, layout.bin):
        folder.mkdir(parents=True)
    _make_run_folders()


def _make_run_folders() -> None:
    for name in RUN_FOLDERS:
        Path("/run", name).mkdir(parents=True, exist_ok=True)
    Path("/run/lock").chmod(0o1777)


def _overlay(layout: Layout, folder: str, hidden: Sequence[str]) -> None:
    upper, work = (layout.layers / folder.strip("/") / name for name in ("upper", "work"))
    for path in (work, upper, *(upper / name for name in hidden)):
        path.mkdir(parents=True, exist_ok=True)
    for name in hidden:
        # overlayfs shows nothing of the lower folder behind an opaque one
        os.setxattr(upper / name, "trusted.overlay.opaque", b"y")
    options = f"lowerdir={folder},upperdir={upper},workdir={work}"
    syscalls.mount("overlay", folder, "overlay", data=options)


def _add_to_sysfs(layout: Layout) -> None:
    """sysfs takes no new folders from us; read-only overlays show ours beside its own."""
    skeleton = layout.layers / "sys"
    for name in SUBTREES:
        (skeleton / name).mkdir(parents=True)
    for name in LINKS:
        (skeleton / name).parent.mkdir(parents=True, exist_ok=True)
        (skeleton / name).symlink_to(layout.kernel / name)
    for top in skeleton.iterdir():
        here = Path("/sys") / top.name
        if not all((here / ours.name).is_dir() for ours in top.iterdir()):
            syscalls.mount("overlay", str(here), "overlay", data=f"lowerdir={top}:{here}")


def _open_kept(paths: Sequence[Path]) -> list[tuple[Path, int]]:
    """Folders that must stay the machine's own, with a descriptor that outlives their being covered."""
    return [(path, os.open(path, os.O_PATH)) for path in dict.fromkeys(paths) if path.is_dir()]


def _restore_kept(kept: Sequence[tuple[Path, int]]) -> None:
    covered = [Path("/run"), Path("/var"), Path("/dev"), Path("/sys")]
    for path, descriptor in kept:
        if any(top in path.parents for top in covered):
            path.mkdir(parents=True, exist_ok=True)
            syscalls.bind(f"/proc/self/fd/{descriptor}", str(path))
        os.close(descriptor)


def _mounts_below(folder: str) -> list[Path]:
    """Topmost folders below `folder` on which something else is mounted."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = {Path(point) for point in points if point.startswith(folder + "/") and Path(point).is_dir()}
    return sorted(path for path in below if not below.intersection(path.parents))


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        for child in entry.iterdir():
            _remove(child)
        with contextlib.suppress(OSError):  # a mount point, such as a kept folder
            entry.rmdir()
    else:
        entry.unlink(missing_ok=True)
