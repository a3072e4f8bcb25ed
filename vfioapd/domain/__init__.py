# SPDX-License-Identifier: Apache-2.0
"""Pure values: numbers, queues, masks, matrices, definitions, snapshots, problems."""
