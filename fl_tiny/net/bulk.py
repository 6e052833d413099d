# SPDX-License-Identifier: Apache-2.0
"""A body's pieces through a window, over one session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fl_tiny.errors import RemoteError
from fl_tiny.net.messages import Response
from fl_tiny.net.patience import Patience
from fl_tiny.net.transport import CoapError
from fl_tiny.net.window import UNIT, Piece, Window

Asked = tuple["asyncio.Future[Any]", Callable[[], None]]  # the answer to come, and a call that gives up waiting


class Changed(Exception):
    """Blocks of two states of a resource came."""


class Incoming:
    """A body that comes in blocks, in any order; what has come is kept until all of it has."""

    def __init__(self, path: tuple[str, ...], size: int) -> None:
        self.path, self.size = path, size
        self.data = bytearray(size)
        self._etag: bytes | None = None
        self._held = bytearray(-(-size // UNIT // 8) + 1)

    @property
    def held(self) -> bytes:
        """A bit for each unit that has come, as ``Window`` takes it."""
        return bytes(self._held)

    def took(self, piece: Piece, answer: Response) -> None:
        """The answer to the request for a piece. Raises: RemoteError, when it is no such block; Changed."""
        name = f"GET /{'/'.join(self.path)}"
        if answer.code != "2.05":
            raise RemoteError(f"{name} was answered {answer.code}", "is the gateway of the same version?")
        block = answer.block2 or (0, False, piece.size)
        if self._etag is not None and answer.etag != self._etag:
            raise Changed
        more = piece.at + piece.length < self.size
        if block != (piece.at // piece.size, more, piece.size) or len(answer.payload) != piece.length:
            raise RemoteError(f"{name}: no block of {piece.length} B at {piece.at} of {self.size} B")
        self._etag = answer.etag
        self.data[piece.at : piece.at + piece.length] = answer.payload
        for unit in piece.units:
            self._held[unit // 8] |= 1 << unit % 8


Bodies = dict[tuple[tuple[str, ...], int], Incoming]  # by path and size


def unless_busy(took: Callable[[Piece, Response], None]) -> Callable[[Piece, Response], float]:
    """``took``, but not for answers that ask for patience (5.03): what it returns is the seconds to wait for those.

    Raises: as ``Patience.wait_s``; what ``took`` raises.
    """
    patience = Patience()

    def told(piece: Piece, answer: Response) -> float:
        wait_s = patience.wait_s(answer, asyncio.get_running_loop().time())
        if not wait_s:
            took(piece, answer)
        return wait_s

    return told


async def carry(
    window: Window, ask: Callable[[Piece], Asked | None], took: Callable[[Piece, Any], float], patience_s: float
) -> bool:
    """Whether the whole body went over before the session ended, or said nothing for ``patience_s``.

    ``ask`` sends a piece, None when the session takes no more; ``took`` is told each answer, and may raise, which ends
    it, or return how long the piece has to wait. What has arrived the window knows: it may go on over another session.
    """
    loop = asyncio.get_running_loop()
    waiting: dict[asyncio.Future[Any], tuple[Piece, Callable[[], None]]] = {}
    heard = loop.time()
    try:
        while not window.done:
            now = loop.time()
            window.tick(now)
            while (piece := window.send(now)) is not None:
                asked = ask(piece)
                if asked is None:
                    return False
                waiting[asked[0]] = (piece, asked[1])
            end = min(window.wake(now), heard + patience_s)
            if not waiting:  # paced, and all that was sent is answered
                await asyncio.sleep(max(0.0, window.wake(now) - now))
                heard = loop.time()
                continue
            await asyncio.wait(waiting, timeout=max(0.0, end - now), return_when=asyncio.FIRST_COMPLETED)
            now = loop.time()
            for answer in [a for a in waiting if a.done()]:  # in the order of sending
                piece, _ = waiting.pop(answer)
                wait_s = took(piece, answer.result())
                if wait_s:
                    window.put_off(piece.number, now, wait_s)
                else:
                    window.answered(piece.number, now)
                heard = max(heard, now + wait_s)
            if now >= heard + patience_s:
                return False
        return True
    except CoapError:  # the session has ended
        return False
    finally:
        window.session_ended()
        for answer, (_, give_up) in waiting.items():
            give_up()
            answer.cancel()
