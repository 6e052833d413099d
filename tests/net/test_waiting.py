# SPDX-License-Identifier: Apache-2.0
"""Waiting that a cancellation ends, also one that comes together with the event."""

from __future__ import annotations

import asyncio

import pytest

from fl_tiny.net.waiting import happens


def test_a_cancellation_that_comes_with_the_event_is_not_lost() -> None:
    async def test() -> None:
        event = asyncio.Event()
        waiting = asyncio.create_task(happens(event, 5))
        await asyncio.sleep(0.01)
        event.set()
        await asyncio.sleep(0)  # the event has woken what waits inside; who awaits it has not run yet
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(test())


def test_it_says_whether_the_event_came() -> None:
    async def test() -> None:
        event = asyncio.Event()
        assert not await happens(event, 0.01)
        asyncio.get_running_loop().call_later(0.01, event.set)
        assert await happens(event, 5)

    asyncio.run(test())
