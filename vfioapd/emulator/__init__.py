# SPDX-License-Identifier: Apache-2.0
"""The emulated kernel: the rules of the AP bus, vfio_ap and mdev as seen at the sysfs surface.

Imports nothing else of vfioapd, so that a mistake in the product cannot cancel itself out here.
`kernel` is the way in; `sysfs` and `fuse` are its two faces.
"""
