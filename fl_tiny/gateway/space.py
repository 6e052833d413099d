# SPDX-License-Identifier: Apache-2.0
"""Room on the ledger's disk: what is new waits while it is short, so that what has come can still be finished."""

from __future__ import annotations

from pathlib import Path

from fl_tiny.errors import EnvironmentFault
from fl_tiny.statedir import free_bytes

RESERVE_BYTES = 16 << 20  # for updates that have come whole, and for publishing


def check_room(path: Path) -> None:
    """Raises: EnvironmentFault while the disk of ``path`` has only the reserve left."""
    free = free_bytes(path)
    if free < RESERVE_BYTES:
        raise EnvironmentFault(
            f"{free >> 20} MiB are free at {path}, {RESERVE_BYTES >> 20} stay in reserve", "make room there"
        )
