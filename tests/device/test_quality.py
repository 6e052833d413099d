# SPDX-License-Identifier: Apache-2.0
"""What a device thinks of its way to the gateway follows what the network really loses, and comes back with it."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.device.quality import LATELY, LEAST, Quality
from fl_tiny.net.coap import Client, Limits, Request, Response, Server
from tests.net.relay import Faults, Relay

KEY = b"k" * 32


async def answer(_request: Request) -> Response:
    return Response("2.04")


def test_a_lossy_way_is_seen_and_a_mended_one_too() -> None:
    async def test() -> None:
        server = await Server.start(answer, {"dev": KEY}.get, "127.0.0.1:0", limits=Limits(handshakes_per_s=1000))
        relay = Relay(server.port, Faults(), 5)
        client = await Client.connect("127.0.0.1", relay.port, "dev", KEY, lan_timing=True)
        quality = Quality()
        client.took = quality.took

        async def ask(times: int) -> bool:
            for _ in range(times):
                assert (await client.request("PUT", ("d",), b"x")).code == "2.04"
            return quality.is_bad

        assert not await ask(LATELY), "loopback"
        relay.faults = Faults(lose=0.01)
        assert not await ask(LATELY), "1 % each way"
        relay.faults = Faults(lose=0.15)
        assert await ask(LATELY // 4), "15 % each way, after a quarter of the window"
        relay.faults = Faults()
        assert not await ask(LATELY), "mended"
        await client.close()
        relay.close()
        await server.close()

    asyncio.run(asyncio.wait_for(test(), 90))


@given(st.lists(st.tuples(st.floats(0.001, 0.2), st.booleans()), max_size=LATELY))
def test_more_than_one_in_twenty_sent_again_is_bad(requests: list[tuple[float, bool]]) -> None:
    quality = Quality()
    for seconds, again in requests:
        quality.took(seconds, again)
    lost = sum(again for _, again in requests)
    assert quality.is_bad == (len(requests) >= LEAST and lost > len(requests) / 20)


def test_a_far_gateway_is_a_bad_link_though_nothing_is_lost() -> None:
    quality = Quality()
    for _ in range(LATELY):
        quality.took(0.4, again=False)
    assert quality.is_bad
