# SPDX-License-Identifier: Apache-2.0
"""A foreign CoAP stack as a read-only peer of a real gateway: libcoap's clients by OpenSSL and by GnuTLS."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import cbor2
import pytest
from e2e.fleet import Fleet, cli

from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.submission import Submission
from tests.e2e.test_resume import linked, offered
from tests.link.light import PARAMETERS, WIDE, Harness, free_port, work

CLIENTS = ("coap-client-openssl", "coap-client-gnutls")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    found = Fleet(tmp_path_factory.mktemp("peer"))
    found.gateway()
    yield found
    found.end()


def get(client: str, uri: str, identity: str, key: str) -> bytes:
    """What the client prints within three seconds."""
    if shutil.which(client) is None:
        pytest.skip(f"{client} is not installed: Debian's libcoap3-bin has it")
    words = [client, "-m", "get", "-u", identity, "-k", key, "-B", "3", "-o", "-", uri]
    done = subprocess.run(words, capture_output=True, check=False, timeout=30)
    return done.stdout


@pytest.mark.parametrize("client", CLIENTS)
def test_a_peer_reads_the_directory_and_itself_and_nothing_with_a_wrong_key(fleet: Fleet, client: str) -> None:
    peer = cli("gateway", "pair", fleet.gw, "--peer", client[-10:])
    assert len(peer["key"]) == 32
    base = f"coaps://127.0.0.1:{fleet.port}"
    assert b"</d>" in get(client, f"{base}/.well-known/core", peer["identity"], peer["key"])
    assert cbor2.loads(get(client, f"{base}/d", peer["identity"], peer["key"])) == {0: 17, 2: "peer", 3: 0}
    assert b"</d>" not in get(client, f"{base}/.well-known/core", peer["identity"], "x" * 32)
    assert b"</d>" not in get(client, f"{base}/.well-known/core", "peer:nobody", peer["key"])
    assert get(client, f"{base}/o", peer["identity"], peer["key"]) == b"", "a peer may not read offers"


def test_plain_coap_on_that_port_gets_nothing(fleet: Fleet) -> None:
    peer = cli("gateway", "pair", fleet.gw, "--peer", "plain")
    found = get(CLIENTS[0], f"coap://127.0.0.1:{fleet.port}/.well-known/core", peer["identity"], peer["key"])
    assert found == b""


def test_a_peers_name_is_taken_once(fleet: Fleet, tmp_path: Path) -> None:
    cli("gateway", "pair", fleet.gw, "--peer", "twice")
    cli("gateway", "pair", fleet.gw, "--peer", "twice", code=78)


def test_a_watching_peer_gets_the_head_that_a_round_publishes(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    try:
        gateway = fleet.gateway("--clients", "1", "--rounds", "1")
        peer = cli("gateway", "pair", fleet.gw, "--peer", "watcher")
        if shutil.which(CLIENTS[0]) is None:
            pytest.skip(f"{CLIENTS[0]} is not installed: Debian's libcoap3-bin has it")
        uri = f"coaps://127.0.0.1:{fleet.port}/m"
        words = [CLIENTS[0], "-m", "get", "-s", "60", "-u", peer["identity"], "-k", peer["key"], "-B", "60", uri]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as watcher:
            fleet.run(fleet.device("board"))
            gateway.event("round", state="published")
            time.sleep(1.0)
            watcher.kill()
            out, _ = watcher.communicate(timeout=10)
        assert out.count(b"\xd2\x84\x43\xa1\x01\x32") == 2, out
    finally:
        fleet.end()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_plain_client_delivers_an_update_by_block1(tmp_path: Path, client: str) -> None:
    if shutil.which(client) is None:
        pytest.skip(f"{client} is not installed: Debian's libcoap3-bin has it")
    harness, port = Harness(tmp_path, 1, model=WIDE), free_port()
    device = harness.devices[0]
    device.psk = b"a key that coap-client can write"
    with closing(sqlite3.connect(harness.directory / "state.db")) as db:
        db.execute("UPDATE device SET psk=?", (device.psk,))
        db.commit()
    codes, samples = work(0, 1, PARAMETERS[WIDE])

    async def test() -> list[int]:
        gateway = await harness.gateway(port)
        link = await linked(harness, port)
        offer = await offered(link, device.did)
        digest = hashlib.sha256(codes).digest()
        update = wire.Update(offer.rid, device.did, offer.base, samples, digest, len(codes))
        message = signed.sign(wire.encode(update), device.seed)
        (tmp_path / "submission").write_bytes(wire.encode(Submission(message, codes)))
        found = []
        for _ in range(2):
            words = [client, "-m", "post", "-u", device.did.hex(), "-k", device.psk.decode(), "-B", "10", "-b", "1024"]
            words += ["-f", str(tmp_path / "submission"), "-o", "-", f"coaps://127.0.0.1:{port}/u"]
            process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
            found.append(wire.decode(wire.Receipt, (await process.communicate())[0]).status)
        await link.close()
        gateway.terminate()
        await gateway.wait()
        return found

    assert asyncio.run(asyncio.wait_for(test(), 60)) == [wire.Status.ACCEPTED, wire.Status.DUPLICATE]
