# SPDX-License-Identifier: Apache-2.0
"""Room on the ledger's disk: what is new waits while it is short, so that what has come can still be finished."""

from __future__ import annotations

import time
from pathlib import Path

from fl_tiny.errors import EnvironmentFault
from fl_tiny.statedir import free_bytes

RESERVE_BYTES = 16 << 20  # for updates that have come whole, and for publishing
LOOK_S = 1.0  # a look at the file system serves as long


class Space:
    """How much room the disk of ``path`` has, looked at once a second at most."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked_at, self._free = -LOOK_S, 0

    def check(self) -> None:
        """Raises: EnvironmentFault while only the reserve is left."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at, self._free = now, free_bytes(self._path)
        if self._free < RESERVE_BYTES:
            raise EnvironmentFault(
                f"{self._free >> 20} MiB are free at {self._path}, {RESERVE_BYTES >> 20} stay in reserve",
                "make room there",
            )
