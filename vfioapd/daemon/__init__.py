# SPDX-License-Identifier: Apache-2.0
"""The long-running process: sockets, one worker for changes, life cycle."""
