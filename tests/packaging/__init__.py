# SPDX-License-Identifier: Apache-2.0
"""Packages, built and tried by real tools; run by scripts/test-packaging."""
