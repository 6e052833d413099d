# SPDX-License-Identifier: Apache-2.0
"""The gateway's ledger in SQLite: devices, pairing codes, rounds, updates, heads.

Every method that changes something is one transaction with ``synchronous=FULL``: when it returns, the change is on the
disk, and only then may a receipt leave (docs/protocol.md, "Store").
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_tiny.database import transaction
from fl_tiny.errors import ConfigError, EnvironmentFault, RemoteError
from fl_tiny.protocol.wire import Code, Status

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE device(did BLOB PRIMARY KEY, pk BLOB UNIQUE NOT NULL, psk BLOB NOT NULL, state TEXT NOT NULL, name TEXT,
  samples INT, head INT, last_round INT, seen REAL, boot TEXT) STRICT;
CREATE TABLE pairing(token BLOB PRIMARY KEY, secret BLOB NOT NULL, left_s REAL NOT NULL, pk BLOB) STRICT;
CREATE TABLE peer(name TEXT PRIMARY KEY, psk BLOB NOT NULL) STRICT;
CREATE TABLE version(number INTEGER PRIMARY KEY, digest BLOB NOT NULL, body BLOB NOT NULL, signed BLOB NOT NULL,
  residual BLOB NOT NULL, steps BLOB NOT NULL, weight INT NOT NULL) STRICT;
CREATE TABLE round(rid BLOB PRIMARY KEY, number INT NOT NULL, base INT NOT NULL REFERENCES version(number),
  state TEXT NOT NULL, left_s REAL NOT NULL, seconds REAL, why TEXT) STRICT;
CREATE TABLE answer(rid BLOB NOT NULL REFERENCES round(rid) ON DELETE CASCADE, did BLOB NOT NULL, said INT NOT NULL,
  PRIMARY KEY(rid, did)) STRICT, WITHOUT ROWID;
CREATE TABLE ledger(rid BLOB NOT NULL REFERENCES round(rid), did BLOB NOT NULL REFERENCES device(did),
  signed BLOB NOT NULL, samples INT NOT NULL, status INT NOT NULL, held INT, loss REAL, accuracy REAL, ranges BLOB,
  codes BLOB, consumed_by INT REFERENCES version(number), PRIMARY KEY(rid, did)) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Device:
    """A row of the device table; times are the gateway's CLOCK_BOOTTIME of that ``boot``."""

    did: bytes
    pk: bytes
    psk: bytes
    state: str  # pending, active, revoked
    name: str | None
    samples: int | None
    head: int | None
    last_round: int | None
    seen: float | None
    boot: str | None


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
    """An update in the ledger; codes are dropped once a version consumed them."""

    did: bytes
    signed: bytes
    samples: int
    held: int | None
    loss: float | None
    accuracy: float | None
    ranges: tuple[float, ...] | None
    codes: bytes | None


@dataclass(frozen=True, slots=True)
class OpenRound:
    """The round that was open when the gateway last wrote."""

    rid: bytes
    number: int
    base: int
    left_s: float


class Store:
    """One connection to DIR/state.db."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._db = database

    @classmethod
    def create(cls, path: Path) -> Store:
        """A new, empty database with mode 0600. Raises: ConfigError when there is one already."""
        if path.exists():
            raise ConfigError(f"{path} exists already", hint="a gateway's directory is never overwritten")
        path.touch(mode=0o600)
        store = cls(_connect(path))
        store._db.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
        return store

    @classmethod
    def open(cls, path: Path) -> Store:
        """The database of an initialised gateway. Raises: ConfigError when there is none, or of another version."""
        if not path.exists():
            raise ConfigError(f"{path.parent} is not a gateway", hint="fl-tiny gateway init DIR --model FILE")
        store = cls(_connect(path))
        try:
            found = store._db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.DatabaseError as cause:
            raise EnvironmentFault(f"{path} is damaged: {cause}", hint="restore it from a backup") from cause
        if found != SCHEMA_VERSION:
            raise ConfigError(f"{path} has version {found}, this fl-tiny reads {SCHEMA_VERSION}")
        return store

    def close(self) -> None:
        """Give the connection back."""
        self._db.close()

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._db, "ledger")

    # ---- facts about the gateway ----------------------------------------------------------------------------

    def put(self, **values: Any) -> None:
        """Set facts of the ``meta`` table; None removes one."""
        with self._transaction() as db:
            for key, value in values.items():
                if value is None:
                    db.execute("DELETE FROM meta WHERE key=?", (key,))
                else:
                    db.execute("INSERT OR REPLACE INTO meta VALUES(?,?)", (key, value))

    def get(self, key: str) -> Any:
        """A fact of the ``meta`` table, or None."""
        row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

    # ---- devices, codes, peers ------------------------------------------------------------------------------

    def devices(self) -> list[Device]:
        """All devices, in the order they enrolled."""
        return [Device(*row) for row in self._db.execute("SELECT * FROM device ORDER BY rowid")]

    def device(self, did: bytes) -> Device | None:
        """The device of this id."""
        row = self._db.execute("SELECT * FROM device WHERE did=?", (did,)).fetchone()
        return Device(*row) if row else None

    def enrol(self, token: bytes, did: bytes, pk: bytes, psk: bytes, name: str | None) -> None:
        """Bind a pairing code to a public key and keep the device as pending; the same key may come again.

        Raises: RemoteError with Code.PAIRING when the code is unknown, expired or another key's.
        """
        with self._transaction() as db:
            code = self.pairing(token)
            if code is None or (code.pk is not None and code.pk != pk):
                raise RemoteError("this pairing code was used by another device or has expired", code=Code.PAIRING)
            db.execute("UPDATE pairing SET pk=? WHERE token=?", (pk, token))
            db.execute(
                "INSERT INTO device(did, pk, psk, state, name) VALUES(?,?,?,'pending',?)"
                " ON CONFLICT(did) DO UPDATE SET psk=excluded.psk, name=excluded.name WHERE state!='revoked'",
                (did, pk, psk, name),
            )

    def activate(self, did: bytes) -> None:
        """A pending device has come with its new key: it is active from now on."""
        with self._transaction() as db:
            db.execute("UPDATE device SET state='active' WHERE did=? AND state='pending'", (did,))

    def revoke(self, did: bytes) -> None:
        """Take a device out: its key opens nothing any more, and its update leaves the open round."""
        with self._transaction() as db:
            db.execute("UPDATE device SET state='revoked' WHERE did=?", (did,))
            db.execute(
                "UPDATE ledger SET status=?, codes=NULL WHERE did=? AND consumed_by IS NULL",
                (Status.REJECTED.value, did),
            )

    def note_presence(self, rows: Sequence[tuple[bytes, int, int, float, str]]) -> None:
        """Write what heartbeats said: (did, samples, head, seen, boot) each; a batch is one transaction."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE device SET samples=?2, head=?3, seen=?4, boot=?5 WHERE did=?1",
                rows,
            )

    def add_pairings(self, codes: Sequence[tuple[bytes, bytes]], left_s: float) -> None:
        """Keep new codes (token, secret), each good for ``left_s`` of the running gateway's time."""
        with self._transaction() as db:
            db.executemany("INSERT INTO pairing VALUES(?,?,?,NULL)", [(t, s, left_s) for t, s in codes])

    def pairing(self, token: bytes) -> Pairing | None:
        """A code that has not expired."""
        row = self._db.execute("SELECT * FROM pairing WHERE token=? AND left_s>0", (token,)).fetchone()
        return Pairing(*row) if row else None

    def pass_time(self, seconds: float) -> None:
        """Let the codes age; expired ones go. Called while the gateway runs, so a restart renews nothing."""
        if not self._db.execute("SELECT 1 FROM pairing LIMIT 1").fetchone():
            return
        with self._transaction() as db:
            db.execute("UPDATE pairing SET left_s=left_s-?", (seconds,))
            db.execute("DELETE FROM pairing WHERE left_s<=0")

    def add_peer(self, name: str, psk: bytes) -> None:
        """Add a read-only peer. Raises: ConfigError when the name is taken."""
        try:
            with self._transaction() as db:
                db.execute("INSERT INTO peer VALUES(?,?)", (name, psk))
        except sqlite3.IntegrityError as cause:
            raise ConfigError(f"there is a peer {name} already") from cause

    def peer(self, name: str) -> bytes | None:
        """A peer's key."""
        row = self._db.execute("SELECT psk FROM peer WHERE name=?", (name,)).fetchone()
        return row[0] if row else None

    # ---- rounds ---------------------------------------------------------------------------------------------

    def open_round(self, rid: bytes, number: int, base: int, left_s: float) -> None:
        """A round begins; an aborted try of the same number is forgotten."""
        with self._transaction() as db:
            db.execute("DELETE FROM round WHERE number=? AND state='aborted'", (number,))
            db.execute("INSERT INTO round VALUES(?,?,?,'open',?,NULL,NULL)", (rid, number, base, left_s))

    def opened(self) -> OpenRound | None:
        """The round that is open."""
        row = self._db.execute("SELECT rid, number, base, left_s FROM round WHERE state='open'").fetchone()
        return OpenRound(*row) if row else None

    def save_left(self, rid: bytes, left_s: float) -> None:
        """Keep the seconds that the open round has left; a restart goes on from there."""
        with self._transaction() as db:
            db.execute("UPDATE round SET left_s=? WHERE rid=?", (left_s, rid))

    def answer(self, rid: bytes, did: bytes, said: int) -> None:
        """Keep a device's answer; the last one counts."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO answer VALUES(?,?,?)", (rid, did, said))

    def answers(self, rid: bytes) -> list[tuple[bytes, int]]:
        """(did, said) of everyone who answered."""
        return list(self._db.execute("SELECT did, said FROM answer WHERE rid=?", (rid,)))

    def receive(self, rid: bytes, entry: Entry) -> None:
        """An accepted update, its evidence and its codes: all or nothing, on the disk when this returns.

        Raises: RemoteError with Code.CONFLICT when the device has delivered other bytes in this round.
        """
        try:
            with self._transaction() as db:
                db.execute(
                    "INSERT INTO ledger VALUES(?,?,?,?,?,?,?,?,?,?,NULL)",
                    (
                        rid,
                        entry.did,
                        entry.signed,
                        entry.samples,
                        Status.ACCEPTED.value,
                        entry.held,
                        entry.loss,
                        entry.accuracy,
                        floats_to_bytes(entry.ranges),
                        entry.codes,
                    ),
                )
        except sqlite3.IntegrityError as cause:
            raise RemoteError("this device has delivered other bytes in this round", code=Code.CONFLICT) from cause

    def entry(self, rid: bytes, did: bytes) -> tuple[bytes, int] | None:
        """(signed update, status) of what a device delivered in a round."""
        row = self._db.execute("SELECT signed, status FROM ledger WHERE rid=? AND did=?", (rid, did)).fetchone()
        return (row[0], row[1]) if row else None

    def counted(self, did: bytes) -> int:
        """How many published heads an update of this device is in."""
        row = self._db.execute("SELECT count(*) FROM ledger WHERE did=? AND consumed_by IS NOT NULL", (did,)).fetchone()
        return int(row[0])

    def accepted(self, rid: bytes) -> Iterator[Entry]:
        """The round's accepted updates ordered by did, one at a time."""
        rows = self._db.execute(
            "SELECT did, signed, samples, held, loss, accuracy, ranges, codes FROM ledger"
            " WHERE rid=? AND status=? ORDER BY did",
            (rid, Status.ACCEPTED.value),
        )
        for did, signed, samples, held, loss, accuracy, ranges, codes in rows:
            yield Entry(did, signed, samples, held, loss, accuracy, bytes_to_floats(ranges), codes)

    def publish(self, rid: bytes, version: Version, seconds: float) -> None:
        """The round closes: the head, the round and the evidence that made it, all or nothing."""
        with self._transaction() as db:
            _insert_version(db, version)
            db.execute("UPDATE round SET state='published', left_s=0, seconds=? WHERE rid=?", (seconds, rid))
            db.execute(
                "UPDATE ledger SET consumed_by=?, codes=NULL WHERE rid=? AND status=?",
                (version.number, rid, Status.ACCEPTED.value),
            )
            db.execute(
                "UPDATE device SET last_round=? WHERE did IN (SELECT did FROM ledger WHERE rid=? AND status=?)",
                (version.number, rid, Status.ACCEPTED.value),
            )

    def abort(self, rid: bytes, why: str, seconds: float) -> None:
        """The round closes without a head."""
        with self._transaction() as db:
            db.execute("DELETE FROM ledger WHERE rid=?", (rid,))
            db.execute("UPDATE round SET state='aborted', left_s=0, seconds=?, why=? WHERE rid=?", (seconds, why, rid))

    def rounds(self) -> list[dict[str, Any]]:
        """All rounds, oldest first: number, state, invited, received, samples, loss, accuracy, seconds."""
        rows = self._db.execute(
            "SELECT r.number, r.state, (SELECT count(*) FROM answer a WHERE a.rid=r.rid) invited,"
            " count(l.did) received, coalesce(sum(l.samples), 0) samples, avg(l.loss) loss, avg(l.accuracy) accuracy,"
            " r.seconds FROM round r LEFT JOIN ledger l ON l.rid=r.rid AND l.status=0"
            " GROUP BY r.rid ORDER BY r.number, r.rowid"
        )
        names = ("number", "state", "invited", "received", "samples", "loss", "accuracy", "seconds")
        return [dict(zip(names, row, strict=True)) for row in rows]

    # ---- heads ----------------------------------------------------------------------------------------------

    def add_first(self, version: Version) -> None:
        """Version 0: the model's own head."""
        with self._transaction() as db:
            _insert_version(db, version)

    def head(self) -> Version:
        """The head published last."""
        return self._version("ORDER BY number DESC LIMIT 1")

    def version(self, number: int) -> Version:
        """A head by its number."""
        return self._version("WHERE number=?", number)

    def published(self) -> int:
        """How many rounds have published a head."""
        count: int = self._db.execute("SELECT max(number) FROM version").fetchone()[0]
        return count

    def _version(self, which: str, *values: Any) -> Version:
        columns = "number, digest, body, signed, residual, steps, weight"
        row = self._db.execute(f"SELECT {columns} FROM version {which}", values).fetchone()  # noqa: S608 - ours alone
        number, digest, body, signed, residual, steps, weight = row
        return Version(number, digest, body, signed, residual, bytes_to_floats(steps) or (), weight)

    def faults(self) -> list[str]:
        """What is wrong with the ledger: the invariants of docs/failures.md, checked at every start."""
        checks = {
            "the file is damaged": "SELECT 1 FROM pragma_integrity_check WHERE integrity_check!='ok'",
            "the chain of heads has a gap": "SELECT 1 WHERE (SELECT max(number) - count(*) FROM version) IS NOT -1",
            "a published round has no head": "SELECT 1 FROM round WHERE state='published'"
            " AND number NOT IN (SELECT number FROM version)",
            "an accepted update of a published round was consumed by no head": "SELECT 1 FROM ledger JOIN round"
            " USING(rid) WHERE status=0 AND round.state='published' AND consumed_by IS NOT round.number",
            "a head's weight is not that of its updates": "SELECT 1 FROM version v WHERE number>0 AND weight!="
            "(SELECT sum(samples) FROM ledger WHERE consumed_by=v.number)",
        }
        return [fault for fault, query in checks.items() if self._db.execute(query).fetchone()]


def floats_to_bytes(values: Sequence[float] | None) -> bytes | None:
    """Floats as a float64 blob, None as NULL."""
    return None if values is None else struct.pack(f"<{len(values)}d", *values)


def bytes_to_floats(blob: bytes | None) -> tuple[float, ...] | None:
    """A float64 blob as floats, NULL as None."""
    return None if blob is None else struct.unpack(f"<{len(blob) // 8}d", blob)


def _insert_version(db: sqlite3.Connection, v: Version) -> None:
    db.execute(
        "INSERT INTO version VALUES(?,?,?,?,?,?,?)",
        (v.number, v.digest, v.body, v.signed, v.residual, floats_to_bytes(v.steps), v.weight),
    )


def _connect(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=False)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF"):
            db.execute(f"PRAGMA {pragma}")
    except sqlite3.DatabaseError as cause:
        raise EnvironmentFault(f"{path} cannot be opened: {cause}", hint="restore it from a backup") from cause
    return db
