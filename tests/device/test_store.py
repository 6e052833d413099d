# SPDX-License-Identifier: Apache-2.0
"""A device's database file: older ones migrate, newer and damaged ones are refused; no identity is made anew."""

from __future__ import annotations

import hashlib
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fl_tiny.device import enrol
from fl_tiny.device.intake import Sample
from fl_tiny.device.store import SCHEMA_VERSION, DeviceStore, HeldHead
from fl_tiny.errors import ConfigError, DataError, FlTinyError
from fl_tiny.protocol import signed, wire

SEED = bytes(32)


def head(version: int, body: bytes = b"b", epoch: int | None = None) -> HeldHead:
    described = wire.Head(bytes(32), version, hashlib.sha256(body).digest(), len(body), (), epoch=epoch)
    return HeldHead(version, signed.sign(wire.encode(described), SEED), body)


def enrolled(path: Path) -> Path:
    store = DeviceStore.create(path)
    store.put_head(head(3))
    store.put(did=b"d" * 16, enrolled=1, rounds=3, last_round=3)
    store.add_samples([Sample(bytes([label]) * 64, label % 3) for label in range(50)], 100)
    store.close()
    return path


def test_newer_foreign_and_empty_files_are_refused(tmp_path: Path) -> None:
    path = enrolled(tmp_path / "state.db")
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigError, match=r"99.*newer fl-tiny"):
        DeviceStore.open(path)
    for content in (b"", b"x" * 5000):
        path.write_bytes(content)
        for left in ("-wal", "-shm"):
            Path(f"{path}{left}").unlink(missing_ok=True)
        with pytest.raises(DataError, match="enrol anew"):
            DeviceStore.open(path)


def test_a_damaged_file_never_becomes_another_identity(tmp_path: Path) -> None:
    whole = enrolled(tmp_path / "state.db").read_bytes()
    (tmp_path / "secret").mkdir(mode=0o700)
    (tmp_path / "secret/device.key").write_bytes(SEED)
    (tmp_path / "secret/device.key").chmod(0o600)
    rng, refused = random.Random(7), 0
    for trial in range(120):
        damaged = bytearray(whole)
        if trial < 100:
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            start = rng.randrange(len(whole) // 4096) * 4096
            damaged[start : start + 4096] = rng.randbytes(4096)
        path = tmp_path / "state.db"
        path.write_bytes(damaged)
        try:
            store = DeviceStore.open(path)
            store.check()
            assert len(store.get("did")) == 16 and store.get("enrolled")
            assert store.head().rank in {(0, 3), (-1, -1)}, "a damaged head is fetched again"
            store.close()
        except FlTinyError as fault:
            refused += 1
            assert SCHEMA_VERSION and ("enrol" in str(fault) or "newer" in str(fault) or "malformed" in str(fault))
        for left in ("-wal", "-shm"):
            Path(f"{path}{left}").unlink(missing_ok=True)
    assert refused >= 20
    assert enrol._device_key(tmp_path) == SEED


def test_a_head_of_a_new_epoch_is_newer_and_takes_what_no_longer_fits_with_it(tmp_path: Path) -> None:
    store = DeviceStore.open(enrolled(tmp_path / "state.db"))
    assert head(1, epoch=1).rank > head(3).rank > head(2).rank
    assert head(9).rank < head(1, epoch=1).rank, "an old gateway that still runs changes nothing"
    store.settle(b"r", b"s", counted=False)
    store.put_head(head(1, epoch=1), anew=True, restored=True)
    assert store.residual() is None and store.get("last_round") == 1 and store.rounds == 3
