# SPDX-License-Identifier: Apache-2.0
"""Waiting for an event, for a time, without losing a cancellation."""

from __future__ import annotations

import asyncio


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether ``event`` is set before ``seconds`` are over.

    Not by ``wait_for``: before Python 3.12 it drops a cancellation that comes together with the event.
    """
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=seconds)
        return waiting.done()
    finally:
        waiting.cancel()
