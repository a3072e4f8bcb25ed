# SPDX-License-Identifier: Apache-2.0
"""The rpm on a host that boots: installed, upgraded under a guest, erased, installed again where a policy
keeps services disabled. The host is Debian with Debian's rpm; docs/packages.md says what that cannot show.

All of it with the distribution's Python modules; with carried ones, where the host has none; and from one
kind to the other and back."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from boots import CHECKOUT, GUESTS_MEANWHILE, MACHINE, PACKAGE, boot, matrices, skip_without

from vfioapd import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vfioapd.lab.boot_harness import BootedLab

pytestmark = pytest.mark.boot

FOLDER = CHECKOUT / ".cache/packages"
ORDINARY = [FOLDER / f"vfioapd-{VERSION}-{release}.noarch.rpm" for release in (1, 2)]
CARRIED = [FOLDER / f"python3.11/vfioapd-{VERSION}-{release}.{platform.machine()}.rpm" for release in (1, 2)]
# Modules of the distribution that a carried rpm does without, and where they are otherwise.
MODULES = ("libvirt", "pyudev", "systemd", "tomlkit")
DISTRIBUTIONS = "/usr/lib/python3/dist-packages/"
PRIVATE = "/usr/lib/vfioapd/"
RPM = "rpm --nodeps --force-debian"
UNITS = ("vfioapd.service", "vfioapd.socket", "vfioapd-ro.socket", "vfioapd-ready.target")
HOOK = "/etc/libvirt/hooks/qemu.d/vfioapd"
UUID = "825b3872-0001-0005-0011-28a403f8b357"
DEFINE = f"vfioapctl define bastion --queues 01.0011,05.0011 --guest bastion --uuid {UUID}"
GUEST_QUEUES = ("cat", f"/sys/devices/vfio_ap/matrix/{UUID}/guest_matrix")
ORPHAN = "/usr/lib/vfioapd/vfioapd/gone/__pycache__/old.cpython-311.pyc"

# Where the two packages differ, and why. Patterns are of whole paths.
ONLY_RPM = {
    r"/usr/share/licenses/.*": "Debian's policy: /usr/share/doc/PACKAGE/copyright",
    HOOK: "an rpm can own what its scriptlet makes; dpkg would unpack it there",
}
ONLY_CARRIED = {
    rf"{PRIVATE}({'|'.join(MODULES)})(mod\.cpython.*|\.py|/.*)": "Debian has these modules",
    r"/usr/lib/\.build-id/.*": "by which debuggers find what is compiled",
}
ONLY_DEB = {
    r"/usr/share/doc/[^/]+/(copyright|changelog)": "Debian's policy",
    r"/usr/share/python3/runtime\.d/.*": "compiles anew when Debian's Python is another one",
    r"/usr/share/lintian/.*": "Debian's checker",
}
SAME = (
    (r"^/lib/systemd/", "/usr/lib/systemd/"),  # Debian 12 has its units there, by a link
    (r"/zsh/vendor-completions/", "/zsh/site-functions/"),
    (r"^(/usr/share/doc/[^/]+)-\d[\d.]*/", r"\1/"),  # Debian's rpm puts the version in
    (r"^(/usr/share/(?:man|doc)/.*)\.gz$", r"\1"),
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(ORDINARY, id="distributions"),
        pytest.param(CARRIED, id="carried"),
        pytest.param([CARRIED[0], ORDINARY[1]], id="from-carried-to-distributions"),
    ],
)
def releases(request: pytest.FixtureRequest) -> list[Path]:
    """An older rpm and a newer one."""
    packages: list[Path] = request.param
    for package in packages:
        skip_without(package)
    return packages


@pytest.fixture(scope="module")
def host(releases: list[Path]) -> Iterator[BootedLab]:
    """A host that the rpm was installed on before its first boot, as an image is made."""
    with boot("rdbkvm4", MACHINE, package=releases[0]) as lab:
        if releases == CARRIED:
            hide_modules(lab)
        yield lab


def hide_modules(lab: BootedLab) -> None:
    """As on a system that has them for another Python. The folder is the machine's own outside of a lab."""
    patterns = " ".join(f"{module}*" for module in MODULES)
    lab.shell(f"test -e /etc/vfioap-lab/host.toml; cd {DISTRIBUTIONS}; rm -r {patterns}")
    there = "import importlib.util as i, sys; print([m for m in sys.argv[1:] if i.find_spec(m)])"
    assert lab.run("/usr/bin/python3.11", "-I", "-c", there, *MODULES).stdout == "[]\n"
    lab.reboot()


def enabled(lab: BootedLab) -> list[str]:
    return lab.run("systemctl", "is-enabled", *UNITS, check=False).stdout.split()


def state(lab: BootedLab) -> str:
    return str(matrices(lab)["bastion"]["state"])


def doctor(lab: BootedLab) -> list[dict[str, object]]:
    """What doctor finds wrong."""
    answer = json.loads(lab.run("vfioapctl", "doctor", "--json", check=False).stdout)
    return [finding for subject in answer["subjects"] for finding in subject["findings"]]


def rpm(lab: BootedLab, *arguments: object, says: str = "") -> None:
    """rpm goes on behind a scriptlet that fails, with a warning; so it is to say this and nothing else."""
    done = lab.run(*RPM.split(), *map(str, arguments))
    assert (done.stdout, done.stderr) == ("", says)


def in_rpm(package: Path) -> dict[str, str]:
    """Mode by path, of all but folders."""
    form = "[%{FILEMODES:perms} %{FILENAMES}\n]"
    return listed(output("rpm", "-qp", "--queryformat", form, str(package)), lambda words: words)


def in_deb(package: Path) -> dict[str, str]:
    return listed(output("dpkg-deb", "--contents", str(package)), lambda words: [words[0], words[5][1:]])


def listed(text: str, columns) -> dict[str, str]:  # type: ignore[no-untyped-def]
    modes = {}
    for line in text.splitlines():
        mode, path = columns(line.split())
        for pattern, same in SAME:
            path = re.sub(pattern, same, path)
        if not mode.startswith("d"):
            modes[path] = mode
    return modes


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def without(modes: dict[str, str], patterns: dict[str, str]) -> dict[str, str]:
    known = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    return {path: mode for path, mode in modes.items() if not known.fullmatch(path)}


@pytest.mark.parametrize("kind", [ORDINARY, CARRIED], ids=["distributions", "carried"])
@pytest.mark.parametrize("name", ["vfioapd", "vfioap-lab"])
def test_rpm_and_deb_ship_the_same_files(kind: list[Path], name: str) -> None:
    lab = kind[0].with_name(f"vfioap-lab-{VERSION}-1.noarch.rpm")
    ours, deb = kind[0] if name == "vfioapd" else lab, FOLDER / f"{name}_{VERSION}_all.deb"
    for package in (ours, deb):
        skip_without(package)
    shipped = without(in_rpm(ours), ONLY_RPM | (ONLY_CARRIED if kind == CARRIED else {}))
    assert len(shipped) > 20
    assert shipped == without(in_deb(deb), ONLY_DEB)


def test_each_named_difference_is_one() -> None:
    """A reason that nothing needs any more is not left standing."""
    for package in (CARRIED[0], PACKAGE):
        skip_without(package)
    for patterns, paths in ((ONLY_RPM | ONLY_CARRIED, in_rpm(CARRIED[0])), (ONLY_DEB, in_deb(PACKAGE))):
        assert not [one for one in patterns if not any(re.fullmatch(one, path) for path in paths)]


def test_a_carried_rpm_asks_for_libraries_and_for_none_of_the_modules_inside() -> None:
    skip_without(CARRIED[0])
    wanted = set(output("rpm", "-qp", "--requires", str(CARRIED[0])).splitlines())
    libraries = {"libvirt.so.0()(64bit)", "libsystemd.so.0()(64bit)", "libudev.so.1()(64bit)"}
    assert libraries | {"/usr/bin/python3.11"} <= wanted
    assert [one for one in wanted if "dist(" in one] == ["(python3.11dist(lxml) or python311-lxml)"]
    provided = output("rpm", "-qp", "--provides", str(CARRIED[0]))
    assert {word for word in MODULES if word in provided} == set(MODULES)
    assert ".so" not in provided


def test_the_source_package_builds_the_same_without_a_network(tmp_path: Path) -> None:
    source = CARRIED[0].with_name(f"vfioapd-{VERSION}-1.src.rpm")
    skip_without(source)
    given = [
        "--with",
        "carried_modules",
        "--define",
        "vfioapd_python 3.11",
        "--define",
        f"_topdir {tmp_path}",
    ]
    output("unshare", "--net", "rpmbuild", "--quiet", "--nodeps", *given, "--rebuild", str(source))
    [built] = tmp_path.glob(f"RPMS/*/{CARRIED[0].name}")
    by_content = {
        r"/usr/lib/\.build-id/.*": "named after what is compiled, with the folder that it was built in"
    }
    assert without(in_rpm(built), by_content) == without(in_rpm(CARRIED[0]), by_content)


@pytest.mark.parametrize(
    ("python", "lxml", "lacking"),
    [
        pytest.param("3.11", "python3.11dist(lxml)", [], id="red-hat"),
        pytest.param("3.11", "python311-lxml", [], id="suse"),
        pytest.param(
            "3.12",
            "python3.12dist(lxml)",
            ["(python3.11dist(lxml) or python311-lxml)", "/usr/bin/python3.11"],
            id="another-python",
        ),
    ],
)
def test_a_carried_rpm_is_refused_where_there_is_another_python_only(
    tmp_path: Path, python: str, lxml: str, lacking: list[str]
) -> None:
    """What is compiled fits one minor version. The host is a database of rpm's with one package."""
    skip_without(CARRIED[0])
    database = host_that_has(tmp_path, others_than_python(CARRIED[0]) | {f"/usr/bin/python{python}", lxml})
    command = ["rpm", *database, "--install", "--test", "--force-debian", str(CARRIED[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert re.findall(r"^\t(.*) is needed by vfioapd-\S+$", done.stderr, re.MULTILINE) == lacking
    assert bool(done.returncode) == bool(lacking), done.stderr


def others_than_python(package: Path) -> set[str]:
    wanted = output("rpm", "-qp", "--requires", str(package)).splitlines()
    return {one for one in wanted if not re.search(r"python|^rpmlib\(|^config\(", one)}


def host_that_has(folder: Path, provided: set[str]) -> list[str]:
    """Options for rpm: a database with one package that provides all of this."""
    lines = ["Name: rest", "Version: 1", "Release: 1", "Summary: Rest", "License: none", "BuildArch: noarch"]
    spec = folder / "rest.spec"
    tail = ["%description", "Rest.", "%files"]
    spec.write_text("\n".join([*lines, *(f"Provides: {one}" for one in sorted(provided)), *tail, ""]))
    output("rpmbuild", "--quiet", "-bb", "--define", f"_topdir {folder}", str(spec))
    database = ["--dbpath", str(folder / "db")]
    built = folder / "RPMS/noarch/rest-1-1.noarch.rpm"
    output("rpm", *database, "--install", "--justdb", "--nodeps", "--force-debian", str(built))
    return database


def test_it_is_installed_as_it_was_packed(host: BootedLab, releases: list[Path]) -> None:
    assert host.run("which", "vfioapctl").stdout == "/usr/bin/vfioapctl\n"
    assert "/usr/sbin/vfioapd" in host.value("vfioapd.service", "ExecStart")
    assert host.run("dpkg", "-s", "vfioapd", check=False).returncode
    assert host.run("rpm", "-qf", HOOK).stdout == f"{releases[0].stem}\n"
    assert host.run("rpm", "--verify", "--nodeps", "vfioapd").stdout == ""


def test_where_the_policy_enables_services_it_boots_with_them(host: BootedLab) -> None:
    """Debian has that policy; `preset` asked for it when there was no systemd yet."""
    assert enabled(host) == ["enabled"] * 4
    assert {host.value(unit, "ActiveState") for unit in UNITS} == {"active"}
    assert host.run("systemctl", "--failed", "--no-legend").stdout == ""
    assert json.loads(host.run("vfioapctl", "status", "--json").stdout)["matrices"] == []


def test_the_daemon_runs_with_the_modules_that_its_rpm_is_for(host: BootedLab, releases: list[Path]) -> None:
    maps = host.run("cat", f"/proc/{host.value('vfioapd.service', 'MainPID')}/maps").stdout
    modules = set(re.findall(r"(/\S+/)(libvirtmod|systemd/_daemon|systemd/_journal)\.", maps))
    folder = PRIVATE if releases[0] == CARRIED[0] else DISTRIBUTIONS
    assert modules == {(folder, name) for name in ("libvirtmod", "systemd/_daemon", "systemd/_journal")}


def test_users_folders_code_and_manual_are_made(host: BootedLab) -> None:
    host.run("getent", "group", "libvirt")
    assert host.run("stat", "-c", "%a %U", "/etc/mdevctl.d/matrix").stdout == "755 root\n"
    host.shell("ls /usr/lib/vfioapd/vfioapd/daemon/__pycache__/main.cpython-311.pyc")
    host.run("man", "--where", "vfioapctl", "vfioapd", "host.toml")


def test_a_guest_gets_its_queues_by_the_hook(host: BootedLab) -> None:
    assert host.run("stat", "-c", "%a", HOOK).stdout == "755\n"
    host.run("vfioap-lab", "guest", "bastion")
    host.shell(f"{DEFINE}; vfioapctl stop bastion; virsh -q start bastion")
    assert state(host) == "in-use"
    assert doctor(host) == []


def test_a_running_guest_loses_and_gets_its_matrix(host: BootedLab) -> None:
    host.run("vfioapctl", "detach", "bastion", "bastion", "--live", "--disrupt")
    assert (state(host), UUID in host.run("virsh", "dumpxml", "bastion").stdout) == ("started", False)
    host.run("vfioapctl", "attach", "bastion", "bastion", "--live")
    assert (state(host), UUID in host.run("virsh", "dumpxml", "bastion").stdout) == ("in-use", True)
    assert doctor(host) == []


def test_an_upgrade_takes_nothing_from_a_running_guest(host: BootedLab, releases: list[Path]) -> None:
    """The old release's hook differs here, and it leaves compiled code of a module that is gone."""
    host.shell(f"echo '# of the old release' >> {HOOK}; install -D /dev/null {ORPHAN}")
    host.shell("echo '# my own' >> /etc/vfioapd/host.toml; vfioapctl apply")
    before = host.run(*GUEST_QUEUES).stdout, host.value("vfioapd.service", "InvocationID")
    sockets = host.value("vfioapd.socket", "InvocationID")
    libvirtd = host.value("libvirtd.service", "InvocationID")
    rpm(host, "--upgrade", releases[1])
    assert host.run("rpm", "-q", "vfioapd").stdout == f"{releases[1].stem}\n"
    assert host.run(*GUEST_QUEUES).stdout == before[0] != ""
    assert host.value("vfioapd.service", "InvocationID") != before[1]
    assert host.value("vfioapd.socket", "InvocationID") == sockets
    assert host.value("libvirtd.service", "InvocationID") == libvirtd
    assert (state(host), host.value("vfioapd-ready.target", "ActiveState")) == ("in-use", "active")


def test_an_upgrade_keeps_the_hosts_file_and_brings_its_own_code(
    host: BootedLab, releases: list[Path]
) -> None:
    host.run("grep", "# my own", "/etc/vfioapd/host.toml")
    assert host.shell("ls /etc/vfioapd").stdout == "host.toml\n"
    assert "of the old release" not in host.run("cat", HOOK).stdout
    host.run("grep", "of the old release", "/etc/libvirt/hooks/vfioapd.rpmold")
    assert "gone" not in host.run("ls", "/usr/lib/vfioapd/vfioapd").stdout
    owners = f"find {PRIVATE} ! -path '*/__pycache__*' -exec rpm -qf {{}} + | sort -u"
    assert host.shell(owners).stdout == f"{releases[1].stem}\n"
    assert doctor(host) == []


def test_guests_start_and_end_as_ever_while_it_is_upgraded(host: BootedLab, releases: list[Path]) -> None:
    """The hook is always there, whole; what it meets is a daemon that is there, ending, gone or starting."""
    host.run("vfioap-lab", "guest", "aw1")
    host.run("vfioapctl", "define", "aw1", "--queues", "02.0011", "--guest", "aw1")
    older, newer = releases
    script = WHILE_UPGRADED.format(rpm=RPM, hook=HOOK, older=older, newer=newer, guests=GUESTS_MEANWHILE)
    starts, failed, looks, missing = host.shell(script, timeout=200).stdout.split()[-4:]
    assert (int(starts) >= 5, failed) == (True, "0")
    assert (int(looks) > 100, missing) == (True, "0")
    assert host.run("rpm", "-q", "vfioapd").stdout == f"{releases[0].stem}\n"
    assert state(host) == "in-use"
    host.run("vfioapctl", "undefine", "aw1", "--disrupt")
    host.run("virsh", "-q", "undefine", "aw1")


# Back and forth, with another hook to be replaced each time.
WHILE_UPGRADED = """
(
  for release in {older} {newer} {older}; do
    echo '# another' >> {hook}
    {rpm} --upgrade --oldpackage $release
  done
) > /root/upgrade.log 2>&1 & upgrade=$!
(
  looks=0 missing=0
  while kill -0 $upgrade 2> /dev/null; do
    looks=$((looks + 1))
    test -x {hook} || missing=$((missing + 1))
  done
  echo $looks $missing > /root/looks
) & looking=$!
{guests}wait $looking
echo $starts $failed $(cat /root/looks)
"""


def test_it_boots_with_its_queues(host: BootedLab) -> None:
    host.reboot()
    assert state(host) == "started"
    assert host.run("systemctl", "is-system-running", check=False).stdout == "running\n"


def test_erased_it_leaves_the_guests_and_their_configuration(host: BootedLab) -> None:
    host.run("virsh", "-q", "start", "bastion")
    queues = host.run(*GUEST_QUEUES).stdout
    kept = "/etc/vfioapd/host.toml"
    rpm(host, "--erase", "vfioapd", says=f"warning: {kept} saved as {kept}.rpmsave\n")
    assert host.run("virsh", "-q", "list", "--name").stdout.strip() == "bastion"
    assert host.run(*GUEST_QUEUES).stdout == queues != ""
    host.run("grep", "bastion", f"{kept}.rpmsave")
    left = host.shell("find /etc /usr /var/lib -xdev -name '*vfioapd*' | sort").stdout.split()
    assert left == ["/etc/libvirt/hooks/vfioapd.rpmold", "/etc/vfioapd", "/var/lib/vfioapd"]


def test_erased_it_is_gone_from_systemd_and_libvirt(host: BootedLab) -> None:
    assert {host.value(unit, "LoadState") for unit in UNITS} == {"not-found"}
    assert {host.value(unit, "ActiveState") for unit in UNITS} == {"inactive"}
    assert host.run("systemctl", "--failed", "--no-legend").stdout == ""
    host.shell("virsh -q destroy bastion; virsh -q start bastion")


def test_where_the_policy_disables_services_installing_starts_nothing(
    host: BootedLab, releases: list[Path]
) -> None:
    """That is the policy of Red Hat and SUSE; Debian's is overruled with theirs."""
    host.shell("mkdir -p /etc/systemd/system-preset")
    host.shell("echo 'disable *' > /etc/systemd/system-preset/00-disable.preset")
    rpm(host, "--install", releases[1])
    assert enabled(host) == ["disabled"] * 4
    assert {host.value(unit, "ActiveState") for unit in UNITS} == {"inactive"}
    refused = host.run("vfioapctl", "status", check=False)
    assert "[not-running]" in refused.stderr


def test_one_command_starts_it_with_what_the_erased_one_had(host: BootedLab) -> None:
    host.shell("mv /etc/vfioapd/host.toml.rpmsave /etc/vfioapd/host.toml")
    host.shell("systemctl enable --now vfioapd.service")
    assert enabled(host) == ["enabled"] * 4
    assert state(host) == "in-use"
    assert doctor(host) == []


def test_an_upgrade_leaves_what_the_admin_has_disabled_alone(host: BootedLab, releases: list[Path]) -> None:
    host.shell("rm /etc/systemd/system-preset/00-disable.preset")
    host.shell("systemctl --quiet disable --now vfioapd.service vfioapd.socket vfioapd-ro.socket")
    rpm(host, "--upgrade", "--oldpackage", releases[0])
    assert enabled(host)[:3] == ["disabled"] * 3
    assert {host.value(unit, "ActiveState") for unit in UNITS[:3]} == {"inactive"}
