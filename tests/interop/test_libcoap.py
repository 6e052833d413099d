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
    limits = Limits(handshakes_per_s=1000, pairings_per_s=1000)
    server = await Server.start(answer, known.get, "[::]:0", limits=limits, **more)
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
def test_block1_is_refused_for_now(build: str) -> None:
    async def test() -> None:
        async with gateway() as server:
            with tempfile.NamedTemporaryFile() as body:
                body.write(BODY)
                body.flush()
                url = f"coaps://127.0.0.1:{server.port}/u"
                out = await ask(build, url, "-m", "put", "-b", "1024", "-f", body.name, user="dev")
                assert b"4.13" in out

    run(test())


@pytest.mark.parametrize("build", BUILDS)
def test_our_client_reads_from_libcoaps_server(build: str) -> None:
    async def test() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1] - 1  # coaps is served on the port after the plain one
        command = [program(f"coap-server-{build}"), "-A", "127.0.0.1", "-p", str(port), "-k", KEY.decode(), "-h", "lab"]
        server = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, cwd=os.sep
        )
        try:
            await asyncio.sleep(0.5)
            client = await Client.connect("127.0.0.1", port + 1, "dev", KEY, lan_timing=True)
            assert b"This is a test server" in (await client.request("GET", ())).payload
            assert b"</time>" in await client.fetch((".well-known", "core"), size_limit=5000)
            assert (await client.request("GET", ("nothing",))).code == "4.04"
            await client.close()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("fl_tiny.net.client.HANDSHAKE_S", 2.0)
                with pytest.raises(RemoteError):
                    await Client.connect("127.0.0.1", port + 1, "dev", KEY[::-1])
        finally:
            server.kill()
            await server.wait()

    run(test())


def test_a_constrained_peer_is_served_only_when_the_operator_says_so() -> None:
    async def test() -> None:
        for constrained in (False, True):
            async with gateway(constrained_peers=constrained) as server:
                url = f"coaps://127.0.0.1:{server.port}/.well-known/core"
                assert LINKS in await ask("openssl", url)  # ordinary peers are served in both

    run(test())
