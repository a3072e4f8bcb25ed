#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Lays out an installed vfioapd below DESTDIR, for the packages of all distributions.
#
#   usage: DESTDIR=FOLDER [UNITDIR=/usr/lib/systemd/system] [PYTHON=/usr/bin/python3] packaging/install.sh
#
# Python code goes to a private folder: it is no library for others, and what a distribution lacks is
# carried there without being in anybody's way. Nothing is fetched.
set -eu
cd "$(dirname "$0")/.."
: "${DESTDIR:?}"
UNITDIR=${UNITDIR:-/usr/lib/systemd/system}
# The interpreter of all that is installed: 3.11 or newer, with the modules of libvirt, lxml, pyudev, systemd.
PYTHON=${PYTHON:-/usr/bin/python3}
PRIVATE=/usr/lib/vfioapd

# put MODE SOURCE TARGET-FOLDER...
put() {
	mode=$1 source=$2 folder=$DESTDIR$3
	mkdir -p "$folder"
	install -p -m "$mode" "$source" "$folder/"
}

# Python files, with the data that lies beside them. rpm asks for the libraries of what can be executed.
put_tree() {
	(cd "$1" && find . -type f ! -path '*/__pycache__/*') | while read -r file; do
		case $file in *.so) mode=0755 ;; *) mode=0644 ;; esac
		put $mode "$1/$file" "$2/$(dirname "$file")"
	done
}

# A program of one line. -I: nothing of the caller's environment or folder decides what is imported.
program() {
	path=$DESTDIR$1 module=$2
	mkdir -p "$(dirname "$path")"
	cat > "$path" <<-PROGRAM
		#!$PYTHON -I
		# SPDX-License-Identifier: Apache-2.0
		import sys

		sys.path.insert(0, "$PRIVATE")
		from $module import main

		sys.exit(main())
	PROGRAM
	chmod 0755 "$path"
}

put_tree vfioapd $PRIVATE/vfioapd
put_tree carried $PRIVATE
program "${SBINDIR:-/usr/sbin}/vfioapd" vfioapd.daemon.start
program /usr/bin/vfioapctl vfioapd.cli.main
program /usr/bin/vfioap-lab vfioapd.lab.main

for template in xml-templates/*.xml; do put 0644 "$template" /usr/share/vfioapd/xml-templates; done
put 0644 etc/host.toml /etc/vfioapd
# libvirt runs whatever is executable in its folder of hooks, so a package must not unpack into it: the name
# that dpkg or rpm gives a file until it is whole would be run, and be gone. Their scripts put it there by one
# rename; vfioapctl doctor compares it with this one, too.
put 0755 etc/libvirt/hooks/qemu.d/vfioapd /usr/share/vfioapd/hooks
sed -i "1s:/usr/bin/python3 :$PYTHON :" "$DESTDIR/usr/share/vfioapd/hooks/vfioapd"

for unit in units/*.service units/*.socket units/*.target; do put 0644 "$unit" "$UNITDIR"; done
for kind in modules-load.d sysusers.d tmpfiles.d; do put 0644 units/$kind/vfioapd.conf /usr/lib/$kind; done

manual=$(mktemp -d)
trap 'rm -rf "$manual"' EXIT
PYTHONDONTWRITEBYTECODE=1 "$PYTHON" docs/man/generate.py "$manual"
for page in "$manual"/man*/*; do put 0644 "$page" "/usr/share/man/$(basename "$(dirname "$page")")"; done
put_tree "$manual/completions/bash" /usr/share/bash-completion/completions
put_tree "$manual/completions/zsh" "${ZSHDIR:-/usr/share/zsh/vendor-completions}"
put_tree "$manual/completions/fish" /usr/share/fish/vendor_completions.d
