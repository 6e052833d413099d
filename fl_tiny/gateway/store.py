# SPDX-License-Identifier: Apache-2.0
"""The gateway's ledger in SQLite: devices, pairing codes, rounds, updates, heads.

Every method that changes something is one transaction with ``synchronous=FULL``: when it returns, the change is on the
disk, and only then may a receipt leave (docs/protocol.md, "Store").
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fl_tiny import database
from fl_tiny.database import transaction
from fl_tiny.errors import ConfigError, Conflict, RemoteError
from fl_tiny.gateway.tables import (
    MIGRATIONS,
    SCHEMA,
    SCHEMA_VERSION,
    Device,
    Entry,
    OpenRound,
    Pairing,
    Version,
    abort_open,
    bytes_to_floats,
    check_unused,
    consume_updates,
    floats_to_bytes,
    insert_round,
    insert_version,
    last_head,
    reject_updates,
)
from fl_tiny.protocol import wire
from fl_tiny.protocol.aggregate import Share
from fl_tiny.protocol.signed import payload_of
from fl_tiny.protocol.wire import Code, Status

PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "secure_delete=ON",  # what is forgotten leaves no sums behind
    "foreign_keys=ON",
    "trusted_schema=OFF",
)
HINT = "fl-tiny gateway restore DIR2 --from F, with what `gateway backup` wrote"


class Store:
    """One connection to DIR/state.db."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @classmethod
    def create(cls, path: Path) -> Store:
        """A new, empty database with mode 0600. Raises: ConfigError when there is one already."""
        if path.exists():
            raise ConfigError(f"{path} exists already", hint="a gateway's directory is never overwritten")
        path.touch(mode=0o600)
        store = cls(_connect(path))
        database.create(store._db, SCHEMA, SCHEMA_VERSION)
        return store

    @classmethod
    def open(cls, path: Path, *, reading: bool = False) -> Store:
        """The database of an initialised gateway. reading: for a command, or a page, that writes nothing.

        Raises: ConfigError when there is none, or a newer fl-tiny's; DataError when it is damaged.
        """
        if not path.exists():
            raise ConfigError(f"{path.parent} is not a gateway", hint="fl-tiny gateway init DIR --model FILE")
        store = cls(_connect(path, reading=reading))
        database.migrate(store._db, path, MIGRATIONS, SCHEMA_VERSION, HINT)
        return store

    def close(self) -> None:
        """Give the connection back."""
        self._db.close()

    @property
    def folder(self) -> Path:
        """Where the database is."""
        return Path(self._db.execute("PRAGMA database_list").fetchone()[2]).parent

    def write(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction, also for the modules beside this one: on the disk when it ends, or nothing has changed."""
        return transaction(self._db, "ledger")

    def rows(self, query: str, *values: Any) -> list[Any]:
        """What a query finds."""
        return self._db.execute(query, values).fetchall()

    # ---- facts about the gateway ----------------------------------------------------------------------------

    def put(self, **values: Any) -> None:
        """Set facts of the ``meta`` table; None removes one."""
        with self.write() as db:
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

        Raises: RemoteError with Code.PAIRING when the code is unknown, expired or another key's; with Code.CONFLICT
        when the key is in use elsewhere, or is one that its device has replaced.
        """
        with self.write() as db:
            check_unused(db, did, pk)
            known = self.device(did)
            if known is not None and known.pk != pk:
                raise RemoteError("this device has another key by now", code=Code.CONFLICT)
            code = self.pairing(token)
            if code is None or (code.pk is not None and code.pk != pk):
                raise RemoteError("this pairing code was used by another device or has expired", code=Code.PAIRING)
            db.execute("UPDATE pairing SET pk=? WHERE token=?", (pk, token))
            db.execute(
                "INSERT INTO device(did, pk, psk, state, name) VALUES(?,?,?,'pending',?)"
                " ON CONFLICT(did) DO UPDATE SET psk=excluded.psk, name=excluded.name WHERE state!='revoked'",
                (did, pk, psk, name),
            )

    def add_devices(self, rows: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        """Take devices in without a code: (did, public key, PSK) each, active at once. For a fleet of one's own."""
        with self.write() as db:
            db.executemany("INSERT INTO device(did, pk, psk, state) VALUES(?,?,?,'active')", rows)

    def activate(self, did: bytes) -> None:
        """A pending device has come with its new key: it is active from now on."""
        with self.write() as db:
            db.execute("UPDATE device SET state='active' WHERE did=? AND state='pending'", (did,))

    def revoke(self, did: bytes) -> None:
        """Take a device out: its key opens nothing any more, and its update leaves the open round."""
        with self.write() as db:
            _revoke(db, did)

    def note_presence(self, rows: Sequence[tuple[bytes, int, int, float, str, int]]) -> None:
        """Write what heartbeats said: (did, samples, head, seen, boot, lacks) each; a batch is one transaction."""
        with self.write() as db:
            moved = [(*said, did) for did, *said in rows]
            db.executemany("UPDATE device SET samples=?, head=?, seen=?, boot=?, lacks=? WHERE did=?", moved)

    def add_pairings(self, codes: Sequence[tuple[bytes, bytes]], left_s: float) -> None:
        """Keep new codes (token, secret), each good for ``left_s`` of the running gateway's time."""
        with self.write() as db:
            rows = [(token, secret, left_s) for token, secret in codes]
            db.executemany("INSERT INTO pairing(token, secret, left_s) VALUES(?,?,?)", rows)

    def pairing(self, token: bytes) -> Pairing | None:
        """A code that has not expired."""
        row = self._db.execute("SELECT * FROM pairing WHERE token=? AND left_s>0", (token,)).fetchone()
        return Pairing(*row) if row else None

    def pass_time(self, seconds: float) -> None:
        """Let the codes age; expired ones go. Called while the gateway runs, so a restart renews nothing."""
        if not self._db.execute("SELECT 1 FROM pairing LIMIT 1").fetchone():
            return
        with self.write() as db:
            db.execute("UPDATE pairing SET left_s=left_s-?", (seconds,))
            db.execute("DELETE FROM pairing WHERE left_s<=0")

    def add_peer(self, name: str, psk: bytes) -> None:
        """Add a read-only peer. Raises: ConfigError when the name is taken."""
        try:
            with self.write() as db:
                db.execute("INSERT INTO peer VALUES(?,?)", (name, psk))
        except Conflict as cause:
            raise ConfigError(f"there is a peer {name} already") from cause

    def peers(self) -> dict[bytes, bytes]:
        """The key of each peer, by its name as UTF-8."""
        return dict(self._db.execute("SELECT CAST(name AS BLOB), psk FROM peer ORDER BY name"))

    def remove_peer(self, name: str) -> bool:
        """Take a peer's key away; False when there is none of this name."""
        with self.write() as db:
            return db.execute("DELETE FROM peer WHERE name=?", (name,)).rowcount > 0

    # ---- rounds ---------------------------------------------------------------------------------------------

    def open_round(self, opened: OpenRound) -> None:
        """A round begins; an aborted try of the same number is forgotten."""
        with self.write() as db:
            insert_round(db, opened, "open")

    def opened(self) -> OpenRound | None:
        """The round that is open."""
        row = self._db.execute("SELECT rid, number, base, left_s, kind FROM round WHERE state='open'").fetchone()
        return OpenRound(*row) if row else None

    def save_left(self, rid: bytes, left_s: float) -> None:
        """Keep the seconds that the open round has left; a restart goes on from there."""
        with self.write() as db:
            db.execute("UPDATE round SET left_s=? WHERE rid=?", (left_s, rid))

    def answer(self, rows: Sequence[tuple[bytes, bytes, int]]) -> None:
        """Keep devices' answers, (rid, did, said) each; the last one of a device counts."""
        with self.write() as db:
            db.executemany("INSERT OR REPLACE INTO answer VALUES(?,?,?)", rows)

    def answers(self, rid: bytes) -> list[tuple[bytes, int]]:
        """(did, said) of everyone who answered."""
        return list(self._db.execute("SELECT did, said FROM answer WHERE rid=?", (rid,)))

    def receive(self, rid: bytes, entries: Sequence[Entry]) -> dict[bytes, Code]:
        """Accepted updates, their evidence and their codes: all or nothing, on the disk when this returns.

        Returns why one is left out, by device: it is revoked, or has delivered in this round before.
        """
        refused: dict[bytes, Code] = {}
        with self.write() as db:
            for e in entries:
                facts = (rid, e.did, e.signed, e.samples, Status.ACCEPTED.value, e.held, e.loss, e.accuracy)
                known = db.execute("SELECT state FROM device WHERE did=?", (e.did,)).fetchone()
                if known is None or known[0] == "revoked":
                    refused[e.did] = Code.REVOKED
                elif not db.execute(
                    "INSERT OR IGNORE INTO ledger VALUES(?,?,?,?,?,?,?,?,?,?,NULL,NULL,NULL,NULL)",
                    (*facts, floats_to_bytes(e.ranges), e.codes),
                ).rowcount:
                    refused[e.did] = Code.CONFLICT
        return refused

    def entry(self, rid: bytes, did: bytes) -> tuple[bytes, int] | None:
        """(signed update, status) of what a device delivered in a round."""
        row = self._db.execute("SELECT signed, status FROM ledger WHERE rid=? AND did=?", (rid, did)).fetchone()
        return (row[0], row[1]) if row else None

    def counted(self, did: bytes) -> int:
        """How many published heads an update of this device is in."""
        row = self._db.execute("SELECT count(*) FROM ledger WHERE did=? AND consumed_by IS NOT NULL", (did,)).fetchone()
        return int(row[0])

    def delivered(self, rid: bytes) -> list[bytes]:
        """Whose updates of a round are accepted."""
        query = "SELECT did FROM ledger WHERE rid=? AND status=? ORDER BY did"
        return [row[0] for row in self._db.execute(query, (rid, Status.ACCEPTED.value))]

    def accepted(self, rid: bytes) -> Iterator[Entry]:
        """The round's accepted updates ordered by did, one at a time."""
        rows = self._db.execute(
            "SELECT did, signed, samples, held, loss, accuracy, ranges, codes FROM ledger"
            " WHERE rid=? AND status=? ORDER BY did",
            (rid, Status.ACCEPTED.value),
        )
        for did, signed, samples, held, loss, accuracy, ranges, codes in rows:
            encoding = wire.decode(wire.Update, payload_of(signed)).encoding or wire.Encoding.INT8
            yield Entry(did, signed, samples, held, loss, accuracy, bytes_to_floats(ranges), codes, encoding)

    def publish(
        self,
        rid: bytes,
        version: Version,
        seconds: float,
        *,
        shares: Mapping[bytes, Share] | None = None,
        outliers: Mapping[bytes, float | None] | None = None,
        keeps_sums: bool = False,
        strategy: Mapping[str, bytes] | None = None,
    ) -> None:
        """The round closes: the head, the round and the evidence that made it, all or nothing.

        shares: what of each device's update counted.
        outliers: how far each device stood out.   keeps_sums: what they sent are sums, which stay; else it is dropped.
        strategy: what the strategy remembers from now on.
        """
        with self.write() as db:
            insert_version(db, version)
            db.execute("DELETE FROM strategy")
            db.executemany("INSERT INTO strategy VALUES(?,?)", (strategy or {}).items())
            if keeps_sums:
                db.execute(
                    "INSERT OR REPLACE INTO gram SELECT did, samples, codes, NULL FROM ledger WHERE rid=? AND status=?",
                    (rid, Status.ACCEPTED.value),
                )
                _put_outliers(db, outliers or {})
            db.execute("UPDATE round SET state='published', left_s=0, seconds=? WHERE rid=?", (seconds, rid))
            consume_updates(db, rid, version.number, shares or {}, outliers or {})
            db.execute(
                "UPDATE device SET last_round=? WHERE did IN (SELECT did FROM ledger WHERE rid=? AND status=?)",
                (version.number, rid, Status.ACCEPTED.value),
            )

    def abort(self, rid: bytes, why: str, seconds: float) -> None:
        """The round closes without a head."""
        with self.write() as db:
            db.execute("DELETE FROM ledger WHERE rid=?", (rid,))
            db.execute("UPDATE round SET state='aborted', left_s=0, seconds=?, why=? WHERE rid=?", (seconds, why, rid))

    def strategy_state(self) -> dict[str, bytes]:
        """What the strategy remembers of earlier rounds."""
        return dict(self._db.execute("SELECT name, numbers FROM strategy"))

    def sums(self) -> Iterator[tuple[bytes, bytes]]:
        """(did, sums as bytes) of each device that an exact start has counted, ordered by did, one at a time."""
        yield from self._db.execute("SELECT did, body FROM gram ORDER BY did")

    def has_sums(self, did: bytes) -> bool:
        """Are there sums of this device?"""
        return self._db.execute("SELECT 1 FROM gram WHERE did=?", (did,)).fetchone() is not None

    def to_forget(self) -> list[bytes]:
        """Devices that a command has asked to forget, and that still have sums."""
        found = self._db.execute(
            "SELECT did FROM gram WHERE 'forget:'||lower(hex(did)) IN (SELECT key FROM meta) ORDER BY did"
        )
        return [row[0] for row in found]

    def solved(self) -> int | None:
        """The last head that was solved from sums; later ones go on from it."""
        return last_head(self._db, ("exact", "forget"))

    def since(self) -> int | None:
        """The last head that does not go on from the one before: what devices have left to say of those is void."""
        return last_head(self._db, ("exact", "forget", "rollback"))

    def forgotten(self, did: bytes) -> int | None:
        """The head that no longer knows this device, once there is one."""
        row = self._db.execute("SELECT number FROM round WHERE kind='forget' AND did=?", (did,)).fetchone()
        return row[0] if row else None

    def forget(self, did: bytes, rid: bytes, version: Version, outliers: Mapping[bytes, float | None]) -> None:
        """Out with a device and its sums, in with the head solved without them: all or nothing.

        An open round, which started from another head, ends without one.
        """
        with self.write() as db:
            _revoke(db, did)
            db.execute("DELETE FROM gram WHERE did=?", (did,))
            db.execute("DELETE FROM meta WHERE key=?", (f"forget:{did.hex()}",))
            abort_open(db, "a device was forgotten")
            insert_version(db, version)
            db.execute("DELETE FROM strategy")  # it remembers rounds with the device
            insert_round(db, OpenRound(rid, version.number, version.number - 1, 0.0, "forget"), "published")
            db.execute("UPDATE round SET seconds=0, did=? WHERE rid=?", (did, rid))
            _put_outliers(db, outliers)
        with database.writing(self._db, "ledger"):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def rounds(self) -> list[dict[str, Any]]:
        """All rounds, oldest first. loss, accuracy: of the head that each began with, on ``held`` held-out samples."""
        rows = self._db.execute(
            "SELECT r.number, r.kind, r.state, (SELECT count(*) FROM answer a WHERE a.rid=r.rid) invited,"
            " count(l.did) received, coalesce(sum(l.samples), 0) samples, sum(l.loss * l.held) / sum(l.held) loss,"
            " sum(l.accuracy * l.held) / sum(l.held) accuracy, r.seconds, coalesce(sum(l.held), 0) held"
            " FROM round r LEFT JOIN ledger l ON l.rid=r.rid AND l.status=0"
            " GROUP BY r.rid ORDER BY r.number, r.rowid"
        )
        names = ("number", "kind", "state", "invited", "received", "samples", "loss", "accuracy", "seconds", "held")
        return [dict(zip(names, row, strict=True)) for row in rows]

    # ---- heads ----------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int | None:
        """How often this ledger was restored from a backup; None for never. Heads are newer by (epoch, number)."""
        found: int | None = self.get("epoch")
        return found

    def begin_epoch(self, epoch: int, signed: bytes) -> None:
        """The ledger goes on from a backup: the last head signed anew, the open round and the pairing codes gone."""
        with self.write() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES('epoch',?)", (epoch,))
            db.execute("UPDATE version SET signed=? WHERE number=(SELECT max(number) FROM version)", (signed,))
            abort_open(db, "restored from a backup")
            db.execute("DELETE FROM pairing")  # one may have been used since
            db.execute("DELETE FROM meta WHERE key='rollback'")

    def copy_to(self, path: Path) -> None:
        """The whole ledger as of now into the empty file ``path``; a gateway beside us goes on."""
        database.copy(self._db, path)

    def add_first(self, version: Version) -> None:
        """Version 0: the model's own head."""
        with self.write() as db:
            insert_version(db, version)

    def head(self) -> Version:
        """The head published last."""
        return self._version("ORDER BY number DESC LIMIT 1")

    def version(self, number: int) -> Version:
        """A head by its number."""
        return self._version("WHERE number=?", number)

    def _version(self, which: str, *values: Any) -> Version:
        columns = "number, digest, body, signed, residual, steps, weight"
        row = self._db.execute(f"SELECT {columns} FROM version {which}", values).fetchone()  # noqa: S608 - ours alone
        number, digest, body, signed, residual, steps, weight = row
        return Version(number, digest, body, signed, residual, bytes_to_floats(steps) or (), weight)

    def faults(self) -> list[str]:
        """What is wrong with the ledger: the invariants of docs/failures.md, checked at every start.

        Raises: DataError when the file is too damaged to be asked.
        """
        checks = {
            "the file is damaged": "SELECT 1 FROM pragma_integrity_check WHERE integrity_check!='ok'",
            "the chain of heads has a gap": "SELECT 1 WHERE (SELECT max(number) - count(*) FROM version) IS NOT -1",
            "a published round has no head": "SELECT 1 FROM round WHERE state='published'"
            " AND number NOT IN (SELECT number FROM version)",
            "an accepted update of a published round was consumed by no head": "SELECT 1 FROM ledger JOIN round"
            " USING(rid) WHERE status=0 AND round.state='published' AND consumed_by IS NOT round.number",
            "a head's weight is not that of its updates": "SELECT 1 FROM version JOIN (SELECT consumed_by number,"
            " sum(coalesce(weight, samples)) total FROM ledger WHERE consumed_by IS NOT NULL GROUP BY 1) USING(number)"
            " WHERE number>0 AND weight!=total"
            " AND number NOT IN (SELECT number FROM round WHERE kind IN ('forget', 'model', 'rollback'))",
        }
        with database.reading(self.folder, HINT):
            return [fault for fault, query in checks.items() if self._db.execute(query).fetchone()]


def _revoke(db: sqlite3.Connection, did: bytes) -> None:
    db.execute("UPDATE device SET state='revoked' WHERE did=?", (did,))
    reject_updates(db, did)


def _put_outliers(db: sqlite3.Connection, outliers: Mapping[bytes, float | None]) -> None:
    db.executemany("UPDATE gram SET outlier=? WHERE did=?", [(score, did) for did, score in outliers.items()])


def _connect(path: Path, *, reading: bool = False) -> sqlite3.Connection:
    return database.connect(path, PRAGMAS, HINT, shared=True, reads=SCHEMA_VERSION if reading else None)
