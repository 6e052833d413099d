# SPDX-License-Identifier: Apache-2.0
"""A gateway's database file: older ones migrate in one piece, newer and damaged ones are refused and left alone."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from inprocess import running

from fl_tiny import statedir
from fl_tiny.errors import ConfigError, Conflict, DataError, EnvironmentFault, FlTinyError
from fl_tiny.gateway import setup, store, tables
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Entry, OpenRound, Version

from .test_exact import V1

MODEL = Path(__file__).parents[1] / "models/bench/head_224-16-4.tflite"
V2 = f"""{V1}
CREATE TABLE pairing(token BLOB PRIMARY KEY, secret BLOB NOT NULL, left_s REAL NOT NULL, pk BLOB) STRICT;
CREATE TABLE peer(name TEXT PRIMARY KEY, psk BLOB NOT NULL) STRICT;
ALTER TABLE round ADD COLUMN kind TEXT NOT NULL DEFAULT 'train';
CREATE TABLE gram(did BLOB PRIMARY KEY REFERENCES device(did), samples INT NOT NULL, body BLOB NOT NULL,
  outlier REAL) STRICT;
CREATE TABLE strategy(name TEXT PRIMARY KEY, numbers BLOB NOT NULL) STRICT;
INSERT INTO device VALUES(x'aa', x'bb', x'cc', 'active', 'kitchen', 5, 0, 0, 1.0, 'boot');
PRAGMA user_version=2;
"""
V3 = f"""{V2}
ALTER TABLE device ADD COLUMN lacks INT;
CREATE TABLE model(counter INTEGER PRIMARY KEY, pk BLOB NOT NULL, signed BLOB NOT NULL, canary BLOB,
  share REAL NOT NULL, first INT REFERENCES version(number)) STRICT;
CREATE TABLE holds(did BLOB PRIMARY KEY, model INT NOT NULL, refused INT, code INT, why TEXT) STRICT;
CREATE TABLE boot(did BLOB PRIMARY KEY, boots INT NOT NULL, boot BLOB NOT NULL, before BLOB, why TEXT) STRICT;
CREATE TABLE rekey(did BLOB PRIMARY KEY, gen INT NOT NULL, pk BLOB, psk BLOB) STRICT;
CREATE TABLE wrong(token BLOB PRIMARY KEY, tries INT NOT NULL) STRICT;
PRAGMA user_version=3;
"""


def made(path: Path, script: str) -> Path:
    path.touch()
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)
    return path


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as db:
        return [*db.iterdump(), str(db.execute("PRAGMA user_version").fetchone())]


@pytest.mark.parametrize("script", [V2, V3], ids=["2", "3"])
def test_a_file_of_an_older_version_is_read(tmp_path: Path, script: str) -> None:
    opened = Store.open(made(tmp_path / "state.db", script))
    assert opened.rows("SELECT did, sid, at, rid, body FROM chunk") == []
    assert [(d.did, d.name, d.state) for d in opened.devices()] == [(b"\xaa", "kitchen", "active")]
    assert opened.rounds()[0]["state"] == "aborted" and opened.head().number == 0 and opened.epoch is None
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (tables.SCHEMA_VERSION,)


V5 = f"""{V3}
CREATE TABLE chunk(did BLOB NOT NULL, sid TEXT NOT NULL, at INT NOT NULL, rid BLOB NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY(did, at)) STRICT;
CREATE TABLE bundle(digest BLOB PRIMARY KEY, board TEXT UNIQUE NOT NULL, release TEXT NOT NULL, size INT NOT NULL,
  share REAL NOT NULL) STRICT;
CREATE TABLE runs(did BLOB PRIMARY KEY, board TEXT NOT NULL, release TEXT NOT NULL, refused BLOB, code INT,
  why TEXT) STRICT;
INSERT INTO rekey VALUES(x'01', 3, x'11', x'99'), (x'02', 0, x'11', x'98'), (x'03', 0, x'bb', x'97'),
  (x'04', 1, x'44', x'96'), (x'05', 2, NULL, NULL);
INSERT INTO device(did, pk, psk, state, name) VALUES(x'06', x'60', x'00', 'active', '{"aB" * 16}');
PRAGMA user_version=5;
"""


def test_keys_that_wait_twice_wait_no_more_in_a_migrated_file_and_no_name_is_an_id(tmp_path: Path) -> None:
    found = Store.open(made(tmp_path / "state.db", V5))
    rows = {did: rest for did, *rest in found.rows("SELECT * FROM rekey")}
    assert rows[b"\x01"] == [3, None, None] and rows[b"\x02"] == [0, None, None], "which of the two is nobody's guess"
    assert rows[b"\x03"] == [0, None, None], "a device has that key"
    assert rows[b"\x04"] == [1, b"D", b"\x96"] and rows[b"\x05"] == [2, None, None]
    assert [d.name for d in found.devices()] == ["kitchen", None]
    with pytest.raises(Conflict), found.write() as db:
        db.execute("UPDATE rekey SET pk=x'44' WHERE did=x'01'")


def test_one_damaged_row_keeps_no_gateway_from_starting(tmp_path: Path) -> None:
    gw = tmp_path / "gw"
    setup.initialise(gw, MODEL, None, Wanted(None))
    with closing(sqlite3.connect(gw / statedir.DATABASE)) as db:
        db.execute(
            "INSERT INTO device(did, pk, psk, state, name) VALUES(x'aa', x'bb', x'cc', 'active', CAST(x'ff41' AS TEXT))"
        )
        db.execute("INSERT INTO runs(did, board, release) VALUES(x'aa', 'a board', 'no number')")
        db.execute("INSERT INTO meta VALUES('forget:no id', 1)")
        db.commit()

    async def start() -> None:
        async with running(gw) as (gateway, _):
            gateway._forget()
            assert gateway.bundles.wanted(b"\xaa") is None
            assert [d.name for d in gateway.store.devices()] == ["\ufffdA"]

    asyncio.run(start())


def test_a_migration_that_is_cut_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "state.db", V2)
    before = dump(path)
    newest = tables.SCHEMA_VERSION
    cut = {**tables.MIGRATIONS, newest: "CREATE TABLE half(x INT); DELETE FROM device; SELECT * FROM nowhere;"}
    monkeypatch.setattr(store, "MIGRATIONS", cut)
    monkeypatch.setattr(store, "SCHEMA_VERSION", newest + 1)
    with pytest.raises(EnvironmentFault, match="nowhere"):
        Store.open(path)
    monkeypatch.undo()
    assert Store.open(path).devices()
    assert [line for line in dump(path) if "half" in line] == [] and len(dump(path)) >= len(before)


def test_a_newer_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = made(tmp_path / "state.db", f"{V2}PRAGMA user_version=99;")
    before = dump(path)
    with pytest.raises(ConfigError, match=r"99.*newer fl-tiny"):
        Store.open(path)
    assert dump(path) == before


def test_a_missing_or_foreign_file_never_becomes_an_empty_fleet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="init"):
        Store.open(tmp_path / "state.db")
    assert not (tmp_path / "state.db").exists()
    for content in (b"", b"x" * 5000):
        (tmp_path / "state.db").write_bytes(content)
        with pytest.raises(DataError, match="restore"):
            Store.open(tmp_path / "state.db")
    made(tmp_path / "other.db", "CREATE TABLE t(x);")
    with pytest.raises(DataError, match="restore"):
        Store.open(tmp_path / "other.db")


def test_damaged_bytes_are_found_or_harm_nothing(tmp_path: Path) -> None:
    setup.initialise(tmp_path / "gw", MODEL, None, setup.Wanted(2))
    whole = (tmp_path / "gw/state.db").read_bytes()
    rng = random.Random(5)
    refused = 0
    for trial in range(120):
        damaged = bytearray(whole)
        if trial < 100:
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            start = rng.randrange(len(whole) // 4096) * 4096
            damaged[start : start + 4096] = rng.randbytes(4096)
        path = tmp_path / f"{trial}.db"
        path.write_bytes(damaged)
        try:
            opened = Store.open(path)
        except FlTinyError as fault:
            assert "restore" in str(fault) or "newer" in str(fault) or "malformed" in str(fault), fault
            refused += 1
            continue
        try:
            refused += bool(opened.faults())
        except DataError as fault:
            assert "restore" in str(fault)
            refused += 1
        opened.close()
    assert refused >= 20, "every page of noise is found"


def test_a_long_history_is_checked_quickly_and_a_wrong_weight_is_found(tmp_path: Path) -> None:
    setup.initialise(tmp_path / "gw", MODEL, None, setup.Wanted(2))
    path = tmp_path / "gw/state.db"
    with closing(sqlite3.connect(path)) as db:
        db.executemany(
            "INSERT INTO device(did, pk, psk, state) VALUES(?,?,x'00','active')", [(b"%d" % n,) * 2 for n in range(10)]
        )
        for number in range(1, 4001):
            rid = b"%d" % number
            db.execute("INSERT INTO version VALUES(?,x'00',x'00',x'00',x'',x'',30)", (number,))
            db.execute(
                "INSERT INTO round(rid, number, base, state, left_s) VALUES(?,?,?,'published',0)",
                (rid, number, number - 1),
            )
            rows = [(rid, b"%d" % n, number) for n in range(10)]
            db.executemany(
                "INSERT INTO ledger(rid, did, signed, samples, status, consumed_by) VALUES(?,?,x'00',3,0,?)", rows
            )
        db.commit()
    opened = Store.open(path)
    began = time.monotonic()
    assert opened.faults() == []
    assert time.monotonic() - began < 5, "half a year of hourly rounds: seconds, not minutes"
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE version SET weight=31 WHERE number=7")
        db.commit()
    assert opened.faults() == ["a head's weight is not that of its updates"]


@pytest.mark.parametrize("size", [6405, 12_810])
def test_a_published_update_and_an_older_head_keep_little_room(tmp_path: Path, size: int) -> None:
    ledger, dids = Store.create(tmp_path / "state.db"), [bytes([n]) * 16 for n in range(50)]
    ledger.add_devices([(did, did, did) for did in dids])

    def version(number: int) -> Version:
        body = random.Random(number).randbytes(12_820)
        weight = 3 * len(dids) if number else 0
        return Version(number, hashlib.sha256(body).digest(), body, b"s" * 300, body * 4, (1.0, 1.0), weight)

    def used_bytes() -> int:
        pages, free = (ledger.rows(f"PRAGMA {what}")[0][0] for what in ("page_count", "freelist_count"))
        return int(4096 * (pages - free))

    ledger.add_first(version(0))
    used = [used_bytes()]
    for number in range(1, 6):
        rid = number.to_bytes(8, "big")
        ledger.open_round(OpenRound(rid, number, number - 1, 60.0, "train"))
        codes = random.Random(number).randbytes(size)
        ledger.receive(rid, [Entry(did, b"s" * 230, 3, 60, 0.5, 0.9, (0.0, 1.0), codes) for did in dids])
        ledger.publish(rid, version(number), 1.0)
        used.append(used_bytes())
        assert ledger.head().residual == version(number).residual, "the next round adds it"
        assert ledger.entry(rid, dids[0]) == (b"s" * 230, 0) and ledger.counted(dids[0]) == number
    print(f"{size} B of codes: {(used[-1] - used[1]) / 4} B a round of {len(dids)}")
    assert (used[-1] - used[1]) / 4 < len(dids) * 500 + 24_000
    assert ledger.faults() == []
