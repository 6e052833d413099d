# SPDX-License-Identifier: Apache-2.0
"""A model as numbers: pure functions over bytes and arrays."""
