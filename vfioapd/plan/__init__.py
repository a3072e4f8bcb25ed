# SPDX-License-Identifier: Apache-2.0
"""Pure planning: snapshot and desired definitions in, ordered steps or a refusal out."""
