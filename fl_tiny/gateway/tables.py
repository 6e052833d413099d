# SPDX-License-Identifier: Apache-2.0
"""The tables of a gateway's database: their SQL, the way from an older version, and a row of each as a dataclass."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fl_tiny.errors import RemoteError
from fl_tiny.protocol.aggregate import Share
from fl_tiny.protocol.wire import Code, Encoding, Status

SCHEMA_VERSION = 6
SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE device(did BLOB PRIMARY KEY, pk BLOB UNIQUE NOT NULL, psk BLOB NOT NULL, state TEXT NOT NULL, name TEXT,
  samples INT, head INT, last_round INT, seen REAL, boot TEXT, lacks INT) STRICT;
CREATE TABLE pairing(token BLOB PRIMARY KEY, secret BLOB NOT NULL, left_s REAL NOT NULL, pk BLOB) STRICT;
CREATE TABLE peer(name TEXT PRIMARY KEY, psk BLOB NOT NULL) STRICT;
CREATE TABLE version(number INTEGER PRIMARY KEY, digest BLOB NOT NULL, body BLOB NOT NULL, signed BLOB NOT NULL,
  residual BLOB NOT NULL, steps BLOB NOT NULL, weight INT NOT NULL) STRICT;
CREATE TABLE round(rid BLOB PRIMARY KEY, number INT NOT NULL, base INT NOT NULL REFERENCES version(number),
  state TEXT NOT NULL, left_s REAL NOT NULL, seconds REAL, why TEXT, kind TEXT NOT NULL DEFAULT 'train',
  did BLOB) STRICT;
CREATE TABLE answer(rid BLOB NOT NULL REFERENCES round(rid) ON DELETE CASCADE, did BLOB NOT NULL, said INT NOT NULL,
  PRIMARY KEY(rid, did)) STRICT, WITHOUT ROWID;
CREATE TABLE ledger(rid BLOB NOT NULL REFERENCES round(rid), did BLOB NOT NULL REFERENCES device(did),
  signed BLOB NOT NULL, samples INT NOT NULL, status INT NOT NULL, held INT, loss REAL, accuracy REAL, ranges BLOB,
  codes BLOB, consumed_by INT REFERENCES version(number), weight INT, factor INT,
  outlier REAL, PRIMARY KEY(rid, did)) STRICT;
CREATE INDEX ledger_did ON ledger(did, consumed_by);
CREATE TABLE gram(did BLOB PRIMARY KEY REFERENCES device(did), samples INT NOT NULL, body BLOB NOT NULL,
  outlier REAL) STRICT;
CREATE TABLE strategy(name TEXT PRIMARY KEY, numbers BLOB NOT NULL) STRICT;
CREATE TABLE model(counter INTEGER PRIMARY KEY, pk BLOB NOT NULL, signed BLOB NOT NULL, canary BLOB,
  share REAL NOT NULL, first INT REFERENCES version(number)) STRICT;
CREATE TABLE holds(did BLOB PRIMARY KEY, model INT NOT NULL, refused INT, code INT, why TEXT) STRICT;
CREATE TABLE boot(did BLOB PRIMARY KEY, boots INT NOT NULL, boot BLOB NOT NULL, before BLOB, why TEXT) STRICT;
CREATE TABLE rekey(did BLOB PRIMARY KEY, gen INT NOT NULL, pk BLOB, psk BLOB) STRICT;
CREATE TABLE wrong(token BLOB PRIMARY KEY, tries INT NOT NULL) STRICT;
CREATE TABLE handover(serial INTEGER PRIMARY KEY, pk BLOB NOT NULL, signed BLOB NOT NULL) STRICT;
CREATE TABLE chunk(did BLOB NOT NULL, sid TEXT NOT NULL, at INT NOT NULL, rid BLOB NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY(did, at)) STRICT;
CREATE TABLE bundle(digest BLOB PRIMARY KEY, board TEXT UNIQUE NOT NULL, release TEXT NOT NULL, size INT NOT NULL,
  share REAL NOT NULL) STRICT;
CREATE TABLE runs(did BLOB PRIMARY KEY, board TEXT NOT NULL, release TEXT NOT NULL, refused BLOB, code INT,
  why TEXT) STRICT;
CREATE UNIQUE INDEX rekey_pk ON rekey(pk);
"""
MIGRATIONS = {  # from this version to the next
    1: """
ALTER TABLE round ADD COLUMN kind TEXT NOT NULL DEFAULT 'train';
CREATE TABLE gram(did BLOB PRIMARY KEY REFERENCES device(did), samples INT NOT NULL, body BLOB NOT NULL,
  outlier REAL) STRICT;
CREATE TABLE strategy(name TEXT PRIMARY KEY, numbers BLOB NOT NULL) STRICT;
""",
    2: """
ALTER TABLE device ADD COLUMN lacks INT;
CREATE TABLE model(counter INTEGER PRIMARY KEY, pk BLOB NOT NULL, signed BLOB NOT NULL, canary BLOB,
  share REAL NOT NULL, first INT REFERENCES version(number)) STRICT;
CREATE TABLE holds(did BLOB PRIMARY KEY, model INT NOT NULL, refused INT, code INT, why TEXT) STRICT;
CREATE TABLE boot(did BLOB PRIMARY KEY, boots INT NOT NULL, boot BLOB NOT NULL, before BLOB, why TEXT) STRICT;
CREATE TABLE rekey(did BLOB PRIMARY KEY, gen INT NOT NULL, pk BLOB, psk BLOB) STRICT;
CREATE TABLE wrong(token BLOB PRIMARY KEY, tries INT NOT NULL) STRICT;
""",
    3: """
CREATE TABLE chunk(did BLOB NOT NULL, sid TEXT NOT NULL, at INT NOT NULL, rid BLOB NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY(did, at)) STRICT;
""",
    4: """
CREATE TABLE bundle(digest BLOB PRIMARY KEY, board TEXT UNIQUE NOT NULL, release TEXT NOT NULL, size INT NOT NULL,
  share REAL NOT NULL) STRICT;
CREATE TABLE runs(did BLOB PRIMARY KEY, board TEXT NOT NULL, release TEXT NOT NULL, refused BLOB, code INT,
  why TEXT) STRICT;
""",
    # weight, factor: what of an update counted (protocol/aggregate.py); NULL: all of it, as before version 6.
    # A key that waits for two devices, or is in use: none of them gets it, and the keys that they have go on working.
    5: """
ALTER TABLE ledger ADD COLUMN weight INT;
ALTER TABLE ledger ADD COLUMN factor INT;
ALTER TABLE ledger ADD COLUMN outlier REAL;
ALTER TABLE round ADD COLUMN did BLOB;
UPDATE round SET did=(SELECT did FROM device WHERE lower(hex(device.did))=why), why=NULL WHERE kind='forget';
CREATE INDEX ledger_did ON ledger(did, consumed_by);
UPDATE rekey SET pk=NULL, psk=NULL WHERE pk IN (SELECT pk FROM device)
  OR pk IN (SELECT pk FROM rekey WHERE pk IS NOT NULL GROUP BY pk HAVING count(*)>1);
CREATE UNIQUE INDEX rekey_pk ON rekey(pk);
UPDATE device SET name=NULL WHERE length(name)=32 AND lower(name) NOT GLOB '*[^0-9a-f]*';
CREATE TABLE handover(serial INTEGER PRIMARY KEY, pk BLOB NOT NULL, signed BLOB NOT NULL) STRICT;
""",
}


@dataclass(frozen=True, slots=True)
class Device:
    """A row of the device table; times are the gateway's CLOCK_BOOTTIME of that ``boot``."""

    did: bytes
    pk: bytes
    psk: bytes
    state: str  # pending, active, quarantined, revoked
    name: str | None
    samples: int | None
    head: int | None
    last_round: int | None
    seen: float | None
    boot: str | None
    lacks: int | None = None  # what its training waits for: bits of ``heartbeat`` key 3


@dataclass(frozen=True, slots=True)
class Pairing:
    """A pairing code; ``pk`` is the one public key it belongs to, once a device used it."""

    token: bytes
    secret: bytes
    left_s: float
    pk: bytes | None


@dataclass(frozen=True, slots=True)
class Version:
    """A published head. steps: one a tensor, for the next round (float64 bytes in the table)."""

    number: int
    digest: bytes
    body: bytes
    signed: bytes
    residual: bytes
    steps: tuple[float, ...]
    weight: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An update in the ledger; codes are dropped once a version consumed them. encoding: of the codes."""

    did: bytes
    signed: bytes
    samples: int
    held: int | None
    loss: float | None
    accuracy: float | None
    ranges: tuple[float, ...] | None
    codes: bytes | None
    encoding: int = Encoding.INT8


@dataclass(frozen=True, slots=True)
class OpenRound:
    """The round that was open when the gateway last wrote."""

    rid: bytes
    number: int
    base: int
    left_s: float
    kind: str  # train, exact


def floats_to_bytes(values: Sequence[float] | None) -> bytes | None:
    """Floats as a float64 blob, None as NULL."""
    return None if values is None else struct.pack(f"<{len(values)}d", *values)


def bytes_to_floats(blob: bytes | None) -> tuple[float, ...] | None:
    """A float64 blob as floats, NULL as None."""
    return None if blob is None else struct.unpack_from(f"<{len(blob) // 8}d", blob)


def insert_version(db: sqlite3.Connection, v: Version) -> None:
    """Add a head, within a transaction."""
    db.execute(
        "INSERT INTO version VALUES(?,?,?,?,?,?,?)",
        (v.number, v.digest, v.body, v.signed, v.residual, floats_to_bytes(v.steps), v.weight),
    )


def insert_round(db: sqlite3.Connection, r: OpenRound, state: str) -> None:
    """Add a round, within a transaction."""
    db.execute("DELETE FROM round WHERE number=? AND state='aborted'", (r.number,))
    row = (r.rid, r.number, r.base, state, r.left_s, r.kind)
    db.execute("INSERT INTO round(rid, number, base, state, left_s, kind) VALUES(?,?,?,?,?,?)", row)


def abort_open(db: sqlite3.Connection, why: str) -> None:
    """End the open round, if there is one, without a head and without its updates, within a transaction."""
    db.execute("DELETE FROM ledger WHERE rid IN (SELECT rid FROM round WHERE state='open')")
    db.execute("UPDATE round SET state='aborted', left_s=0, why=? WHERE state='open'", (why,))


def consume_updates(
    db: sqlite3.Connection,
    rid: bytes,
    number: int,
    shares: Mapping[bytes, Share],
    outliers: Mapping[bytes, float | None],
) -> None:
    """A round's accepted updates are in head ``number``: their codes go, and the residual of the head before.

    shares: what of each counted, by did; nothing is said of one that counted whole.   outliers: how far each stood out.
    The rows are written anew: cleared in place, each would keep the page that its codes had filled (docs/facts.md).
    """
    accepted = (rid, Status.ACCEPTED.value)
    rows = db.execute(
        "SELECT rid, did, signed, samples, status, held, loss, accuracy, ranges FROM ledger"
        " WHERE rid=? AND status=? ORDER BY did",
        accepted,
    ).fetchall()
    db.execute("DELETE FROM ledger WHERE rid=? AND status=?", accepted)
    counted = [shares.get(row[1], Share(row[3])) for row in rows]
    db.executemany(
        "INSERT INTO ledger VALUES(?,?,?,?,?,?,?,?,?,NULL,?,?,?,?)",
        [
            (*row, number, share.weight, share.factor, outliers.get(row[1]))
            for row, share in zip(rows, counted, strict=True)
        ],
    )
    db.execute("UPDATE version SET residual=x'' WHERE number=?", (number - 1,))


def check_unused(db: sqlite3.Connection, did: bytes, pk: bytes) -> None:
    """Look whether a public key may be this device's, within a transaction.

    Raises: RemoteError with Code.CONFLICT when another device has it, or waits to use it.
    """
    tables = ("device", "rekey")
    query = " UNION ALL ".join(f"SELECT 1 FROM {table} WHERE pk=?1 AND did!=?2" for table in tables)  # noqa: S608 - ours
    if db.execute(query, (pk, did)).fetchone():
        raise RemoteError("this key is in use", code=Code.CONFLICT)


def last_head(db: sqlite3.Connection, kinds: Sequence[str]) -> int | None:
    """The last head of the fleet's model that came about in one of these ways."""
    row = db.execute(
        f"SELECT max(number) FROM round WHERE kind IN ({', '.join('?' * len(kinds))})"  # noqa: S608 - question marks
        " AND state='published' AND number>=coalesce((SELECT value FROM meta WHERE key='first'), 0)",
        kinds,
    ).fetchone()
    number: int | None = row[0]
    return number


def reject_updates(db: sqlite3.Connection, did: bytes) -> None:
    """What a device has delivered and no head has consumed counts no more, within a transaction."""
    db.execute(
        "UPDATE ledger SET status=?, codes=NULL WHERE did=? AND consumed_by IS NULL", (Status.REJECTED.value, did)
    )
