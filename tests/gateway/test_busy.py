# SPDX-License-Identifier: Apache-2.0
"""A gateway that cannot take what a device says: the device waits as it is told, and is not written off meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from fl_tiny.device.link import Link
from fl_tiny.gateway.service import Gateway
from fl_tiny.protocol import signed, wire

from ..inprocess import running
from ..link.light import Device, Harness, work
from .test_commit import full

BOOT = b"b" * 8


async def with_a_full_disk(
    gateway: Gateway, asked: Coroutine[Any, Any, Any], seconds: float = 0.3
) -> tuple[Any, float]:
    """What a request comes to whose first try meets a disk that takes nothing, and how long that took."""
    began = time.monotonic()
    full(gateway.store, True)
    task = asyncio.ensure_future(asked)
    await asyncio.sleep(seconds)
    full(gateway.store, False)
    return await task, time.monotonic() - began


async def update(gateway: Gateway, link: Link, device: Device) -> tuple[bytes, bytes]:
    offer = await link.offer()
    codes, samples = work(device.place, offer.number, device.parameters)
    said = wire.Update(offer.rid, device.did, offer.base, samples, hashlib.sha256(codes).digest(), len(codes))
    return signed.sign(wire.encode(said), device.seed), codes


def test_register_join_and_the_last_message_of_an_update_wait_as_max_age_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl_tiny.gateway.resources.BUSY_S", 1)
    harness = Harness(tmp_path, 1)
    device = harness.devices[0]

    async def test() -> None:
        async with running(harness.directory) as (gateway, server):
            link = await Link.open(("127.0.0.1", server.port), device.did.hex(), device.psk, lan_timing=True)
            told, waited = await with_a_full_disk(gateway, link.register(device.did, 1, BOOT))
            assert told.version == wire.VERSION and 1.0 <= waited < 3.0
            gateway._open(time.monotonic())
            rid = gateway.rounds.rid
            assert rid
            _, waited = await with_a_full_disk(gateway, link.answer(rid, wire.Said.JOIN))
            assert 1.0 <= waited < 3.0
            message, codes = await update(gateway, link, device)
            for at in range(0, len(codes), 1024):
                sid = wire.name_of(hashlib.sha256(codes).digest())
                await link._client.request("PUT", ("u", sid, str(at // wire.UNIT)), codes[at : at + 1024], 42)
            gateway.uploads.save()
            receipt, waited = await with_a_full_disk(gateway, link.upload(message, codes, again=True))
            assert receipt.status == wire.Status.ACCEPTED and 1.0 <= waited < 3.0
            assert gateway.store.head().number == 1 and gateway.store.faults() == []
            assert server.counters.handshakes_ok == 1, "all over the session that there was"
            await link.close()

    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_device_that_waits_as_it_was_told_is_not_written_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_tiny.gateway.resources.BUSY_S", 60)
    harness = Harness(tmp_path, 1)
    device = harness.devices[0]

    async def test() -> None:
        async with running(harness.directory) as (gateway, server):
            link = await Link.open(("127.0.0.1", server.port), device.did.hex(), device.psk, lan_timing=True)
            await link.register(device.did, 1, BOOT)
            gateway._open(time.monotonic())
            rid = gateway.rounds.rid
            assert rid
            now = time.monotonic()
            assert gateway.attendance.lost([device.did], now + 60) == [device.did], "a silent one is"
            full(gateway.store, True)
            waiting = asyncio.ensure_future(link.answer(rid, wire.Said.JOIN))
            await asyncio.sleep(0.3)
            assert gateway.attendance.lost([device.did], now + 60 * 1.5) == []
            assert gateway.attendance.lost([device.did], now + 60 * 1.5 + 16) == [device.did], "and this one later"
            waiting.cancel()
            await link.close()
            full(gateway.store, False)

    asyncio.run(asyncio.wait_for(test(), 30))
