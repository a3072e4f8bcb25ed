#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a source tree that a package is built from, without a network: this checkout, and asyncvarlink,
# which no stable distribution has yet, out of the virtual environment. With SOURCES, a folder of what
# rpm/carried.txt lists, for carried.sh to make modules of.
#
#   usage: packaging/tree.sh FOLDER SITE-PACKAGES [SOURCES]
set -eu
target=$(realpath -m "$1") site=$(realpath "$2") sources=${3:+$(realpath "$3")}
cd "$(dirname "$0")/.."
rm -rf "$target"
mkdir -p "$target/carried"
cp -pR LICENSE README.md NEWS.md docs etc packaging units vfioapd xml-templates "$target/"
cp -pR "$site/asyncvarlink" "$target/carried/"
cp -p "$site"/asyncvarlink-*.dist-info/licenses/LICENSE "$target/carried/asyncvarlink/LICENSE.LGPL-2"
if [ -n "$sources" ]; then
	mkdir "$target/sources"
	cp -p "$sources"/*.tar.gz "$sources"/*.whl "$target/sources/"
fi
find "$target" -name __pycache__ -prune -exec rm -rf {} +
