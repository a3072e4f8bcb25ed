# SPDX-License-Identifier: Apache-2.0
"""vfioapd: Crypto Express queues for KVM guests on IBM Z and LinuxONE."""

# A constant, because importlib.metadata alone costs the command line 30 to 45 ms.
VERSION = "0.1.0"
