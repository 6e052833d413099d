# SPDX-License-Identifier: Apache-2.0
"""Hostile bytes for everything that reads bytes of strangers: ``scripts/fuzz``; in short by pytest."""
