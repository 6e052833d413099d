# SPDX-License-Identifier: Apache-2.0
"""libcoap's clients and servers, built on OpenSSL and GnuTLS, against ours: Debian's package libcoap3-bin."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fl_tiny.errors import RemoteError
from fl_tiny.net.coap import Client, Limits, Request, Response, Server

KEY = b"m2Zt8kQ4vX1cB7nL5hR0sW3yP6dF9gJa"  # taken as text by any foreign stack
LINKS = b'</m>;ct=18;rt="fl.head",</e>;rt="fl.enrol"'
BODY = b"".join(b"%07d\n" % n for n in range(3000))  # 24,000 B

LONG = b"".join(b"%09d\n" % n for n in range(30_000))  # 300,000 B
MANY = Limits(handshakes_per_s=1000, pairings_per_s=1000)

BUILDS = ["openssl", "gnutls"]


async def answer(request: Request) -> Response:
    match request.method, request.path:
        case "GET", (".well-known", "core"):
            return Response("2.05", LINKS, 40)
        case "GET", ("big",):
            return Response("2.05", BODY, 0)
        case "GET", ("who",):
            return Response("2.05", request.identity.encode(), 0)
    return Response("4.01") if request.identity.startswith("peer:") else Response("2.04")


@contextlib.asynccontextmanager
async def gateway(**more: Any) -> AsyncIterator[Server]:
    known = {"peer:lab": KEY, "dev": KEY, "pair:x": KEY}
    server = await Server.start(answer, known.get, "[::]:0", limits=MANY, **more)
    try:
        yield server
    finally:
        await server.close()


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is absent: install Debian's libcoap3-bin")
    return path


async def ask(build: str, url: str, *more: str, user: str = "peer:lab", key: bytes = KEY, seconds: int = 4) -> bytes:
    """What coap-client prints on stdout."""
    command = [program(f"coap-client-{build}"), "-B", str(seconds), *more]
    if url.startswith("coaps:"):
        command += ["-u", user, "-k", key.decode()]
    child = await asyncio.create_subprocess_exec(
        *command, url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(child.communicate(), seconds + 10)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    return out


def free_pair() -> int:
    """A free port whose next one is free too: coaps is served on the port after the plain one."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as two:
            one.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):
                two.bind(("127.0.0.1", one.getsockname()[1] + 1))
                return int(one.getsockname()[1])


@contextlib.asynccontextmanager
async def foreign_server(build: str) -> AsyncIterator[int]:
    """libcoap's server; its port for DTLS."""
    port = free_pair()
    command = [program(f"coap-server-{build}"), "-A", "127.0.0.1", "-p", str(port), "-k", KEY.decode(), "-h", "lab"]
    quiet = asyncio.subprocess.DEVNULL
    server = await asyncio.create_subprocess_exec(*command, "-d", "10", stdout=quiet, stderr=quiet, cwd=os.sep)
    try:
        await asyncio.sleep(0.5)
        yield port + 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()
        await server.wait()


def run(test: Any) -> None:
    asyncio.run(asyncio.wait_for(test, 40))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_peer_reads_the_link_format(build: str, host: str) -> None:
    async def test() -> None:
        async with gateway() as server:
            url = f"coaps://{host}:{server.port}"
            assert LINKS in await ask(build, f"{url}/.well-known/core")
            assert b"peer:lab" in await ask(build, f"{url}/who")
            assert b"4.01" in await ask(build, f"{url}/e", "-m", "post", "-e", "x")
            assert server.counters.handshakes_ok == 3 and server.counters.handshakes_failed == 0

    run(test())


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("block", ["1024", "64"])
def test_a_long_body_arrives_in_the_blocks_the_peer_wants(build: str, block: str) -> None:
    async def test() -> None:
        async with gateway() as server:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "body")
                url = f"coaps://127.0.0.1:{server.port}/big"
                await ask(build, url, "-b", block, "-o", str(path), seconds=15)
                assert await asyncio.to_thread(path.read_bytes) == BODY

    run(test())


@pytest.mark.parametrize("build", BUILDS)
def test_a_wrong_key_or_identity_and_plain_coap_get_nothing(build: str) -> None:
    async def test() -> None:
        async with gateway() as server:
            url = f"coaps://127.0.0.1:{server.port}/.well-known/core"
            outputs = await asyncio.gather(
                ask(build, url, key=KEY[::-1], seconds=2),
                ask(build, url, user="peer:nobody", seconds=2),
                ask(build, url.replace("coaps", "coap"), seconds=2),
            )
            assert not any(b"fl.head" in out for out in outputs)
            assert server.counters.handshakes_ok == 0 and server.sessions == 0

    run(test())


@pytest.mark.parametrize("build", BUILDS)
def test_our_client_reads_from_libcoaps_server(build: str) -> None:
    async def test() -> None:
        async with foreign_server(build) as port:
            client = await Client.connect("127.0.0.1", port, "dev", KEY, lan_timing=True)
            assert b"This is a test server" in (await client.request("GET", ())).payload
            assert b"</time>" in await client.fetch((".well-known", "core"), size_limit=5000)
            assert (await client.request("GET", ("nothing",))).code == "4.04"
            await client.close()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("fl_tiny.net.client.HANDSHAKE_S", 2.0)
                with pytest.raises(RemoteError):
                    await Client.connect("127.0.0.1", port, "dev", KEY[::-1])

    run(test())


def test_a_constrained_peer_is_served_only_when_the_operator_says_so() -> None:
    async def test() -> None:
        for constrained in (False, True):
            async with gateway(constrained_peers=constrained) as server:
                url = f"coaps://127.0.0.1:{server.port}/.well-known/core"
                assert LINKS in await ask("openssl", url)  # ordinary peers are served in both

    run(test())


@pytest.mark.parametrize("build", BUILDS)
def test_300_kb_go_up_in_blocks_and_arrive_once(build: str) -> None:
    got: list[bytes] = []

    async def take(request: Request) -> Response:
        got.append(request.payload)
        return Response("2.04")

    async def test() -> None:
        known = {"dev": KEY, "peer:lab": KEY}
        most = lambda identity: 400_000 if identity == "dev" else 0  # noqa: E731
        server = await Server.start(take, known.get, "127.0.0.1:0", limits=MANY, body_bytes=most)
        with tempfile.NamedTemporaryFile() as body:
            body.write(LONG)
            body.flush()
            url, more = f"coaps://127.0.0.1:{server.port}/u", ("-m", "put", "-f", body.name)
            for block in ("1024", "256"):
                await ask(build, url, "-b", block, *more, user="dev", seconds=20)
            assert [len(b) for b in got] == [len(LONG)] * 2 and set(got) == {LONG}
            assert b"4.13" in await ask(build, url, "-b", "1024", *more)
            assert len(got) == 2, "a peer has nothing to send"
        assert len(server._bodies) == 0
        await server.close()

    run(test())


@pytest.mark.parametrize("build", BUILDS)
def test_300_kb_come_down_to_either_side(build: str, tmp_path: Path) -> None:
    async def long(request: Request) -> Response:
        return Response("2.05", LONG, 42)

    async def test() -> None:
        server = await Server.start(long, lambda identity: KEY, "127.0.0.1:0", limits=MANY)
        path, source = tmp_path / "down", tmp_path / "up"
        await ask(build, f"coaps://127.0.0.1:{server.port}/big", "-b", "1024", "-o", str(path), seconds=20)
        assert path.read_bytes() == LONG
        await server.close()
        source.write_bytes(LONG)
        async with foreign_server(build) as port:
            put = ("-m", "put", "-f", str(source), "-b", "1024")
            await ask(build, f"coaps://127.0.0.1:{port}/example_data", *put, user="dev", seconds=20)
            client = await Client.connect("127.0.0.1", port, "dev", KEY, lan_timing=True)
            assert await client.fetch(("example_data",), size_limit=len(LONG)) == LONG
            await client.close()

    run(test())


@pytest.mark.parametrize("build", BUILDS)
def test_a_peer_is_told_of_a_change_and_polling_goes_on_beside_it(build: str) -> None:
    async def test() -> None:
        now = [b"head one"]

        async def head(request: Request) -> Response:
            return Response("2.05", now[0], 0, etag=now[0][-3:], watched=True)

        server = await Server.start(head, lambda identity: KEY, "127.0.0.1:0", limits=MANY)
        url = f"coaps://127.0.0.1:{server.port}/m"
        watching = asyncio.create_task(ask(build, url, "-s", "5", seconds=7))
        while server.watching == 0:
            await asyncio.sleep(0.05)
        assert b"head one" in await ask(build, url, user="other")
        server.changed()  # but it has not: what follows is told once more at most
        await asyncio.sleep(0.2)
        for text in (b"head two", b"head three"):
            now[0] = text
            server.changed()
            await asyncio.sleep(0.5)
        out = await watching
        assert out.count(b"head two") == 1 and out.count(b"head three") >= 1, out
        for _ in range(40):
            await asyncio.sleep(0.05)
        assert server.watching == 0, "it has cancelled, or its session has ended"
        await server.close()

    run(test())
