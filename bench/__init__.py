# SPDX-License-Identifier: Apache-2.0
"""Measurements. ``python -m bench`` takes them all, prints them and writes bench/RESULTS.md."""
