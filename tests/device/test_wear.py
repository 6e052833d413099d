# SPDX-License-Identifier: Apache-2.0
"""Bytes that a device's database hands to the disk in a day at a round an hour: no more than 2 MB."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

from fl_tiny.device.left import Body
from fl_tiny.device.store import DeviceStore, HeldHead, Journal, Kept

CODES = 12_810  # of a 1280x10 head


def written() -> int:
    """Bytes that this process has handed to write calls."""
    return int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0])


def test_a_day_of_rounds_wears_the_flash_little(tmp_path: Path) -> None:
    store = DeviceStore.create(tmp_path / "state.db")

    def head(version: int) -> HeldHead:
        return HeldHead(version, os.urandom(220), os.urandom(CODES + 10))

    store.put_head(head(0))
    store.put_kept(Kept(0, "model", False, bytes(32), head(0)))
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = written()
    for number in range(1, 25):
        left = (random.Random(number).randrange(-128, 129) for _ in range(CODES))  # what rounding to a step leaves
        residual, steps, newer = struct.pack(f"<{CODES}h", *left), os.urandom(16), head(number)
        owed = Journal(number, os.urandom(220), os.urandom(CODES), residual, steps)
        store.put_journal(owed, Body(os.urandom(8), number, CODES, 160))
        store.settle(residual, steps, counted=True)
        store.put_head(newer)
        store.put_kept(Kept(number, "personal", True, bytes(32), newer, patch=os.urandom(CODES)))
    store.close()
    assert written() - before <= 2_000_000
