# SPDX-License-Identifier: Apache-2.0
"""The packages are of this version and need what the program imports."""

from __future__ import annotations

import re
from pathlib import Path

from vfioapd import VERSION

PACKAGING = Path(__file__).parents[2] / "packaging"


def test_both_packages_are_of_this_version() -> None:
    assert (PACKAGING / "deb/changelog").read_text().startswith(f"vfioapd ({VERSION}) ")
    assert f"global vfioapd_version {VERSION}}}" in (PACKAGING / "rpm/vfioapd.spec").read_text()


def test_both_packages_are_refused_where_python_is_too_old() -> None:
    oldest = re.search(
        r'^requires-python = ">=(.*)"', (PACKAGING.parent / "pyproject.toml").read_text(), re.M
    )
    assert oldest
    assert f"\n python3 (>= {oldest[1]}),\n" in (PACKAGING / "deb/control").read_text()
    assert f"\nRequires:       python3 >= {oldest[1]}\n" in (PACKAGING / "rpm/vfioapd.spec").read_text()


def test_what_is_imported_is_a_distributions_package_or_carried() -> None:
    project = (PACKAGING.parent / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)\]", project, re.DOTALL | re.MULTILINE)
    assert listed
    wanted = set(re.findall(r'"([a-z-]+)', listed[1]))
    always = {name for name in wanted if f"$site/{name}" in (PACKAGING / "tree.sh").read_text()}
    assert always == {"asyncvarlink"}
    modules = {re.sub(r"^python-|-python$", "", name) for name in wanted - always}
    deb, spec = ((PACKAGING / recipe).read_text() for recipe in ("deb/control", "rpm/vfioapd.spec"))
    assert modules <= set(re.findall(r"^ python3-([a-z]+)", deb, re.MULTILINE))
    assert wanted - always == set(re.findall(r"^Requires: +python.*dist\(([a-z-]+)\)", spec, re.MULTILINE))
    of_two_names = set(re.findall(r"^Requires: +\(python.*dist\(([a-z-]+)\) or", spec, re.MULTILINE))
    assert wanted - always == of_two_names | carried_list().keys()


def test_the_rpm_names_what_it_carries_as_it_is_listed() -> None:
    spec = (PACKAGING / "rpm/vfioapd.spec").read_text()
    bundled = re.findall(r"^Provides: +bundled\(python3dist\((.*)\)\) = (.*)", spec, re.MULTILINE)
    assert dict(bundled) == carried_list()


def carried_list() -> dict[str, str]:
    """Version by name, of all that packaging/rpm/carried.txt pins by a hash."""
    text = (PACKAGING / "rpm/carried.txt").read_text()
    return dict(re.findall(r"^([a-z-]+)==(\S+) --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE))


def test_no_scriptlet_is_left_to_the_macros_of_the_building_machine() -> None:
    """Debian has none of systemd's, and rpmbuild takes the name of one that it does not know for text."""
    spec = (PACKAGING / "rpm/vfioapd.spec").read_text()
    assert not re.findall(r"^%(?:systemd|sysusers|tmpfiles|service)_\w+", spec, re.MULTILINE)
    own = {"name", "version", "release", "buildroot", "nil", "optflags"}
    for macro in set(re.findall(r"%\{(\w+)\}", spec)) - own:
        assert macro.startswith("_") or re.search(rf"%global {macro} ", spec), macro


def test_nothing_is_unpacked_into_the_folder_that_libvirt_runs() -> None:
    """dpkg's vfioapd.dpkg-new was run there, and the guest that was starting failed."""
    words = re.sub("#.*", "", (PACKAGING / "install.sh").read_text()).split()
    assert "/usr/share/vfioapd/hooks" in words
    assert not [word for word in words if word.startswith("/etc/libvirt")]


def test_no_recipe_fetches_anything() -> None:
    for path in PACKAGING.rglob("*"):
        if path.is_file():
            assert not re.search(r"\b(pip|curl|wget|apt-get)\b", path.read_text()), path
