# SPDX-License-Identifier: Apache-2.0
"""aiocoap's traps (docs/protocol.md, "CoAP"): each is shown to be there, and to be closed by us."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import aiocoap
import pytest
from aiocoap.blockwise import Block1Spool, ContinueException
from dtls_pair import KEY
from duplicates import attached, shown_and_closed

from fl_tiny.net import transport
from fl_tiny.net.assembly import BODIES, Assembly
from fl_tiny.net.coap import Client, Limits, Request, Response, Server

NO_TEXT = bytes.fromhex("41fe41fe0131d7")


def test_message_ids_that_come_round_get_no_stale_answer_and_cost_no_memory() -> None:
    shown_and_closed(3000, 2000)


def test_confirmable_requests_wait_for_each_other_and_a_window_of_others_does_not() -> None:
    async def in_the_air(confirmable: bool) -> int:
        context, interface = await transport.attach()
        out: list[bytes] = []
        remote = transport.Remote(out.append, "gateway")
        timing = transport.Timing(confirmable=confirmable)
        for _ in range(8):
            transport.ask(context, transport.message(3, b"chunk", timing, remote))
        await asyncio.sleep(0.02)
        interface.gone(remote, "end")
        await asyncio.sleep(0)
        await context.shutdown()
        return len(out)

    assert asyncio.run(in_the_air(False)) == 8
    assert asyncio.run(in_the_air(True)) == 1, "NSTART is no longer 1: bulk may go confirmable"


def test_bytes_that_are_no_text_are_dropped_though_aiocoap_raises() -> None:
    async def test() -> None:
        context, interface, remote, out = await attached(stock=False)
        assert interface.receive(remote, NO_TEXT) is False
        assert out == []
        await context.shutdown()

    asyncio.run(test())
    with pytest.raises(UnicodeDecodeError):
        aiocoap.Message.decode(NO_TEXT)


def test_odd_messages_leave_no_line_in_the_log_though_aiocoap_has_one_for_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd = [b"\x60\x45" + n.to_bytes(2, "big") + b"\xffx" for n in range(50)]  # answers to nothing
    odd += [b"\x40\x45" + n.to_bytes(2, "big") + b"\xffx" for n in range(50)]
    odd += [b"\x70\0" + n.to_bytes(2, "big") for n in range(50)]

    async def lines(level: int | None) -> int:
        context, interface, remote, _ = await attached(stock=False)
        if level is not None:
            logging.getLogger(transport.LOGGER).setLevel(level)
        caplog.clear()
        for data in odd:
            interface.receive(remote, data)
        interface.gone(remote, "end")
        await asyncio.sleep(0)
        await context.shutdown()
        return len(caplog.records)

    with caplog.at_level(logging.DEBUG):
        assert asyncio.run(lines(None)) == 0
        assert asyncio.run(lines(logging.DEBUG)) >= len(odd)


def test_half_open_bodies_are_bounded_though_aiocoap_keeps_them_all() -> None:
    async def spooled() -> int:
        spool = Block1Spool()
        for n in range(300):
            remote = transport.Remote(lambda data: None, f"peer{n}")
            first = transport.message(3, bytes(1024), transport.Timing(), remote, uri_path=("u",), block1=(0, True, 6))
            with contextlib.suppress(ContinueException):
                spool.feed_and_take(first)
        return len(spool._assemblies._items)

    assert asyncio.run(spooled()) == 300
    ours = Assembly()
    for n in range(300):
        ours.take(n, ("PUT", "u"), (0, True, 1024), bytes(1024), 262_144, 0.0)
    assert len(ours) == BODIES


def test_a_gap_in_a_body_is_told_and_no_fault_of_the_server() -> None:
    async def answer(request: Request) -> Response:
        return Response("2.04", b"%d" % len(request.payload))

    async def test() -> None:
        server = await Server.start(answer, lambda identity: KEY, "127.0.0.1:0", body_bytes=lambda identity: 10_000)
        client = await Client.connect("127.0.0.1", server.port, "dev", KEY)
        assert client._link is not None
        remote, timing = client._link.remote, transport.Timing(lan_timing=True)

        async def put(number: int, more: bool) -> tuple[str, bytes]:
            asked = transport.message(3, bytes(64), timing, remote, uri_path=("u",), block1=(number, more, 2))
            found = await transport.ask(client._context, asked)[0]
            assert found.opt.block1.block_number == number
            assert found.opt.block1.more == (str(found.code.dotted) == "2.31"), "more follow: not the last answer"
            return str(found.code.dotted), found.payload

        assert await put(0, True) == ("2.31", b"")
        assert await put(2, False) == ("4.08", b"")
        assert await put(0, True) == ("2.31", b"")
        assert await put(1, True) == ("2.04", b"192"), "the last block is there already"
        assert await put(2, False) == ("4.08", b"")
        assert not server.fault.done()
        await client.close()
        await server.close()

    asyncio.run(asyncio.wait_for(test(), 20))


def test_a_client_begins_a_new_session_before_its_message_ids_come_round(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(request: Request) -> Response:
        return Response("2.05", request.payload)

    async def sessions(most: int) -> int:
        monkeypatch.setattr("fl_tiny.net.connection.MESSAGE_IDS", most)
        limits = Limits(handshakes_per_s=1000)
        server = await Server.start(answer, lambda identity: KEY, "127.0.0.1:0", limits=limits)
        client = await Client.connect("127.0.0.1", server.port, "dev", KEY, lan_timing=True)
        for n in range(45):
            assert (await client.request("POST", ("x",), b"%d" % n)).payload == b"%d" % n
        await client.close()
        await server.close()
        return client.reconnects

    assert asyncio.run(asyncio.wait_for(sessions(20), 20)) == 2
    assert asyncio.run(asyncio.wait_for(sessions(60_000), 20)) == 0
