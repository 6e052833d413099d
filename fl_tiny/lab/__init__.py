# SPDX-License-Identifier: Apache-2.0
"""Device and gateway together on one machine: demo, simulation, report."""
