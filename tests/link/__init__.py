# SPDX-License-Identifier: Apache-2.0
"""Faults that are really injected into gateways and devices; scripts/test-link runs them, scripts/test a short form."""
