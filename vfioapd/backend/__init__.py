# SPDX-License-Identifier: Apache-2.0
"""The kernel's AP bus and vfio_ap through one seam: attribute I/O relative to /sys."""
