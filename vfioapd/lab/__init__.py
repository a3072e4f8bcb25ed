# SPDX-License-Identifier: Apache-2.0
"""A whole KVM host on IBM Z on any Debian machine: emulated AP bus, real udevd, libvirtd, mdevctl and QEMU.

Everything lives in private namespaces and ends with them; nothing outside is changed. The parts:

* `main` command line, `verbs` what it does; `harness` the same for programs
* `requirements` what the machine must have; `namespaces` entering and leaving
* `world` the private file system; `init` PID 1 of the lab with `services` and `reboot`
* `guest` test guests; `shim` what stands between libvirt and QEMU; `peers` IBM's own tools
"""
