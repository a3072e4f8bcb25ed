# SPDX-License-Identifier: Apache-2.0
"""What is persisted: host.toml, its revisions, the mirrored mdevctl definitions."""
