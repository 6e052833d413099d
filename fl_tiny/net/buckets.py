# SPDX-License-Identifier: Apache-2.0
"""Token buckets by name, bounded in number: who may have how much of something in how long a time; no clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

MOST = 4096  # names that are remembered; one that has not taken anything for long is full again, as if it were new


class Buckets:
    """A bucket a name, each of ``most`` tokens that come back at ``per_s`` a second; ``now`` is in seconds."""

    def __init__(self, per_s: float, most: float, names: int = MOST) -> None:
        self.per_s, self.most = per_s, most
        self._names = names
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # tokens, when; last used last

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, name: Hashable, now: float, cost: float = 1.0, leave: float = 0.0) -> float:
        """Take ``cost`` tokens if so many and ``leave`` are there: 0.0; else the seconds until they are.

        A negative ``cost`` gives tokens back.
        """
        tokens, when = self._levels.pop(name, (self.most, now))
        tokens = min(self.most, tokens + max(0.0, now - when) * self.per_s)
        lacking = cost + leave - tokens
        self._levels[name] = (min(self.most, tokens - cost) if lacking <= 0 else tokens, now)
        if len(self._levels) > self._names:
            self._levels.popitem(last=False)
        return max(0.0, lacking / self.per_s)
