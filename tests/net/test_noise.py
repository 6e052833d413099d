# SPDX-License-Identifier: Apache-2.0
"""What an operator reads of strangers, and how often."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

import pytest
from dtls_pair import KEY

from fl_tiny.net.coap import Request, Response, Server
from fl_tiny.net.dtls import Context
from fl_tiny.net.endpoint import Counters
from fl_tiny.net.noise import USUAL, Noise


async def answer(request: Request) -> Response:
    return Response("2.04")


def test_noise_is_told_once_a_minute_and_what_is_usual_never(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fl_tiny.net.server.EVERY_S", 0.4)  # a minute

    async def test() -> None:
        server = await Server.start(answer, lambda identity: KEY, "127.0.0.1:0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.connect(("127.0.0.1", server.port))
            for _ in range(USUAL // 2):
                stranger.send(os.urandom(40))
            await asyncio.sleep(0.5)
            assert not caplog.records
            for _ in range(300):
                stranger.send(os.urandom(40))
                await asyncio.sleep(0)
            await asyncio.sleep(0.5)
        assert len(caplog.records) in (1, 2)  # the three hundred may lie on both sides of a minute's end
        await asyncio.sleep(0.5)
        await server.close()

    with caplog.at_level(logging.INFO, "fl_tiny.net"):
        asyncio.run(test())
    assert "dropped=" in caplog.text and len(caplog.records) <= 2


def test_a_peer_without_a_suite_is_told_of_by_the_setting_that_serves_it() -> None:
    async def hellos(constrained: bool) -> str:
        server = await Server.start(answer, lambda identity: KEY, "127.0.0.1:0", constrained_peers=constrained)
        noise = Noise(server.counters)
        small = Context.client("dev", KEY)
        assert small.calls.SSL_CTX_set_cipher_list(small.pointer, b"PSK-AES128-CCM8:@SECLEVEL=0") == 1
        session = small.connect()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.connect(("127.0.0.1", server.port))
            peer.settimeout(0.1)
            for _ in range(6):
                for data in session.take():
                    peer.send(data)
                await asyncio.sleep(0.05)
                try:
                    session.receive(peer.recv(2000))
                except TimeoutError:
                    break
        assert session.established == constrained
        await server.close()
        return noise.line()

    assert "constrained_peers = true" in asyncio.run(hellos(False))
    assert asyncio.run(hellos(True)) == ""


def test_a_flood_of_hellos_is_noise_and_a_fleet_that_connects_is_not() -> None:
    counters = Counters()
    noise = Noise(counters)
    counters.cookies += 1000
    counters.handshakes_ok += 1000
    assert noise.line() == ""
    counters.cookies += 1000
    assert "cookies=1000" in noise.line()
    assert noise.line() == ""
