# SPDX-License-Identifier: Apache-2.0
"""A server of ours in memory under requests whose message IDs come round, with our duplicates and with aiocoap's."""

from __future__ import annotations

import asyncio
import tracemalloc

import aiocoap
from aiocoap.messagemanager import MessageManager

from fl_tiny.net import transport


async def echo(asked: aiocoap.Message) -> aiocoap.Message:
    return transport.message(69, asked.payload, transport.Timing())


async def attached(stock: bool) -> tuple[aiocoap.Context, transport.Interface, transport.Remote, list[bytes]]:
    """A server of ours in memory, one peer of it, and what that peer is sent. stock: with aiocoap's own duplicates."""
    context, interface = await transport.attach(echo)
    out: list[bytes] = []
    remote = transport.Remote(out.append, "peer")
    if stock:
        manager = interface._manager
        manager._deduplicate_message = lambda message: MessageManager._deduplicate_message(manager, message)
        remote.is_repeated = lambda data: False  # type: ignore[method-assign]
    return context, interface, remote, out


async def flooded(stock: bool, requests: int, ids: int) -> tuple[int, int, int]:
    """Stale answers, bytes that stay, and timers that stay, of requests whose message IDs come round."""
    context, interface, remote, out = await attached(stock)
    tracemalloc.start()
    stale, before = 0, tracemalloc.get_traced_memory()[0]
    for number in range(requests):
        out.clear()
        body = b"%07d" % number
        interface.receive(remote, b"\x40\x02" + (number % ids).to_bytes(2, "big") + b"\xff" + body)
        for _ in range(4):
            await asyncio.sleep(0)
        stale += out != [] and not out[-1].endswith(body)
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    timers = len(asyncio.get_running_loop()._scheduled)  # type: ignore[attr-defined]
    interface.gone(remote, "end")
    await context.shutdown()
    return stale, kept, timers


def shown_and_closed(requests: int, ids: int) -> None:
    """No stale answer, memory or timer of ours; all three with aiocoap's own table."""
    stale, kept, timers = asyncio.run(flooded(False, requests, ids))
    assert stale == 0 and kept < 200_000 and timers < 200
    stale, kept, timers = asyncio.run(flooded(True, requests, ids))
    assert stale > 0 and kept > 500 * ids and timers > ids // 2, "the trap is gone: our cure may go too"
