# SPDX-License-Identifier: Apache-2.0
"""Bodies that arrive by ordinary Block1: put together by authenticated identity, bounded; no socket and no clock.

aiocoap's own assembly is keyed by address, superlinear and unbounded. Source: RFC 7959 sections 2.3 to 2.5 and 2.9.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BODY_BYTES = 320 << 10
BODIES = 16
IDLE_S = 120.0
CONTINUE, INCOMPLETE, TOO_LARGE, BUSY = "2.31", "4.08", "4.13", "5.03"


@dataclass
class _Body:
    path: tuple[str, ...]
    heard: float
    blocks: dict[int, bytes] = field(default_factory=dict)  # by the byte they begin at
    end: int | None = None  # bytes, once the last block came


class Assembler:
    """One body an identity; blocks come in any order and repeated, and block 0 with other bytes starts anew."""

    def __init__(self) -> None:
        self._bodies: dict[str, _Body] = {}

    def take(
        self, identity: str, path: tuple[str, ...], block: tuple[int, bool, int], payload: bytes, now: float
    ) -> str | bytes:
        """The whole body, or the code to answer the block with. ``block``: number, whether more follow, size in bytes.

        A gap is found when the last block is there, and after it each block that leaves one: 4.08 says so.
        """
        number, more, size = block
        at = number * size
        if at + len(payload) > BODY_BYTES:
            self._bodies.pop(identity, None)
            return TOO_LARGE
        if (more and len(payload) != size) or len(payload) > size:
            return "4.00"
        self._expire(now)
        body = self._bodies.get(identity)
        other = body is not None and (body.path != path or (at == 0 and body.blocks.get(0, payload) != payload))
        if body is None or other:
            if body is None and len(self._bodies) >= BODIES:
                return BUSY
            body = self._bodies[identity] = _Body(path, now)
        body.heard = now
        body.blocks[at] = payload
        if not more:
            body.end = at + len(payload)
        if body.end is None:
            return CONTINUE
        whole = _joined(body.blocks, body.end)
        if whole is None:
            return INCOMPLETE if not more else CONTINUE
        del self._bodies[identity]
        return whole

    def _expire(self, now: float) -> None:
        for identity in [i for i, body in self._bodies.items() if now >= body.heard + IDLE_S]:
            del self._bodies[identity]


def _joined(blocks: dict[int, bytes], end: int) -> bytes | None:
    """The body of ``end`` bytes, or None when it has a gap."""
    body = bytearray()
    while len(body) < end:
        piece = blocks.get(len(body))
        if not piece:
            return None
        body += piece
    return bytes(body) if len(body) == end else None
