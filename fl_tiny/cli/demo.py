# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny demo``: a whole fleet on this machine."""

from __future__ import annotations

from typing import Any


def add(parent: Any) -> None:
    """Declare the command."""
