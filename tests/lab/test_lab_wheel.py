# SPDX-License-Identifier: Apache-2.0
"""The wheel, for where there is no package: all that runs is in it, and runs out of an environment alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import asyncvarlink
import pytest
from labs import START_DAEMON

CHECKOUT = Path(__file__).parents[2]
SCRIPT = f"""
    {START_DAEMON}
    vfioapctl define bastion --queues 01.0011,05.0011
    vfioapctl xml hostdev bastion
    virsh nodedev-list
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed. Its dependencies are those of the tests, by a path; the checkout is not
    among them."""
    wheels = tmp_path_factory.mktemp("wheels")
    shutil.rmtree(CHECKOUT / "build", ignore_errors=True)  # what setuptools left there would be shipped, too
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, CHECKOUT)
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, system_site_packages=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(f"{Path(asyncvarlink.__file__).parents[1]}\n")
    [wheel] = wheels.iterdir()
    pip("--python", folder, "install", "--no-deps", "--no-index", wheel)
    return folder


def pip(*arguments: object) -> None:
    """Prints what it does where that fails."""
    command = [sys.executable, "-m", "pip", "-q", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_wheel_runs_the_lab_the_daemon_and_the_commands(environment: Path) -> None:
    programs = environment / "bin"
    played = subprocess.run(
        [programs / "vfioap-lab", "run", "rdbkvm4", "--", "sh", "-ec", f"PATH={programs}:$PATH{SCRIPT}"],
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert played.returncode == 0, played.stderr
    assert "model='vfio-ap'" in played.stdout
    assert "mdev_" in played.stdout


def test_a_wheel_has_what_an_admin_puts_in_place(environment: Path) -> None:
    share = environment / "share/vfioapd"
    shipped = {path.name: path.read_text() for path in share.glob("*/*")}
    originals = [CHECKOUT / "etc/libvirt/hooks/qemu.d/vfioapd", *CHECKOUT.glob("units/vfioapd*.*")]
    assert len(originals) > 4
    for original in originals:
        assert shipped[original.name] == original.read_text()
