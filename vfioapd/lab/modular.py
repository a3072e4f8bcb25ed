# SPDX-License-Identifier: Apache-2.0
"""libvirt's modular daemons (virtqemud, virtnodedevd and so on) for a system whose packages lack them.

Debian ships libvirtd alone, but its source package holds all of libvirt. That is built without Debian's
changes, as the other distributions' settings are libvirt's own; in a copy of the new system, so that no
compiler stays in it; and put over the packages of the same version: programs, drivers, and the units with
their sockets, as they are. libvirtd stays installed beside them and is not
enabled, as on distributions that are modular by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfioapd.lab.errors import Exit, LabError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAEMON = "usr/sbin/virtqemud"
SOURCE = "libvirt"
RESULT = "root/modular"  # in the copy, where the build puts what is to be taken over
# What an installation of a modular distribution starts with the host. Each service takes along its
# sockets, and virtqemud those of virtlogd and virtlockd; the rest sleeps until its socket is used.
ENABLED = (
    "libvirt-guests.service",
    "virtnodedevd.service",
    "virtproxyd.socket",
    "virtqemud.service",
    *(f"virt{driver}d.socket" for driver in ("interface", "network", "nwfilter", "secret", "storage")),
)
TOOLS = (
    "build-essential",
    "gettext",
    "libacl1-dev",
    "libattr1-dev",
    "libcap-ng-dev",
    "libdevmapper-dev",
    "libglib2.0-dev",
    "libgnutls28-dev",
    "libjson-c-dev",  # libvirt 11; libvirt 9 reads JSON by yajl
    "libnl-3-dev",
    "libnl-route-3-dev",
    "libpciaccess-dev",
    "libreadline-dev",
    "libtirpc-dev",
    "libudev-dev",
    "libxml2-dev",
    "libxml2-utils",
    "libyajl-dev",
    "meson",
    "pkgconf",
    "python3-docutils",
    "xsltproc",
)
# Nothing that a host of vfio-ap can do without: each other driver is a minute.
FEATURES = (
    "attr",
    "capng",
    "driver_interface",
    "driver_libvirtd",
    "driver_network",
    "driver_qemu",
    "driver_remote",
    "driver_secrets",
    "driver_test",
    "libnl",
    "pciaccess",
    "readline",
    "storage_dir",
    "storage_fs",
    "udev",
)
BUILD = """\
cd /root
apt-get -q --tar-only source {source}
tar -xf {source}_*.orig.tar.*
cd {source}-*/
triplet=$(gcc -print-multiarch)
json=$(grep -Eo "'(json_c|yajl)'" meson_options.txt | tr -d "'")
meson setup build --auto-features=disabled -D$json=enabled {features} \\
    --prefix=/usr --sysconfdir=/etc --localstatedir=/var -Drunstatedir=/run \\
    --libdir=lib/$triplet --libexecdir=lib/libvirt -Dqemu_moddir=/usr/lib/$triplet/qemu \\
    -Dqemu_user=libvirt-qemu -Dqemu_group=libvirt-qemu -Dremote_default_mode=direct -Dinit_script=systemd
nice ninja -C build
DESTDIR=/{result} meson install -C build --no-rebuild
"""
RECIPE = (SOURCE, TOOLS, FEATURES, BUILD)


def is_modular(root: Path) -> bool:
    """Whether that system starts the modular daemons instead of libvirtd."""
    return (root / DAEMON).exists()


def prepare(copy: Path, in_container: Callable[[list[str]], object]) -> None:
    """Build it below RESULT in a copy of the system, which has none of libvirt's packages yet."""
    binary = (copy / "etc/apt/sources.list").read_text()
    (copy / "etc/apt/sources.list.d/source.list").write_text(binary.replace("deb ", "deb-src "))
    features = " ".join(f"-D{name}=enabled" for name in FEATURES)
    script = BUILD.format(source=SOURCE, features=features, result=RESULT)
    in_container(["apt-get", "-q", "update"])
    in_container(["apt-get", "-q", "install", "--no-install-recommends", "--yes", *TOOLS])
    in_container(["sh", "-ec", script])
    if not is_modular(copy / RESULT):
        raise LabError(f"Debian's source of {SOURCE} makes no {DAEMON}", Exit.MISSING)
