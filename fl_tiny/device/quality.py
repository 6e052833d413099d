# SPDX-License-Identifier: Apache-2.0
"""How good a device's way to its gateway is, by how long its requests took; no clock of its own."""

from __future__ import annotations

from collections import deque

LATELY = 64  # requests that are judged by
LEAST = 8  # fewer say nothing
SLOW_S = 1.5  # the first retransmission comes after 2 s (RFC 7252), 0.3 s with lan_timing
LOSSY = 0.05  # share of slow requests (guess): about 2.5 % of datagrams lost each way, computed
FAR_S = 0.3  # median time of a request (guess): a radio, not a LAN


class Quality:
    """Times of the last requests."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=LATELY)

    def took(self, seconds: float) -> None:
        """A request was answered after this time, retransmissions included."""
        self._seconds.append(seconds)

    @property
    def is_bad(self) -> bool:
        """Is a smaller update worth more than a finer one?"""
        if len(self._seconds) < LEAST:
            return False
        times = sorted(self._seconds)
        slow = sum(each > SLOW_S for each in times)
        return slow > LOSSY * len(times) or times[len(times) // 2] > FAR_S
