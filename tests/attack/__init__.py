# SPDX-License-Identifier: Apache-2.0
"""Attacks on a real gateway and real devices over loopback; each has a control that shows that it can succeed."""
