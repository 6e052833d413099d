# SPDX-License-Identifier: Apache-2.0
"""An upload that a kill -9 of the gateway interrupts goes on at what is on the disk."""

from __future__ import annotations

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

from fl_tiny.device.link import Link
from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.net.coap import Client
from fl_tiny.protocol import signed, wire
from tests.link.light import PARAMETERS, WIDE, Harness, free_port, work
from tests.net.relay import Faults, Relay

from .fleet import Fleet, cli


async def linked(harness: Harness, port: int) -> Link:
    """A device's link, once the gateway is up."""
    device = harness.devices[0]
    for _ in range(20):
        try:
            link = await Link.open(("127.0.0.1", port), device.did.hex(), device.psk, lan_timing=True)
        except (EnvironmentFault, RemoteError):
            await asyncio.sleep(0.3)
        else:
            await link.register(device.did)
            return link
    raise AssertionError("no gateway")


async def offered(link: Link, did: bytes) -> wire.Offer:
    end = time.monotonic() + 20
    while (await link.heartbeat(wire.Heartbeat(0, 50))).rid is None:
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    offer = await link.offer()
    await link.answer(offer.rid, wire.Said.JOIN)
    return offer


def test_a_device_works_over_an_mtu_of_576(tmp_path: Path) -> None:
    """From enrolment to the head of a round; 576 B are IPv4's least, 28 of them are headers."""
    fleet = Fleet(tmp_path)

    async def test() -> None:
        gateway = fleet.gateway("--rounds", 1, "--clients", 1, "--interval", 0)
        relay = Relay(fleet.port, Faults(larger_than=576 - 28), 1)
        code = cli("gateway", "pair", fleet.gw)["code"]
        directory = tmp_path / "d"
        words = ("device", "enroll", directory, "--code", code, "--gateway", f"127.0.0.1:{relay.port}")
        await asyncio.to_thread(cli, *words)
        await asyncio.to_thread(cli, "samples", "add", directory, "--data", fleet.data("d", 60, 0))
        run = fleet.run(directory, "--rounds", 1)
        assert await asyncio.to_thread(run.wait) == 0 and await asyncio.to_thread(gateway.wait) == 0
        assert cli("gateway", "rounds", fleet.gw)[0]["received"] == 1 and relay.lost
        relay.close()

    try:
        asyncio.run(asyncio.wait_for(test(), 90))
    finally:
        fleet.end()


def test_an_upload_goes_on_where_a_killed_gateway_was(tmp_path: Path, monkeypatch: Any) -> None:
    harness, port = Harness(tmp_path, 1, model=WIDE), free_port()
    device = harness.devices[0]
    codes, samples = work(0, 1, PARAMETERS[WIDE])
    digest = hashlib.sha256(codes).digest()
    half = bytes([0xFF] * 6)  # of 101 units the first 48, which are six chunks

    async def test() -> list[str]:
        gateway = await harness.gateway(port)
        link = await linked(harness, port)
        offer = await offered(link, device.did)
        update = wire.Update(offer.rid, device.did, offer.base, samples, digest, len(codes))
        message = signed.sign(wire.encode(update), device.seed)
        rest = bytes([0] * 6 + [0xFF] * 7)
        name = wire.name_of(digest)
        await link._client.put_all(
            lambda at: ("u", name, str(at // 128)), codes, 42, held=rest, check=lambda answer: None
        )
        await asyncio.sleep(0.3)
        gateway.kill()
        await gateway.wait()
        await link.close()
        gateway = await harness.gateway(port)
        link = await linked(harness, port)
        await link.answer(offer.rid, wire.Said.JOIN)  # who registers anew has to say that it is still at it
        held = wire.decode(wire.Held, (await link._client.request("GET", ("u", name))).payload)
        assert held.bitmap[:6] == half and not any(held.bitmap[6:])
        sent: list[str] = []
        put_all = Client.put_all

        async def watched(self: Client, path_of: Any, *args: Any, **named: Any) -> None:
            def noted(at: int) -> tuple[str, ...]:
                sent.append(path_of(at)[2])
                return tuple(path_of(at))

            await put_all(self, noted, *args, **named)

        monkeypatch.setattr(Client, "put_all", watched)
        assert (await link.upload(message, codes, again=True)).status == wire.Status.ACCEPTED
        await link.close()
        gateway.terminate()
        await gateway.wait()
        return sent

    sent = asyncio.run(asyncio.wait_for(test(), 90))
    assert sorted(map(int, sent)) == list(range(48, 101, 8))
