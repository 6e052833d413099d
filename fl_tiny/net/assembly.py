# SPDX-License-Identifier: Apache-2.0
"""Request bodies that come in blocks (Block1), put together by authenticated identity, bounded; no socket and no clock.

Our own devices never send them: this is for other CoAP stacks. aiocoap's assembly keeps every half-open body and turns
a gap into 5.00.  Source: RFC 7959 sections 2.3, 2.5 and 2.9.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

BODIES = 16  # being put together at a time, in all
IDLE_S = 120.0  # a body that no block came for in so long makes room; RFC 7252: a request is sent again for 45 s
CONTINUE, INCOMPLETE, TOO_LARGE, BUSY = "2.31", "4.08", "4.13", "5.03"


@dataclass(slots=True)
class _Body:
    target: tuple[str, ...]
    size: int  # bytes of a block
    heard: float
    data: bytearray = field(default_factory=bytearray)
    came: set[int] = field(default_factory=set)  # blocks, by number
    last: int | None = None  # the number of the last block, once it has come

    def fits(self, target: tuple[str, ...], block: tuple[int, bool, int], payload: bytes) -> bool:
        """May this be a block of the same body?"""
        number, more, size = block
        if (target, size) != (self.target, self.size):
            return False
        if number in self.came:
            said = self.data[number * size : (number + 1) * size] if more else self.data[number * size :]
            return more == (number != self.last) and said == payload
        return (more or number > max(self.came)) and (self.last is None or (more and number < self.last))

    def put(self, block: tuple[int, bool, int], payload: bytes) -> None:
        number, more, size = block
        at = number * size
        self.data.extend(bytes(max(0, at + len(payload) - len(self.data))))
        self.data[at : at + len(payload)] = payload
        self.came.add(number)
        if not more:
            self.last = number


class Assembly:
    """Bodies under way, one an identity."""

    def __init__(self) -> None:
        self._bodies: dict[Hashable, _Body] = {}

    def __len__(self) -> int:
        return len(self._bodies)

    def take(
        self,
        who: Hashable,
        target: tuple[str, ...],
        block: tuple[int, bool, int],
        payload: bytes,
        limit: int,
        now: float,
    ) -> bytes | str:
        """The whole body with the last of its blocks to come; the code to answer with before it.

        block: number, more follow, size in bytes.   target: method and path.
        Blocks may come in any order and again. One that cannot be of the same body begins another.
        """
        number, more, size = block
        if number * size + len(payload) > limit:
            self._bodies.pop(who, None)
            return TOO_LARGE
        if len(payload) > size or (more and len(payload) != size):
            return INCOMPLETE
        body = self._bodies.get(who)
        if body is None or not body.fits(target, block, payload):
            self._bodies.pop(who, None)
            if not self._has_room(now):
                return BUSY
            body = self._bodies[who] = _Body(target, size, now)
        body.heard = now
        body.put(block, payload)
        if body.last is None or len(body.came) <= body.last:
            return CONTINUE if more else INCOMPLETE
        del self._bodies[who]
        return bytes(body.data)

    def _has_room(self, now: float) -> bool:
        for who in [who for who, body in self._bodies.items() if now >= body.heard + IDLE_S]:
            del self._bodies[who]
        return len(self._bodies) < BODIES
