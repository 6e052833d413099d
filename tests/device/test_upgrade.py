# SPDX-License-Identifier: Apache-2.0
"""A device's way to a newer model, against a real gateway that gives it something else than what was signed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inprocess import enrolled, running

from fl_tiny import statedir
from fl_tiny.device import slots, upgrade
from fl_tiny.device.layout import BASE_B
from fl_tiny.device.link import Link
from fl_tiny.device.store import DeviceStore
from fl_tiny.device.upgrade import Upgrade
from fl_tiny.errors import RemoteError
from fl_tiny.gateway import manifests, models, setup
from fl_tiny.gateway.manifests import Wanted, settle, sign
from fl_tiny.gateway.models import Held
from fl_tiny.gateway.service import Gateway
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.manifest import ManifestFile
from fl_tiny.protocol.wire import Code

BENCH = Path(__file__).parents[1] / "models/bench"
FIRST, SECOND = BENCH / "head_64x10.tflite", BENCH / "head_1280x10.tflite"


@contextlib.asynccontextmanager
async def meeting(root: Path) -> AsyncIterator[tuple[Gateway, Upgrade, Link, DeviceStore]]:
    """A gateway with a newer model on its way, and an enrolled device in a session with it."""
    gw, device = root / "gw", root / "dev"
    setup.initialise(gw, FIRST, None, Wanted(None))
    async with running(gw) as (gateway, server):
        did = await enrolled(gw, server.port, device)
        made = settle(SECOND, None, Wanted(None), counter=2)
        key = statedir.read_secret(gw, manifests.MODEL_KEY)
        written = wire.decode(ManifestFile, sign(key, made), limit=ManifestFile.LIMIT)
        models.publish(gw, gateway.store, SECOND, written, 1.0)
        gateway.models.refresh()
        store = DeviceStore.open(device / statedir.DATABASE)
        link = await Link.open(("127.0.0.1", server.port), did.hex(), statedir.read_secret(device, "psk"))
        try:
            await link.register(did)
            yield gateway, Upgrade(device, store, lambda event, facts: None), link, store
        finally:
            await link.close()
            store.close()


def resigned(gateway: Gateway, held: Held) -> Held:
    seed = gateway._seed
    return replace(held, signed=signed.sign(signed.payload_of(held.signed), seed))


def other_head(gateway: Gateway, held: Held) -> Held:
    return replace(held, first=replace(held.first, signed=gateway.models.current.first.signed))


LIES: dict[str, tuple[Callable[[Gateway, Held], Held], Code]] = {
    "one bit of the file": (
        lambda _, held: replace(held, data=bytes([held.data[0] ^ 1]) + held.data[1:]),
        Code.CONFLICT,
    ),
    "another file of its size": (lambda _, held: replace(held, data=bytes(len(held.data))), Code.CONFLICT),
    "signed by the gateway": (resigned, Code.SIGNATURE),
    "the manifest that is held already": (other_head, Code.DOWNGRADE),
}


@pytest.mark.parametrize("name", LIES)
def test_what_a_gateway_makes_of_a_model_is_refused_and_reported(tmp_path: Path, name: str) -> None:
    lie, code = LIES[name]

    async def test() -> None:
        async with meeting(tmp_path) as (gateway, wanted, link, store):
            told = await beat(wanted, link)
            assert told.model == 2
            assert gateway.models.staged is not None
            gateway.models.staged = lie(gateway, gateway.models.staged)
            await wanted.consider(link, told.model)
            assert wanted.trial is None
            refusal = slots.refusal(store)
            assert refusal is not None and (refusal.counter, refusal.code) == (2, code)
            assert (await beat(wanted, link)).model is None, "the gateway knows, and asks no more"
            assert "refused model 2" in setup.device_rows(gateway.store)[0]["trouble"]
            await wanted.consider(link, 2)
            assert wanted.trial is None
            assert slots.manifest_of(store.get("manifest")).counter == 1

    asyncio.run(test())


def test_a_fetch_that_was_cut_behind_the_file_does_not_fetch_it_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with meeting(tmp_path) as (gateway, wanted, link, _):
            await wanted.consider(link, 2)
            assert wanted.trial is not None
            assert (tmp_path / "dev/model" / BASE_B).read_bytes() == SECOND.read_bytes()
            wanted.trial = None
            assert gateway.models.staged is not None
            gateway.models.staged = replace(gateway.models.staged, data=b"gone")
            await wanted.consider(link, 2)
            assert wanted.trial is not None

    asyncio.run(test())


def test_a_file_that_rots_in_a_running_device_is_seen_within_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with meeting(tmp_path) as (gateway, wanted, link, store):
            base = slots.base_path(tmp_path / "dev", store)
            base.write_bytes(base.read_bytes()[:-1] + b"\xff")
            await wanted.consider(link, None)
            assert not slots.is_whole(base, store.get("manifest")), "a file is not read at every heartbeat"
            monkeypatch.setattr(upgrade, "DAY_S", 0.0)
            await wanted.consider(link, None)
            assert base.read_bytes() == FIRST.read_bytes()

            gateway.models.current = replace(gateway.models.current, data=b"gone")  # the fleet has another by now
            base.write_bytes(b"rotten")
            await wanted.consider(link, None)  # says so in its log, and goes on

    asyncio.run(test())


def test_a_refusal_ends_no_session_and_a_revocation_does(tmp_path: Path) -> None:
    async def test() -> None:
        async with meeting(tmp_path) as (gateway, wanted, link, store):
            gateway.store.revoke(store.get("did"))
            with pytest.raises(RemoteError) as refused:
                await wanted.consider(link, 2)
            assert refused.value.code == Code.REVOKED
            assert slots.refusal(store) is None

    asyncio.run(test())


async def beat(wanted: Upgrade, link: Link) -> Any:
    return await link.heartbeat(wire.Heartbeat(0, 0, None, *wanted.heartbeat()))
