# SPDX-License-Identifier: Apache-2.0
"""Runs a plan: journal first, act, verify; undo in reverse when a step fails."""
