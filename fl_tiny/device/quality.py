# SPDX-License-Identifier: Apache-2.0
"""How good a device's way to its gateway is, by how its last requests went; no clock of its own."""

from __future__ import annotations

from collections import deque

LATELY = 64  # requests that are judged by
LEAST = 8  # fewer say nothing
LOSSY = 0.05  # share of requests that were sent again (guess): about 2.5 % of datagrams lost each way, computed
FAR_S = 0.3  # median time of a request (guess): a radio, not a LAN


class Quality:
    """How the last requests went."""

    def __init__(self) -> None:
        self._last: deque[tuple[float, bool]] = deque(maxlen=LATELY)

    def took(self, seconds: float, again: bool) -> None:
        """A request took so long, retransmissions included. again: there were some."""
        self._last.append((seconds, again))

    @property
    def is_bad(self) -> bool:
        """Is a smaller update worth more than a finer one?"""
        if len(self._last) < LEAST:
            return False
        times = sorted(seconds for seconds, _ in self._last)
        return sum(again for _, again in self._last) > LOSSY * len(times) or times[len(times) // 2] > FAR_S
