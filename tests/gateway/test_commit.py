# SPDX-License-Identifier: Apache-2.0
"""Group commit: many updates in few transactions, none counted twice, and a failed write changes nothing in memory."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.gateway.commit import Commits
from fl_tiny.gateway.models import Models
from fl_tiny.gateway.service import Gateway
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Entry
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.rounds import Answered, Came, RoundSettings
from fl_tiny.protocol.wire import Code, Said, Status

from ..link.light import Device, Harness, work


class Fleet:
    """A gateway without a network, an open round, and devices that have joined it."""

    def __init__(self, root: Path, devices: int, joined: int | None = None) -> None:
        harness = Harness(root, devices)
        self.store = Store.open(harness.directory / "state.db")
        self.devices = harness.devices
        self.gateway = opened(self.store, harness.directory, devices)
        self.commits = Commits(self.gateway)
        for device in self.devices:
            self.gateway.handle(Came(device.did))
            self.gateway.saw(self.store.device(device.did))  # type: ignore[arg-type]
        self.gateway._open(time.monotonic())
        assert self.gateway.rounds.rid
        self.rid = self.gateway.rounds.rid
        self.joined = self.devices[:joined]

    async def join(self) -> None:
        await asyncio.gather(*(self.commits.answer(Answered(d.did, self.rid, Said.JOIN)) for d in self.joined))

    def entry(self, device: Device, base: bytes = bytes(32)) -> Entry:
        codes, samples = work(device.place, 1, device.parameters)
        update = wire.Update(self.rid, device.did, base, samples, hashlib.sha256(codes).digest(), len(codes))
        return Entry(device.did, signed.sign(wire.encode(update), device.seed), samples, None, None, None, None, codes)


def opened(store: Store, directory: Path, devices: int) -> Gateway:
    seed = (directory / "secret/gateway.key").read_bytes()
    return Gateway(
        store, Models(store, directory, seed), seed, RoundSettings(devices, 1.0, 600.0, 0.0), wire.Train(1, 16), 2000
    )


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A word for each transaction of the ledger."""
    seen: list[str] = []
    for name in ("receive", "answer"):
        inner = getattr(Store, name)

        def method(*args: object, inner: object = inner, name: str = name) -> object:
            seen.append(name)
            return inner(*args)  # type: ignore[operator]

        monkeypatch.setattr(Store, name, method)
    yield seen


def test_a_burst_takes_few_transactions_and_its_last_update_publishes(tmp_path: Path, commits: list[str]) -> None:
    fleet = Fleet(tmp_path, 30)

    async def test() -> None:
        await fleet.join()
        assert fleet.store.head().number == 0
        got = await asyncio.gather(*(fleet.commits.receive(fleet.rid, fleet.entry(d)) for d in fleet.devices))
        assert set(got) == {Status.ACCEPTED}

    asyncio.run(test())
    assert commits == ["answer", "receive"]
    assert fleet.store.head().number == 1 and fleet.store.faults() == []
    assert fleet.store.rounds()[0]["received"] == 30


def test_the_same_update_at_once_counts_once(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 2)

    async def test() -> None:
        await fleet.join()
        entry = fleet.entry(fleet.devices[0])
        got = await asyncio.gather(*(fleet.commits.receive(fleet.rid, entry) for _ in range(3)))
        assert sorted(got) == [Status.ACCEPTED, Status.DUPLICATE, Status.DUPLICATE]
        other = fleet.entry(fleet.devices[1])
        again = asyncio.gather(
            fleet.commits.receive(fleet.rid, other),
            fleet.commits.receive(fleet.rid, fleet.entry(fleet.devices[1], b"o" * 32)),
            return_exceptions=True,
        )
        status, fault = await again
        assert status is Status.ACCEPTED and isinstance(fault, RemoteError) and fault.code == Code.CONFLICT

    asyncio.run(test())
    assert fleet.store.faults() == [] and fleet.store.rounds()[0]["received"] == 2


def test_who_is_revoked_while_its_update_waits_does_not_count(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 3)

    async def test() -> None:
        await fleet.join()
        waiting = [asyncio.ensure_future(fleet.commits.receive(fleet.rid, fleet.entry(d))) for d in fleet.devices]
        await asyncio.sleep(0)
        fleet.store.revoke(fleet.devices[1].did)  # by a command beside the gateway
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [getattr(d, "code", d) for d in done] == [Status.ACCEPTED, Code.REVOKED, Status.ACCEPTED]
        fleet.gateway.drop_revoked()

    asyncio.run(test())
    assert fleet.store.head().number == 1 and fleet.store.rounds()[0]["received"] == 2
    assert fleet.store.faults() == []


def test_a_failed_write_refuses_and_leaves_memory_as_the_disk_is(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 3, joined=2)
    path = tmp_path / "gw/state.db"

    async def test() -> None:
        await fleet.join()
        full(fleet.store, True)
        before = digest(path)
        waiting = [fleet.commits.receive(fleet.rid, fleet.entry(d)) for d in fleet.joined]
        joins = fleet.commits.answer(Answered(fleet.devices[2].did, fleet.rid, Said.JOIN))
        done = await asyncio.gather(*waiting, joins, return_exceptions=True)
        assert [type(d) for d in done] == [EnvironmentFault] * 3
        assert digest(path) == before and fleet.store.delivered(fleet.rid) == []
        assert fleet.gateway.rounds.rid == fleet.rid and fleet.devices[2].did not in fleet.gateway.rounds.waited_for()
        full(fleet.store, False)
        await fleet.commits.answer(Answered(fleet.devices[2].did, fleet.rid, Said.JOIN))
        await asyncio.gather(*(fleet.commits.receive(fleet.rid, fleet.entry(d)) for d in fleet.devices))

    asyncio.run(test())
    assert fleet.store.head().number == 1 and fleet.store.faults() == []


def full(store: Store, is_full: bool) -> None:
    """Let every write fail, as on a disk that is full or was remounted read-only."""
    store._db.execute(f"PRAGMA query_only={int(is_full)}")


def digest(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as db:
        return hashlib.sha256("\n".join(db.iterdump()).encode()).digest()
