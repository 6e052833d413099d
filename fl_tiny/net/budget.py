# SPDX-License-Identifier: Apache-2.0
"""How many requests one identity may make of a server, and how often it is told that these were too many; no clock."""

from __future__ import annotations

from enum import Enum, auto

from fl_tiny.net.buckets import Buckets

TOLD_PER_S, TOLD = 10.0, 64  # answers to what is beyond the budget; our own clients have at most 16 requests in flight


class Verdict(Enum):
    """What becomes of a message: served, answered with 5.03, or dropped as if the network had lost it."""

    SERVE = auto()
    PUT_OFF = auto()
    DROP = auto()


class Budget:
    """Requests of each identity; ``now`` is in seconds."""

    def __init__(self, per_s: float, most: float) -> None:
        self._requests = Buckets(per_s, most)
        self._told = Buckets(TOLD_PER_S, TOLD)
        self._over: set[str] = set()

    def allow(self, most: float) -> None:
        """Let an identity make so many requests at once."""
        self._requests.most = most

    def judge(self, identity: str, now: float) -> Verdict:
        """One more message. Who has spent its budget gets nothing until a second's worth is there again."""
        leave = self._requests.per_s if identity in self._over else 0.0
        if not self._requests.take(identity, now, leave=min(leave, self._requests.most - 1)):
            self._over.discard(identity)
            return Verdict.SERVE
        self._over.add(identity)
        return Verdict.DROP if self._told.take(identity, now) else Verdict.PUT_OFF

    def is_over(self, identity: str) -> bool:
        """Has an identity spent its budget?"""
        return identity in self._over

    def forget(self, identity: str) -> None:
        """The identity has no session any more; what it spent is remembered."""
        self._over.discard(identity)
