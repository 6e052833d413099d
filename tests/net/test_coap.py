# SPDX-License-Identifier: Apache-2.0
"""Server and client on real sockets of the loopback interface."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from dtls_pair import KEY
from dtls_pair import client as engine

from fl_tiny.errors import ConfigError, EnvironmentFault, RemoteError
from fl_tiny.net import transport
from fl_tiny.net.coap import Client, Limits, Request, Response, Server

BODY = bytes(range(256)) * 800  # 204,800 B
MANY = Limits(handshakes_per_s=1000, pairings_per_s=1000)


async def answer(request: Request) -> Response:  # noqa: PLR0911 - a table
    """The resources of these tests."""
    match request.path:
        case ("big",):
            return Response("2.05", BODY, 42)
        case ("slow",):
            await asyncio.sleep(0.4)
            return Response("2.05", b"slow")
        case ("missing",):
            return Response("4.04", b"\xa0", 257, max_age=7)
        case ("etag",):
            return (
                Response("2.03", etag=request.etag) if request.etag == b"v1" else Response("2.05", b"new", etag=b"v1")
            )
        case ("changing",):
            number = (request.block2 or (0, 0))[0]
            return Response("2.05", bytes([number]) * 3000, 42)
        case ("exporter",):
            return Response("2.05", request.session.exporter(b"EXPORTER-test", 32))
        case ("bye",):
            request.session.close()
            return Response("2.04")
        case ("bug",):
            raise ZeroDivisionError("ours")
    seen = (request.method, request.path, request.payload, request.content_format, request.identity)
    return Response("2.05", repr(seen).encode(), 0)


@contextlib.asynccontextmanager
async def gateway(bind: str = "127.0.0.1:0", limits: Limits = MANY, **more: Any) -> AsyncIterator[Server]:
    server = await Server.start(answer, {"dev": KEY, "pair:x": KEY}.get, bind, limits=limits, **more)
    try:
        yield server
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def device(server: Server, host: str = "127.0.0.1", identity: str = "dev") -> AsyncIterator[Client]:
    client = await Client.connect(host, server.port, identity, KEY, lan_timing=True)
    try:
        yield client
    finally:
        await client.close()


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        await asyncio.sleep(0.01)


def run(test: Coroutine[Any, Any, None], seconds: float = 30.0) -> None:
    asyncio.run(asyncio.wait_for(test, seconds))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.8.7"])
def test_one_socket_serves_both_families_and_answers_from_the_address_asked(host: str) -> None:
    async def test() -> None:
        async with gateway("[::]:0") as server, device(server, host) as client:
            got = await client.request("PUT", ("u", "sid", "7"), b"codes", 42)
            assert got.code == "2.05" and got.content_format == 0
            assert got.payload == repr(("PUT", ("u", "sid", "7"), b"codes", 42, "dev")).encode()
            assert server.counters.handshakes_ok == 1 and server.counters.bytes_in > 500

    run(test())


def test_a_body_of_200_kb_arrives_whole_in_blocks() -> None:
    async def test() -> None:
        async with gateway() as server, device(server) as client:
            assert await client.fetch(("big",), size_limit=300_000) == BODY
            block = await client.request("GET", ("big",), block2=(3, 256))
            assert block.payload == BODY[768:1024] and block.block2 == (3, True, 256)
            last = await client.request("GET", ("big",), block2=(199, 1024))
            assert last.payload == BODY[-1024:] and last.block2 == (199, False, 1024)
            assert (await client.request("GET", ("big",), block2=(200, 1024))).code == "4.00"
            with pytest.raises(RemoteError, match="longer than 100000"):
                await client.fetch(("big",), size_limit=100_000)
            with pytest.raises(RemoteError, match=r"answered 4\.04"):
                await client.fetch(("missing",), size_limit=1000)
            with pytest.raises(RemoteError, match="changed 3 times"):
                await client.fetch(("changing",), size_limit=10_000)

    run(test())


def test_options_and_errors_pass_both_ways() -> None:
    async def test() -> None:
        async with gateway() as server, device(server) as client:
            missing = await client.request("GET", ("missing",))
            assert (missing.code, missing.payload, missing.content_format, missing.max_age) == ("4.04", b"\xa0", 257, 7)
            fresh = await client.request("GET", ("etag",))
            assert (fresh.code, fresh.payload, fresh.etag) == ("2.05", b"new", b"v1")
            assert (await client.request("GET", ("etag",), etag=b"v1")).code == "2.03"
            for method in ("GET", "POST", "PUT", "DELETE", "FETCH"):
                assert repr(method).encode() in (await client.request(method, ("a",))).payload
            assert b"'.well-known', 'core'" in (await client.request("GET", (".well-known", "core"))).payload
            unconfirmed = await client.request("GET", ("etag",), confirmable=False)
            assert unconfirmed.payload == b"new"

    run(test())


def test_requests_may_wait_side_by_side_and_a_slow_one_gets_its_answer() -> None:
    async def test() -> None:
        async with gateway() as server, device(server) as client:
            calls = [client.request("GET", ("slow",)), *(client.request("GET", (str(n),)) for n in range(20))]
            slow, *quick = await asyncio.gather(*calls)
            assert slow.payload == b"slow"
            assert all(repr((str(n),)).encode() in got.payload for n, got in enumerate(quick))

    run(test())


def test_client_and_handler_see_the_same_exporter() -> None:
    async def test() -> None:
        async with gateway() as server, device(server, identity="pair:x") as client:
            assert (await client.request("GET", ("exporter",))).payload == client.exporter(b"EXPORTER-test", 32)

    run(test())


def test_a_handler_can_end_the_session_after_its_answer() -> None:
    async def test() -> None:
        async with gateway() as server, device(server) as client:
            assert (await client.request("GET", ("bye",))).code == "2.04"
            await until(lambda: server.sessions == 0)
            assert (await client.request("GET", ("etag",))).payload == b"new"
            assert client.reconnects == 1

    run(test())


def test_a_revoked_identity_is_out_at_once_and_refused_afterwards() -> None:
    async def test() -> None:
        known: dict[str, bytes] = {"dev": KEY}
        server = await Server.start(answer, known.get, "127.0.0.1:0")
        async with device(server) as client:
            assert (await client.request("GET", ("etag",))).code == "2.05"
            del known["dev"]
            server.drop_identity("dev")
            assert server.sessions == 0
            with pytest.raises(RemoteError, match='refused "dev"'):
                await client.request("GET", ("etag",))
        await server.close()

    run(test())


def test_a_closing_client_and_a_closing_server_tell_the_other() -> None:
    async def test() -> None:
        async with gateway() as server:
            async with device(server):
                await until(lambda: server.sessions == 1)
            await until(lambda: server.sessions == 0)
            async with device(server) as client:
                waiting = asyncio.create_task(client.request("GET", ("slow",)))
                await asyncio.sleep(0.1)
                await server.close()
                await until(lambda: not client._link or not client._link.is_open)
                waiting.cancel()

    run(test())


def test_a_bug_in_the_handler_answers_5_00_and_is_handed_to_the_owner() -> None:
    async def test() -> None:
        async with gateway() as server, device(server) as client:
            assert (await client.request("GET", ("bug",))).code == "5.00"
            with pytest.raises(ZeroDivisionError):
                await server.fault

    run(test())


def test_a_wrong_key_ends_after_the_deadline_with_address_and_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr("fl_tiny.net.client.HANDSHAKE_S", 1.5)  # 12 s, to the letter the same path
        async with gateway() as server:
            with pytest.raises(RemoteError, match="no answer, or the key is wrong") as caught:
                await Client.connect("127.0.0.1", server.port, "dev", b"wrong" * 4)
            assert str(server.port) in caught.value.hint and '"dev"' in caught.value.hint
            assert server.sessions == 0 and server.handshakes == 1

    run(test())


def test_nobody_there_no_route_and_no_name_are_the_networks_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr("fl_tiny.net.client.REFUSED_S", 0.5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with pytest.raises(EnvironmentFault, match="nothing listens"):
            await Client.connect("127.0.0.1", port, "dev", KEY)
        with pytest.raises(EnvironmentFault, match="no way to"):
            await Client.connect("255.255.255.255", port, "dev", KEY)
        with pytest.raises(EnvironmentFault, match="cannot find the address"):
            await Client.connect("no-such-host.invalid", port, "dev", KEY)

    run(test())


def test_a_bad_address_and_a_taken_port_are_named() -> None:
    async def test() -> None:
        for bad in ("5684", "::1:5684", "[::1]", "host:", "host:70000", ":5684"):
            with pytest.raises(ConfigError, match="is not an address"):
                await Server.start(answer, lambda identity: KEY, bad)
        async with gateway() as server:
            with pytest.raises(EnvironmentFault, match="another gateway"):
                await Server.start(answer, lambda identity: KEY, f"127.0.0.1:{server.port}")

    run(test())


def test_plain_coap_and_noise_get_nothing() -> None:
    async def test() -> None:
        async with gateway() as server, device(server) as client:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
                plain.setblocking(False)
                plain.connect(("127.0.0.1", server.port))
                for data in (
                    b"\x40\x01\0\1",
                    b"\x40\0\0\1",
                    b"",
                    bytes(9000),
                    os.urandom(500),
                    b"\x16\xfe\xfd" + bytes(90),
                ):
                    plain.send(data)
                await until(lambda: server.counters.dropped >= 6)
                with pytest.raises(BlockingIOError):
                    plain.recv(2000)
            assert (await client.request("GET", ("etag",))).code == "2.05"

    run(test())


def test_a_thousand_lone_hellos_leave_nothing_on_the_socket() -> None:
    async def test() -> None:
        [hello] = engine().take()
        async with gateway() as server, device(server) as client:
            for _ in range(40):
                with contextlib.ExitStack() as stack:
                    for _ in range(25):
                        lone = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                        lone.sendto(hello, ("127.0.0.1", server.port))
                    await asyncio.sleep(0.005)
            await until(lambda: server.counters.datagrams_in >= 1000)
            assert server.handshakes == 0 and server.sessions == 1
            assert server.counters.bytes_out < server.counters.bytes_in
            assert (await client.request("GET", ("etag",))).code == "2.05"

    run(test())


@pytest.mark.slow
def test_three_thousand_requests_leave_memory_and_tables_as_they_were() -> None:
    async def test() -> None:
        async with gateway() as server, device(server) as client:
            for _ in range(500):
                await client.request("GET", ("etag",))
            before = _rss_kib()
            for _ in range(3000):
                await client.request("GET", ("etag",))
            assert _rss_kib() - before < 1024
            [remote] = server._remotes.values()
            manager = server._interface._manager
            assert len(remote.recent) == transport.RECENT
            assert not manager._recent_messages and not manager._active_exchanges and not manager._backlogs

    run(test(), 60)


def test_hostile_messages_inside_dtls_do_no_harm() -> None:
    async def test() -> None:
        async with gateway() as server, device(server) as client:
            assert client._link is not None
            send = client._link.endpoint.send
            garbage = [bytes.fromhex("41fe41fe0131d7"), b"\x40", b"\x4f\x01\0\1" + bytes(15), b"\x80\x01\0\1"]
            garbage += [os.urandom(n) for n in range(1, 200)]
            garbage += [b"\x50\x01" + n.to_bytes(2, "big") + b"\xb2\xc3\xff" for n in range(50)]
            for data in garbage:
                send(data)
            await asyncio.sleep(0.1)
            assert server.counters.dropped > 50
            assert (await client.request("GET", ("etag",))).payload == b"new"

    run(test())


def test_what_the_server_does_not_serve_is_refused_by_its_code() -> None:
    async def test() -> None:
        async with gateway(payload_bytes=1000) as server, device(server) as client:
            assert client._link is not None
            remote, timing = client._link.remote, transport.Timing(lan_timing=True)

            async def code(number: int, payload: bytes = b"", **options: object) -> str:
                asked = transport.message(number, payload, timing, remote, **options)
                return str((await transport.ask(client._context, asked)[0]).code.dotted)

            assert await code(3, b"x" * 64, block1=(0, True, 2)) == "4.13"
            assert await code(3, b"x" * 64, block1=(1, False, 2)) == "4.13"
            assert await code(3, bytes(1001)) == "4.13"
            assert await code(1, block2=(0, False, 7)) == "4.00"
            assert await code(9) == "4.05"
            assert await code(1, proxy_uri="coap://elsewhere/") == "4.02"
            assert await code(1, if_match=(b"x",)) == "4.02"
            assert await code(1, uri_path=("etag",), observe=0, echo=b"1234") == "2.05"

    run(test())


def test_a_repeated_request_is_answered_again_without_asking_the_handler_twice() -> None:
    async def test() -> None:
        calls = 0

        async def count(request: Request) -> Response:
            nonlocal calls
            calls += 1
            return Response("2.05", b"x" * (600 if request.path == ("long",) else 6))

        server = await Server.start(count, lambda identity: KEY, "127.0.0.1:0")
        got: list[bytes] = []
        async with device(server) as client:
            assert client._link is not None
            client._link.endpoint._received = got.append
            short, long = b"\x40\x01\0\1\xb5short", b"\x40\x01\0\2\xb4long"
            for _ in range(3):
                client._link.endpoint.send(short)
                await asyncio.sleep(0.05)
            assert calls == 1 and len(got) == 3 and len(set(got)) == 1
            for _ in range(3):  # a long answer is not kept: the request is idempotent and served again
                client._link.endpoint.send(long)
                await asyncio.sleep(0.05)
            assert calls == 4 and len(got) == 6
        await server.close()

    run(test())


@pytest.mark.slow
def test_a_request_survives_kill_9_of_its_gateway() -> None:
    async def test() -> None:
        gateway = Path(__file__).with_name("gateway.py")
        here = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}

        def start(port: str) -> tuple[subprocess.Popen[str], str]:
            process = subprocess.Popen([sys.executable, gateway, port], stdout=subprocess.PIPE, text=True, env=here)
            assert process.stdout is not None
            return process, process.stdout.readline().strip()

        process, port = await asyncio.to_thread(start, "0")
        client = await Client.connect("127.0.0.1", int(port), "dev", KEY, lan_timing=True)
        try:
            assert (await client.request("GET", ("a",))).payload == b"dev GET "
            process.send_signal(signal.SIGKILL)
            process.wait()
            process, _ = await asyncio.to_thread(start, port)  # up again before the device says a word
            began = time.monotonic()
            assert (await client.request("POST", ("a",), b"1")).payload == b"dev POST 1"
            assert time.monotonic() - began < 6  # lan_timing: stale after 4 s
            process.send_signal(signal.SIGKILL)
            process.wait()
            waiting = asyncio.create_task(client.request("POST", ("a",), b"2"))  # meets a closed port first
            await asyncio.sleep(2)
            began = time.monotonic()
            process, _ = await asyncio.to_thread(start, port)
            assert (await waiting).payload == b"dev POST 2"
            assert time.monotonic() - began < 10
            assert client.reconnects == 2
        finally:
            await client.close()
            process.kill()
            process.wait()

    run(test(), 40)


def test_a_gateway_that_stays_away_ends_the_request_and_the_client_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr("fl_tiny.net.client.HANDSHAKE_S", 0.4)
        async with gateway() as server, device(server) as client:
            port = server.port
            await server.close()
            with pytest.raises(EnvironmentFault, match="no answer from"):
                await client.request("GET", ("etag",))
            async with gateway(f"127.0.0.1:{port}"):
                assert (await client.request("GET", ("etag",))).payload == b"new"

    run(test())


def test_a_closed_client_says_so_and_leaves_no_task_or_socket() -> None:
    async def test() -> None:
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        async with gateway() as server:
            async with device(server) as client:
                await client.request("GET", ("etag",))
            with pytest.raises(EnvironmentFault, match="closed"):
                await client.request("GET", ("etag",))
            with pytest.raises(EnvironmentFault, match="no session"):
                client.exporter(b"EXPORTER-test", 32)
            await client.close()
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 2  # this one and its time limit
        assert len(list(Path("/proc/self/fd").iterdir())) == descriptors

    run(test())


def _rss_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])
