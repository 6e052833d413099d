# SPDX-License-Identifier: Apache-2.0
"""A device in rounds changes its codec as its network gets bad, and back as it mends; read from the ledger."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fl_tiny.protocol import signed, wire
from tests.e2e.fleet import Fleet
from tests.net.relay import Faults, Relay

PATIENCE_S = 150.0


class Network:
    """A relay in a thread of its own, between the device and its gateway."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, made: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return made()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


def codecs(gw: Path) -> list[int]:
    """Of each update in the ledger, oldest first."""
    with closing(sqlite3.connect(gw / "state.db")) as db:
        rows = db.execute("SELECT signed FROM ledger JOIN round USING(rid) WHERE status=0 ORDER BY number").fetchall()
    return [wire.decode(wire.Update, signed.payload_of(row[0])).encoding or 0 for row in rows]


def until(gw: Path, codec: int, in_a_row: int) -> list[int]:
    """The codecs of all rounds, once so many of the last have this one."""
    end = time.monotonic() + PATIENCE_S
    while (found := codecs(gw))[-in_a_row:] != [codec] * in_a_row:
        assert time.monotonic() < end, f"wanted {in_a_row} of {codec}, saw {found}"
        time.sleep(0.5)
    return found


def test_a_device_takes_int4_while_its_network_loses_and_int8_again_behind_it(tmp_path: Path, network: Network) -> None:
    fleet, relay = Fleet(tmp_path), None
    try:
        first = fleet.gateway()
        directory = fleet.device("d")
        first.signal(2)
        first.wait()
        fleet.gateway("--encoding", "auto", "--clients", 1, "--interval", 0)
        relay = network.call(lambda: Relay(fleet.port, Faults(), 7))
        (directory / "fl-tiny.toml").write_text(f'lan_timing = true\ngateway = "127.0.0.1:{relay.port}"\n')
        fleet.run(directory)
        good = until(fleet.gw, wire.Encoding.INT8, 3)
        assert set(good) == {wire.Encoding.INT8}
        relay.faults = Faults(lose=0.15)
        bad = until(fleet.gw, wire.Encoding.INT4, 3)
        relay.faults = Faults()
        mended = until(fleet.gw, wire.Encoding.INT8, 3)
        print(f"codecs by round: good {good}, 15 % lost each way {bad[len(good) :]}, mended {mended[len(bad) :]}")
    finally:
        fleet.end()
        if relay:
            network.call(relay.close)
