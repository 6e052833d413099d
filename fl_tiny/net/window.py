# SPDX-License-Identifier: Apache-2.0
"""A send window of non-confirmable requests: which piece of a body is due when; no socket and no clock.

One piece is one request. It is answered, or lost when its time-out ends; a late answer still counts. The rules are
those of docs/protocol.md, "Window". Source: RFC 7252 sections 4.7 and 4.8, RFC 6298.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

UNIT = 128  # bytes; a piece is 1, 2, 4 or 8 units long, begins at a multiple of its length, or is the body's last
LARGEST = 1024
FIRST, LEAST, MOST = 4, 2, 16  # requests in flight
TIMEOUT_S, LAST_TIMEOUT_S = 0.5, 2.0  # the least, and the most that doubling makes of it
RTTS = 3  # a time-out is so many smoothed round trips
STARVED = 2  # time-outs in a row that halve the piece
BARRED = 2  # how often a size must have starved, while a smaller one passed, to be left alone
BARRED_S = 600.0
LATE = 64  # lost requests whose answers are still taken

_LACKING, _AWAY, _DONE = 0, 1, 2


class Way:
    """What is known of the way to a peer: round trip, and the piece that passes. It outlives transfers and sessions."""

    def __init__(self, first_timeout_s: float) -> None:
        """``first_timeout_s`` holds until a round trip was measured."""
        self.size = LARGEST
        self._first_timeout_s = first_timeout_s
        self._rtt_s: float | None = None
        self._starved: dict[int, tuple[int, float]] = {}  # size -> how often since one passed, and when last

    @property
    def rtt_s(self) -> float:
        """The smoothed round trip, 0 while there is none."""
        return self._rtt_s or 0.0

    @property
    def timeout_s(self) -> float:
        """How long to wait for an answer."""
        return self._first_timeout_s if self._rtt_s is None else max(TIMEOUT_S, RTTS * self._rtt_s)

    def measured(self, rtt_s: float) -> None:
        """One request took so long to its answer."""
        self._rtt_s = rtt_s if self._rtt_s is None else self._rtt_s + (rtt_s - self._rtt_s) / 8

    def passed(self, size: int, now: float) -> None:
        """A piece of ``size`` bytes was answered; the next larger one gets another try, unless it is barred."""
        self._starved = {s: v for s, v in self._starved.items() if s > size}
        times, when = self._starved.get(2 * size, (0, now))
        if size == self.size < LARGEST and (times < BARRED or now >= when + BARRED_S):
            self.size = 2 * size

    def starved(self, now: float) -> None:
        """Nothing came back for a while: try smaller pieces, there may be a black hole for large datagrams."""
        self._starved[self.size] = self._starved.get(self.size, (0, now))[0] + 1, now
        self.size = max(UNIT, self.size // 2)


@dataclass(frozen=True, slots=True)
class Piece:
    """One request in flight. ``size`` is what an aligned piece here has, ``length`` what is left of it at the end."""

    number: int  # of the request
    at: int  # bytes
    size: int
    length: int
    sent: float
    deadline: float

    @property
    def units(self) -> range:
        """The units it covers."""
        return range(self.at // UNIT, -(-(self.at + self.length) // UNIT))


class Window:
    """One body on its way, in pieces."""

    def __init__(self, way: Way, size: int, held: bytes = b"") -> None:
        """``held``: what has arrived already; bit i of byte i // 8 is unit i, lowest first. Missing bits are 0."""
        self._way, self._size = way, size
        self._units = bytearray(-(-size // UNIT))
        for unit in range(min(len(self._units), 8 * len(held))):
            self._units[unit] = _DONE if held[unit // 8] >> unit % 8 & 1 else _LACKING
        self._left = len(self._units) - self._units.count(_DONE)
        self._away: dict[int, Piece] = {}
        self._late: OrderedDict[int, Piece] = OrderedDict()
        self._most, self._clean = FIRST, 0
        self._sent = 0
        self._next_at = self._heard = float("-inf")
        self._halved_at = self._struck_at = float("-inf")
        self._strikes = 0

    @property
    def done(self) -> bool:
        """Whether every unit has arrived."""
        return self._left == 0

    @property
    def most(self) -> int:
        """How many requests may be in flight now."""
        return self._most

    @property
    def left(self) -> int:
        """Units that have not arrived."""
        return self._left

    def send(self, now: float) -> Piece | None:
        """The piece to send at once, if one is due; call again until there is none."""
        if len(self._away) >= self._most or now < self._next_at:
            return None
        first = self._units.find(_LACKING)
        if first < 0:
            return None
        at, size = self._aligned(first)
        timeout_s = self._way.timeout_s
        waited_s = max(timeout_s, min(timeout_s * 2**self._strikes, LAST_TIMEOUT_S))
        piece = Piece(self._sent, at, size, min(size, self._size - at), now, now + waited_s)
        self._sent += 1
        self._away[piece.number] = piece
        self._mark(piece, _LACKING, _AWAY)
        self._next_at = now + self._way.rtt_s / self._most  # paced: a window is spread over its round trip
        return piece

    def answered(self, number: int, now: float) -> None:
        """The request was answered, in time or late."""
        piece = self._away.pop(number, None)
        in_time = piece is not None
        piece = piece or self._late.pop(number, None)
        if piece is None:
            return
        self._way.measured(now - piece.sent)
        if piece.length == piece.size:
            self._way.passed(piece.size, now)
        self._heard, self._strikes = now, 0
        self._left -= sum(self._units[unit] != _DONE for unit in piece.units)
        for unit in piece.units:
            self._units[unit] = _DONE
        self._clean += in_time
        if self._clean >= self._most:
            self._most, self._clean = min(MOST, self._most + 1), 0

    def put_off(self, number: int, now: float, wait_s: float) -> None:
        """The request was answered by a word that it may come again in ``wait_s``; until then nothing is sent."""
        piece = self._away.pop(number, None)
        if piece is not None:
            self._mark(piece, _AWAY, _LACKING)
        elif self._late.pop(number, None) is None:
            return
        self._heard, self._strikes = now, 0
        self._most, self._clean = LEAST, 0
        self._next_at = max(self._next_at, now + wait_s)

    def session_ended(self) -> None:
        """What is in flight will not be answered any more."""
        for piece in self._away.values():
            self._mark(piece, _AWAY, _LACKING)
        self._away.clear()
        self._late.clear()

    def tick(self, now: float) -> None:
        """Give up requests whose time is over."""
        for piece in [p for p in self._away.values() if now >= p.deadline]:
            del self._away[piece.number]
            self._late[piece.number] = piece
            if len(self._late) > LATE:
                self._late.popitem(last=False)
            self._mark(piece, _AWAY, _LACKING)
            self._lost(piece, now)

    def wake(self, now: float) -> float:
        """Call ``tick`` and ``send`` again no later than this."""
        times = [piece.deadline for piece in self._away.values()]
        if len(self._away) < self._most and self._units.find(_LACKING) >= 0:
            times.append(max(now, self._next_at))
        return min(times, default=now)

    def _lost(self, piece: Piece, now: float) -> None:
        self._clean = 0
        if piece.sent >= self._halved_at:  # once for all that was in flight together
            self._most, self._halved_at = max(LEAST, self._most // 2), now
        if self._heard < piece.sent >= self._struck_at:
            self._strikes, self._struck_at = self._strikes + 1, now
            if self._strikes % STARVED == 0:
                self._way.starved(now)

    def _aligned(self, first: int) -> tuple[int, int]:
        """Where the largest piece begins that holds the unit ``first`` and lacks as a whole, and its size."""
        size = self._way.size
        while size > UNIT:
            at = first * UNIT // size * size
            if self._units.count(_LACKING, at // UNIT, (at + size) // UNIT) == len(
                self._units[at // UNIT : (at + size) // UNIT]
            ):
                return at, size
            size //= 2
        return first * UNIT, UNIT

    def _mark(self, piece: Piece, old: int, new: int) -> None:
        for unit in piece.units:
            if self._units[unit] == old:
                self._units[unit] = new
