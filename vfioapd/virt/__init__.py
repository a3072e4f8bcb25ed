# SPDX-License-Identifier: Apache-2.0
"""libvirt and its XML. The only room that imports libvirt and lxml."""
