# SPDX-License-Identifier: Apache-2.0
"""What the gateway knows of a device that is there, by what it said last."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Presence:
    """What a device's last heartbeat said. seen, since: our monotonic clock."""

    seen: float
    since: float
    samples: int = 0
    head: int = 0
    silent: bool = False  # it let a round wait; it counts again when it speaks
    lacks: int = 0  # what its training waits for

    def row(self, did: bytes, shift: float, boot: str) -> tuple[bytes, int, int, float, str, int]:
        """As the ledger keeps it. shift: from our clock to the machine's since it booted as ``boot``."""
        return did, self.samples, self.head, self.seen + shift, boot, self.lacks
