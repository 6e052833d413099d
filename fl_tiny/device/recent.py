# SPDX-License-Identifier: Apache-2.0
"""Features of samples predicted lately, by their ids: for as long as somebody may say what was right."""

from __future__ import annotations

import os
from dataclasses import dataclass

ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a prediction was made of. meant: whose features they are.   runtime: what computed them."""

    features: bytes
    meant: bytes
    runtime: str


class Recent:
    """At most ``limit`` of them, each for ``seconds``; in memory alone: a restart forgets them."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit, self._seconds = limit, seconds
        self._found: dict[bytes, tuple[float, Predicted]] = {}  # in the order of their coming

    def __len__(self) -> int:
        return len(self._found)

    def put(self, predicted: Predicted, now: float) -> bytes:
        """Keep it, and return its id. What is too old or too much goes."""
        name = os.urandom(ID_BYTES)
        self._found[name] = now, predicted
        self._expire(now)
        while len(self._found) > self._limit:
            del self._found[next(iter(self._found))]
        return name

    def get(self, name: bytes, now: float) -> Predicted | None:
        """What was predicted under this id; None when it was never, is corrected, or gone."""
        self._expire(now)
        found = self._found.get(name)
        return found[1] if found else None

    def drop(self, name: bytes) -> None:
        """It is corrected: a second word on it would count it twice."""
        self._found.pop(name, None)

    def _expire(self, now: float) -> None:
        while self._found and (first := next(iter(self._found.items())))[1][0] + self._seconds < now:
            del self._found[first[0]]
