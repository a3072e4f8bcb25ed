#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes a source tree that a package is built from, without a network: this checkout, and asyncvarlink,
# which no stable distribution has yet, out of the virtual environment.
#
#   usage: packaging/tree.sh FOLDER SITE-PACKAGES
set -eu
target=$(realpath -m "$1") site=$(realpath "$2")
cd "$(dirname "$0")/.."
rm -rf "$target"
mkdir -p "$target/carried"
cp -pR LICENSE README.md NEWS.md docs etc packaging units vfioapd xml-templates "$target/"
cp -pR "$site/asyncvarlink" "$target/carried/"
cp -p "$site"/asyncvarlink-*.dist-info/licenses/LICENSE "$target/carried/asyncvarlink/LICENSE.LGPL-2"
find "$target" -name __pycache__ -prune -exec rm -rf {} +
