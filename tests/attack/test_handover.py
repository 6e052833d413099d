# SPDX-License-Identifier: Apache-2.0
"""Somebody with devices' PSKs against the gateway's key: a forged hand-over, a stolen former key, an endless chain.

Each has a copy of a gateway's directory or backup, so devices open sessions with him (docs/protocol.md, "The gateway's
key").
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from inprocess import enrolled, running

from fl_tiny import statedir
from fl_tiny.device.agent import Agent
from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import RemoteError
from fl_tiny.gateway import keys, setup
from fl_tiny.gateway.gather import Made, make_version
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.store import Store
from fl_tiny.protocol import handover, signed, wire
from fl_tiny.protocol.aggregate import Published
from fl_tiny.protocol.update import HeadBody

MODEL = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"


@dataclass(frozen=True)
class Site:
    """A fleet's gateway, one device of it that was there, and the attacker's copy of the gateway as it was."""

    gw: Path
    device: Path
    stolen: Path


@pytest.fixture
def site(tmp_path: Path) -> Site:
    found = Site(tmp_path / "gw", tmp_path / "device", tmp_path / "stolen")
    setup.initialise(found.gw, MODEL, None, Wanted(None))

    async def enrol() -> None:
        async with running(found.gw) as (_, server):
            await enrolled(found.gw, server.port, found.device)

    asyncio.run(enrol())
    shutil.copytree(found.gw, found.stolen)
    return found


async def meet(gw: Path, device: Path) -> None:
    """The device's daemon comes by at whoever runs this directory."""
    async with running(gw) as (_, server):
        with closing(DeviceStore.open(device / statedir.DATABASE)) as store:
            store.put(gateway=f"127.0.0.1:{server.port}")
        has_head = asyncio.Event()
        agent = Agent(device, lambda event, facts: has_head.set() if event == "round" else None)
        work = [asyncio.ensure_future(each) for each in (agent.run(once=True, rounds=None), has_head.wait())]
        await asyncio.wait(work, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        for task in work:
            task.cancel()
            with contextlib.suppress(RemoteError, asyncio.CancelledError):
                await task


def held(device: Path) -> tuple[bytes, int]:
    """The key that the device believes in, and the number of its head."""
    with closing(DeviceStore.open(device / statedir.DATABASE)) as store:
        return store.get("gateway_pk"), store.head().version


def publish(gw: Path, seed: bytes) -> None:
    """A new head of zeros, signed by ``seed``."""
    with closing(Store.open(gw / statedir.DATABASE)) as store:
        old = wire.decode(wire.Head, signed.payload_of(store.head().signed))
        made = Made(Published(HeadBody(bytes(old.size), old.scales), b""), store.head().steps, None)
        store.add_first(make_version(store.head().number + 1, made, old.manifest, seed))


def attack_forged(site: Site) -> tuple[bytes, int]:
    """He has PSKs, not the key: a hand-over to his key that another key signs, and a head by it."""
    his = os.urandom(32)
    with closing(Store.open(site.stolen / statedir.DATABASE)) as store, store.write() as db:
        db.execute(
            "INSERT INTO handover VALUES(1,?,?)",
            (store.get("gateway_pk"), handover.handed_over(1, os.urandom(32), his)),
        )
        db.execute("UPDATE meta SET value=? WHERE key='gateway_pk'", (signed.public_key(his),))
    statedir.write_secret(site.stolen, keys.GATEWAY_KEY, his)
    publish(site.stolen, his)
    asyncio.run(meet(site.stolen, site.device))
    return held(site.device)


def test_forged_a_hand_over_by_another_key_moves_no_device(site: Site) -> None:
    before = held(site.device)
    assert attack_forged(site) == before


def test_control_forged(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that believes any hand-over takes his key and his head."""
    monkeypatch.setattr(
        handover, "checked", lambda message, *_: wire.decode(handover.Handover, signed.payload_of(message)).pk
    )
    before = held(site.device)
    key, head = attack_forged(site)
    assert key != before[0] and head == 1


def attack_stolen(site: Site) -> tuple[bytes, int]:
    """He has a backup from before the new key: he hands the old key over to one of his own, and signs a head."""
    keys.rekey(site.stolen)
    publish(site.stolen, (site.stolen / "secret" / keys.GATEWAY_KEY).read_bytes())
    asyncio.run(meet(site.stolen, site.device))
    return held(site.device)


def follow(site: Site) -> tuple[bytes, int]:
    """The gateway gets a new key and publishes a head; the device follows."""
    keys.rekey(site.gw)
    publish(site.gw, (site.gw / "secret" / keys.GATEWAY_KEY).read_bytes())
    asyncio.run(meet(site.gw, site.device))
    with closing(Store.open(site.gw / statedir.DATABASE)) as store:
        assert held(site.device) == (store.get("gateway_pk"), 1)
    publish(site.stolen, (site.stolen / "secret" / keys.GATEWAY_KEY).read_bytes())  # so that his head is newer
    return held(site.device)


def test_stolen_a_former_key_moves_no_device_that_has_met_the_new_one(site: Site) -> None:
    before = follow(site)
    assert attack_stolen(site) == before


def test_control_stolen(site: Site) -> None:
    """A device that has not met the new key follows him: what the hand-over does not protect (SECURITY.md)."""
    before = held(site.device)
    key, head = attack_stolen(site)
    assert key != before[0] and head == 1


def attack_endless(site: Site, links: int) -> tuple[bytes, int, int]:
    """He has the key in use, and a chain of so many hand-overs before the head. The last number is what was asked."""
    seed = (site.stolen / "secret" / keys.GATEWAY_KEY).read_bytes()
    chain: dict[int, bytes] = {}
    for serial in range(1, links + 1):
        new = os.urandom(32)
        number = min(serial, wire.MOST_KEYS)  # a larger number cannot be said
        chain[serial], seed = handover.handed_over(number, seed, new), new
    asked = []

    def serve(_store: Store, serial: int) -> bytes | None:
        asked.append(serial)
        return chain.get(serial)

    publish(site.stolen, seed)
    with pytest.MonkeyPatch.context() as his:  # his own gateway, not the device
        his.setattr("fl_tiny.gateway.resources.handover_to", serve)
        asyncio.run(meet(site.stolen, site.device))
    return (*held(site.device), len(asked))


def test_endless_a_chain_of_a_thousand_keys_is_given_up(site: Site) -> None:
    before = held(site.device)
    key, head, asked = attack_endless(site, 1000)
    assert (key, head) == before and asked == wire.MOST_KEYS


def test_control_endless(site: Site) -> None:
    """The same chain in as many steps as there may be is followed."""
    before = held(site.device)
    key, head, asked = attack_endless(site, 200)
    assert key != before[0] and head == 1 and asked == 201
