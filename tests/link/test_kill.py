# SPDX-License-Identifier: Apache-2.0
"""Gateways killed at every named point: nothing acknowledged is lost, and the heads are those of a quiet run."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Entry, OpenRound
from fl_tiny.protocol.wire import Code

from .doomed import POINTS
from .light import Harness, Kill, Run, random_kills, unharmed


def killed(root: Path, devices: int, kills: list[Kill]) -> Run:
    """A run with these kills and one quiet round behind them; all that must hold does."""
    rounds = max(kill.number for kill in kills) + 1
    run = asyncio.run(Harness(root / "killed", devices).run(rounds, kills))
    assert run.kills == len(kills), "each of them was carried out"
    assert run.faults() == []
    assert run.heads()[: rounds + 1] == unharmed(root / "quiet", devices, rounds)
    assert all(len(device.receipts) >= rounds for device in run.devices)
    points = sorted({kill.point for kill in kills})
    where = points[0] if len(points) == 1 else f"{len(points)} points"
    print(f"Shows 2: {len(kills)} kills at {where}, {rounds} of {rounds} rounds x {devices} devices, heads bit-equal")
    return run


@pytest.mark.parametrize("point", POINTS)
def test_a_gateway_killed_at_a_named_point(tmp_path: Path, point: str) -> None:
    killed(tmp_path, 6, random_kills(1, range(1, 3), (point,), 6))


@pytest.mark.full
@pytest.mark.parametrize("point", POINTS)
def test_a_gateway_killed_twenty_times_at_a_named_point(tmp_path: Path, point: str) -> None:
    killed(tmp_path, 50, random_kills(2, range(1, 21), (point,), 50))


def test_each_round_has_a_kill(tmp_path: Path) -> None:
    killed(tmp_path, 10, random_kills(3, range(1, 9), POINTS, 10))


@pytest.mark.full
def test_a_hundred_rounds_of_fifty_devices_with_a_kill_each(tmp_path: Path) -> None:
    killed(tmp_path, 50, random_kills(4, range(1, 101), POINTS, 50))


def test_the_harness_sees_a_receipt_that_leaves_before_its_commit(tmp_path: Path) -> None:
    run = asyncio.run(Harness(tmp_path, 6).run(3, [Kill(1, "control")], control="early-receipt", limit_s=30))
    assert run.kills == 1 and any(fault.startswith("I3") for fault in run.faults())


def test_the_harness_sees_a_device_that_counts_twice(tmp_path: Path) -> None:
    """Control: without the ledger's PRIMARY KEY nothing keeps an update out that comes twice at once."""
    harness = Harness(tmp_path, 1)
    device, path = harness.devices[0], harness.directory / "state.db"
    store = Store.open(path)
    store.open_round(OpenRound(b"r" * 8, 1, 0, 60.0, "train"))
    entry = Entry(device.did, b"signed", 5, None, None, None, None, b"codes")
    assert store.receive(b"r" * 8, [entry]) == {}
    assert store.receive(b"r" * 8, [entry]) == {device.did: Code.CONFLICT}
    run = Run(harness.directory, [], 0, [])
    assert run.faults() == []
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE unkeyed AS SELECT * FROM ledger")
        db.execute("DROP TABLE ledger")
        db.execute("ALTER TABLE unkeyed RENAME TO ledger")
        db.commit()
    Store.open(path).receive(b"r" * 8, [entry])
    assert [fault[:2] for fault in run.faults()] == ["I2"]
