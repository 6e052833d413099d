# SPDX-License-Identifier: Apache-2.0
"""Observed answers: one a session, told when they change, and nothing left of them afterwards."""

from __future__ import annotations

import asyncio
import warnings

from dtls_pair import KEY

from fl_tiny.net.coap import Client, Request, Response, Server

GET = b"\x40\x01\0"  # without a token; the last byte of the message ID follows
OBSERVE, STOP, PATH = b"\x60", b"\x61\x01", b"\x51m"


class Watched:
    """A server with one resource that changes, and a client whose messages the test writes itself."""

    def __init__(self) -> None:
        self.value, self.got = b"one", list[bytes]()

    async def answer(self, request: Request) -> Response:
        return Response("2.05" if self.value else "4.04", self.value, watched=bool(self.value))

    async def __aenter__(self) -> Watched:
        self.server = await Server.start(self.answer, lambda identity: KEY, "127.0.0.1:0")
        self.client = await Client.connect("127.0.0.1", self.server.port, "dev", KEY)
        assert self.client._link is not None
        self.endpoint = self.client._link.endpoint
        self.endpoint._received = self.got.append
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.server.close()

    async def say(self, message: bytes) -> list[bytes]:
        """What comes back within a moment; confirmable messages are acknowledged."""
        self.got.clear()
        self.endpoint.send(message)
        return await self.heard()

    async def heard(self) -> list[bytes]:
        await asyncio.sleep(0.1)
        for data in self.got:
            if data[0] >> 4 & 3 == 0:
                self.endpoint.send(b"\x60\0" + data[2:4])
        return list(self.got)

    async def changed(self, value: bytes) -> list[bytes]:
        self.got.clear()
        self.value = value
        self.server.changed()
        return await self.heard()


def test_a_session_watches_once_and_leaves_nothing_behind() -> None:
    async def test() -> None:
        async with Watched() as here:
            assert [data[-3:] for data in await here.say(GET + b"\1" + OBSERVE + PATH)] == [b"one"]
            assert here.server.watching == 1
            [other] = await here.say(b"\x41\x01\0\2t" + OBSERVE + PATH)  # another token: answered, not kept
            assert b"\xff" in other and here.server.watching == 1
            assert await here.changed(b"one") == []
            assert [data[-3:] for data in await here.changed(b"two")] == [b"two"]
            assert await here.changed(b"two") == [], "nothing has changed"
            [again] = await here.say(GET + b"\3" + OBSERVE + PATH)  # the same token: renewed
            assert again[-3:] == b"two" and here.server.watching == 1
            [stopped] = await here.say(GET + b"\4" + STOP + PATH)
            assert stopped[-3:] == b"two" and here.server.watching == 0
            assert await here.changed(b"six") == []
            await here.say(GET + b"\5" + OBSERVE + PATH)
            [gone] = await here.changed(b"")
            assert gone[1] == 0x84 and here.server.watching == 0, "an answer that is none ends it"
            here.value = b"ten"
            await here.say(GET + b"\6" + OBSERVE + PATH)
            assert here.server.watching == 1
            here.endpoint.close()
            await asyncio.sleep(0.1)
            manager = here.server._interface._manager
            assert here.server.watching == 0 and not manager.token_manager.incoming_requests

    asyncio.run(test())


def test_a_reset_ends_a_registration() -> None:
    async def test() -> None:
        async with Watched() as here:
            await here.say(GET + b"\1" + OBSERVE + PATH)
            here.got.clear()
            here.value = b"two"
            here.server.changed()
            await asyncio.sleep(0.1)
            [told] = here.got
            here.endpoint.send(b"\x70\0" + told[2:4])
            await asyncio.sleep(0.1)
            assert here.server.watching == 0

    asyncio.run(test())


def test_a_peer_that_asks_and_leaves_at_once_causes_no_warning() -> None:
    async def test() -> None:
        async with Watched() as here:
            here.endpoint.send(GET + b"\1" + OBSERVE + PATH)
            here.endpoint.close()
            await asyncio.sleep(0.2)
            assert here.server.watching == 0

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(test())
    assert not [w for w in caught if "never awaited" in str(w.message)]
