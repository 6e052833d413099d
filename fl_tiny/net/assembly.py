# SPDX-License-Identifier: Apache-2.0
"""Request bodies that come in blocks (Block1), put together within bounds; no socket and no clock.

Our own devices never send them: this is for other CoAP stacks. aiocoap's assembly keeps every half-open body and turns
a gap into 5.00.  Source: RFC 7959 section 2.5.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

BODIES = 16  # being put together at a time, in all
IDLE_S = 30.0  # a body that has not grown for so long makes room
CONTINUE, INCOMPLETE, TOO_LARGE, BUSY = "2.31", "4.08", "4.13", "5.03"


@dataclass(slots=True)
class _Body:
    target: tuple[str, ...]
    data: bytearray
    grown: float


class Assembly:
    """Bodies under way, one a session."""

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
        """The whole body with its last block; the code to answer with before it.

        block: number, more follow, size in bytes.   target: method and path; another one begins anew.
        A block that came already is taken again, if it says the same.
        """
        number, more, size = block
        at = number * size
        if at + len(payload) > limit:
            self._bodies.pop(who, None)
            return TOO_LARGE
        if number == 0:
            self._bodies.pop(who, None)
            if not self._has_room(now):
                return BUSY
            self._bodies[who] = _Body(target, bytearray(), now)
        body = self._bodies.get(who)
        if body is None or body.target != target or (more and len(payload) != size):
            return INCOMPLETE
        if at != len(body.data):
            repeated = body.data[at : at + len(payload)] == payload and at + len(payload) <= len(body.data)
            return CONTINUE if repeated and more else INCOMPLETE
        body.data += payload
        body.grown = now
        if more:
            return CONTINUE
        del self._bodies[who]
        return bytes(body.data)

    def drop(self, who: Hashable) -> None:
        """Forget a session's body."""
        self._bodies.pop(who, None)

    def _has_room(self, now: float) -> bool:
        for who in [who for who, body in self._bodies.items() if now >= body.grown + IDLE_S]:
            del self._bodies[who]
        return len(self._bodies) < BODIES
