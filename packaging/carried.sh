#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes Python modules of what lies in sources/ of a tree that tree.sh made, for one interpreter: below
# carried/, for install.sh. Their licences come into licences/. Nothing is fetched.
#
#   usage: PYTHON=/usr/bin/python3.11 packaging/carried.sh
set -eu
cd "$(dirname "$0")/.."
: "${PYTHON:?}"
if [ ! -d sources ]; then
	echo "packaging/carried.sh: this tree has no sources/; one that has is made with: make rpm CARRIED=3.11" >&2
	exit 1
fi
top=$PWD
mkdir licences

# licence NAME FOLDER
licence() {
	file=$(find "$2" \( -name 'LICENSE*' -o -name COPYING \) | head -n 1)
	cp "${file:?"$1 has no licence"}" "licences/LICENSE.$1"
}

for wheel in sources/*.whl; do
	"$PYTHON" -m zipfile -e "$wheel" carried
	name=$(basename "$wheel" | cut -d - -f 1)
	licence "$name" carried/"$name"-*.dist-info
	rm -r carried/"$name"-*.dist-info
done

for source in sources/*.tar.gz; do
	name=$(basename "${source%-*}")
	mkdir -p "sources/$name"
	tar -xzf "$source" -C "sources/$name" --strip-components 1
	(cd "sources/$name" && "$PYTHON" setup.py -q build --build-lib "$top/carried")
	licence "$name" "sources/$name"
done

# Not used here; some would ask for libraries of their own.
cd carried
rm -rf libvirt_lxc.py libvirt_qemu.py libvirtaio.py libvirtmod_lxc.*.so libvirtmod_qemu.*.so systemd/test

# What does not fit this interpreter or these libraries is to end the build, and not a daemon.
"$PYTHON" -I -B -c 'import sys
sys.path.insert(0, ".")
import libvirt, pyudev, systemd.daemon, systemd.journal, tomlkit'
