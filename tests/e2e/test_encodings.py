# SPDX-License-Identifier: Apache-2.0
"""Updates in each encoding between real processes: rounds are published, and their bytes are what they should be."""

from __future__ import annotations

import sqlite3

import pytest

from fl_tiny.protocol import signed, wire

from .fleet import Fleet

PARAMETERS = 224 * 16 + 16 + 16 * 4 + 4


@pytest.mark.parametrize(
    ("encoding", "sent", "least", "most"),
    [
        ("auto", 0, PARAMETERS, PARAMETERS),  # loopback is a good link
        ("int4", 1, PARAMETERS // 2, PARAMETERS // 2 + 1),
        ("topk", 2, 2, PARAMETERS // 8),
    ],
)
def test_rounds_run_with_each_encoding(fleet: Fleet, encoding: str, sent: int, least: int, most: int) -> None:
    gateway = fleet.gateway("--encoding", encoding, "--rounds", 2, "--interval", 0, "--clients", 2)
    for name in ("a", "b"):
        fleet.run(fleet.device(name), "--rounds", 2)
    assert gateway.wait() == 0
    with sqlite3.connect(fleet.gw / "state.db") as db:
        updates = [
            wire.decode(wire.Update, signed.payload_of(row[0])) for row in db.execute("SELECT signed FROM ledger")
        ]
    assert len(updates) == 4
    assert all((update.encoding or 0) == sent and least <= update.size <= most for update in updates)
