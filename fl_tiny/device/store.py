# SPDX-License-Identifier: Apache-2.0
"""A device's state in SQLite: who it is, its samples as features, the head it holds, and the update it owes.

Each change is one transaction with ``synchronous=FULL``. Raw inputs never come here: a sample is the backbone's
feature codes and a label. No numpy: the idle agent reads this too.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fl_tiny import database
from fl_tiny.database import transaction
from fl_tiny.errors import ConfigError, DataError, MalformedMessage
from fl_tiny.protocol import signed, wire

SCHEMA_VERSION = 3
PRAGMAS = (
    "page_size=1024",  # of a new file: a transaction writes whole pages, to the log and later to their place
    "journal_mode=WAL",
    "synchronous=FULL",
    "secure_delete=FAST",  # `forget` vacuums; zeroing each freed page of codes would write as much as the codes
    "trusted_schema=OFF",
    "cache_size=-256",  # KiB: an idle device's memory counts more than a page read twice
)
HINT = "move DIR away and enrol anew; the gateway's operator then revokes the old identity"
HELD_EVERY = 5  # one sample in five of a class is held out, for good
SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE sample(id INTEGER PRIMARY KEY AUTOINCREMENT, label INT NOT NULL, held INT NOT NULL,
  features BLOB NOT NULL, target BLOB, model BLOB NOT NULL DEFAULT x'') STRICT;
CREATE INDEX sample_model ON sample(model, label, held);
CREATE TABLE head(only INTEGER PRIMARY KEY CHECK(only=1), version INT NOT NULL, signed BLOB NOT NULL,
  body BLOB NOT NULL) STRICT;
CREATE TABLE journal(only INTEGER PRIMARY KEY CHECK(only=1), number INT NOT NULL, signed BLOB NOT NULL,
  codes BLOB NOT NULL, residual BLOB NOT NULL, steps BLOB NOT NULL) STRICT;
CREATE TABLE residual(only INTEGER PRIMARY KEY CHECK(only=1), residual BLOB NOT NULL, steps BLOB NOT NULL) STRICT;
CREATE TABLE kept(only INTEGER PRIMARY KEY CHECK(only=1), chosen_at INT NOT NULL, kind TEXT NOT NULL,
  fitted INT NOT NULL, digest BLOB NOT NULL, version INT NOT NULL, signed BLOB NOT NULL, body BLOB NOT NULL,
  previous REAL, fleet REAL, personal REAL) STRICT;
"""
# The slot that is not in use, with all that goes with its model (device/slots.py).
SLOT = """
CREATE TABLE slot(only INTEGER PRIMARY KEY CHECK(only=1), name TEXT NOT NULL, manifest BLOB NOT NULL,
  model_pk BLOB NOT NULL, features BLOB NOT NULL, head_version INT NOT NULL, head_signed BLOB NOT NULL,
  head_body BLOB NOT NULL, chosen_at INT NOT NULL, kind TEXT NOT NULL, fitted INT NOT NULL, digest BLOB NOT NULL,
  version INT NOT NULL, signed BLOB NOT NULL, body BLOB NOT NULL, previous REAL, fleet REAL, personal REAL) STRICT;
"""
SCHEMA += SLOT
MIGRATIONS = {  # from a version to the next
    1: "ALTER TABLE sample ADD COLUMN target BLOB;",
    2: "ALTER TABLE sample ADD COLUMN model BLOB NOT NULL DEFAULT x''; DROP INDEX IF EXISTS sample_label;"
    f"CREATE INDEX sample_model ON sample(model, label, held); {SLOT}",
}


class Sample(NamedTuple):
    """features: the backbone's int8 codes.   label: the class; of several labels the first, for values 0.

    target: several labels or values as float32, little endian; None: the label says it all.
    """

    features: bytes
    label: int
    target: bytes | None = None


@dataclass(frozen=True, slots=True)
class HeldHead:
    """The fleet's head as the gateway signed it, and its canonical body."""

    version: int
    signed: bytes
    body: bytes

    @property
    def description(self) -> wire.Head:
        """What the gateway signed."""
        return wire.decode(wire.Head, signed.payload_of(self.signed))

    @property
    def rank(self) -> tuple[int, int]:
        """How new it is; below all heads when its bytes are no longer what was signed, so that it is fetched again."""
        try:
            described = self.description
        except MalformedMessage:
            return -1, -1
        return described.rank if hashlib.sha256(self.body).digest() == described.digest else (-1, -1)


@dataclass(frozen=True, slots=True)
class Journal:
    """The update this device owes a round. residual: what the codes leave unsaid (protocol/update.py)."""

    number: int
    signed: bytes
    codes: bytes
    residual: bytes
    steps: bytes  # float64, one a tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """What is in model/current.tflite, chosen when head ``chosen_at`` came.

    kind: which candidate won then.   fitted: fine-tuned here, from the head ``start``; else it is that head itself.
    digest: SHA-256 of the file.   previous, fleet, personal: held-out accuracies of the candidates.
    """

    chosen_at: int
    kind: str
    fitted: bool
    digest: bytes
    start: HeldHead
    previous: float | None = None
    fleet: float | None = None
    personal: float | None = None


class DeviceStore:
    """One connection to DIR/state.db."""

    def __init__(self, path: Path) -> None:
        self._db = database.connect(path, PRAGMAS, HINT)

    @classmethod
    def create(cls, path: Path) -> DeviceStore:
        """The database, made with mode 0600 where it is not there yet."""
        if not path.exists():
            path.touch(mode=0o600)
        store = cls(path)
        if store._db.execute("PRAGMA user_version").fetchone()[0] == 0:
            store._db.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
        return store

    @classmethod
    def open(cls, path: Path) -> DeviceStore:
        """The database of an enrolled device.

        Raises: ConfigError when it is not one, or a newer fl-tiny's; DataError when it is damaged.
        """
        hint = "fl-tiny device enroll DIR --code CODE"
        if not path.exists():
            raise ConfigError(f"{path.parent} is not a device", hint=hint)
        store = cls(path)
        database.migrate(store._db, path, MIGRATIONS, SCHEMA_VERSION, HINT)
        with database.reading(path, HINT):
            enrolled = store.get("enrolled")
        if enrolled is None:
            raise ConfigError(f"{path.parent} is not enrolled", hint=hint)
        return store

    def check(self) -> None:
        """Read the whole file, as the daemon does at its start. Raises: DataError when it is damaged."""
        with database.reading(Path("the device's state"), HINT):
            found = self._db.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            raise DataError(f"the device's state is damaged: {found}", hint=HINT)

    def close(self) -> None:
        """Give the connection back."""
        self._db.close()

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._db, "state")

    def write(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction for the modules beside this one: on the disk when it ends, or nothing has changed."""
        return self._transaction()

    def row(self, query: str, *values: Any) -> Any:
        """The first row that a query finds, or None."""
        return self._db.execute(query, values).fetchone()

    @property
    def features(self) -> bytes:
        """Whose features the samples in use are: those of another backbone stay, unused."""
        found: bytes = self.get("features") or b""
        return found

    # ---- facts ----------------------------------------------------------------------------------------------

    def put(self, **values: Any) -> None:
        """Set facts of the ``meta`` table, all or none."""
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES(?,?)", values.items())

    def get(self, key: str) -> Any:
        """A fact of the ``meta`` table, or None."""
        row = self._db.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
        return row[0] if row else None

    @property
    def rounds(self) -> int:
        """Rounds whose head an update of this device went into."""
        return self.get("rounds") or 0

    # ---- samples --------------------------------------------------------------------------------------------

    def add_samples(self, rows: Iterable[Sample], limit: int, model: bytes | None = None) -> int:
        """Add samples; beyond ``limit`` the oldest of the most frequent class goes. Returns how many.

        model: whose features they are; None: those of the model in use.
        """
        added = 0
        with self._transaction() as db:
            model = self.features if model is None else model
            counts = self.counts(model)
            others: int = db.execute("SELECT count(*) FROM sample WHERE model!=?", (model,)).fetchone()[0]
            seen: dict[str, int] = dict(db.execute("SELECT substr(key, 6), value FROM meta WHERE key LIKE 'seen:%'"))
            total = sum(counts.values()) + others
            for features, label, target in rows:
                place = seen.get(str(label), 0)
                seen[str(label)] = place + 1
                held = is_held_out(place, label)
                db.execute(
                    "INSERT INTO sample(label, held, features, target, model) VALUES(?,?,?,?,?)",
                    (label, held, features, target, model),
                )
                counts[label] = counts.get(label, 0) + 1
                total, added = total + 1, added + 1
                if total > limit and others:  # what another backbone left gives way first
                    db.execute("DELETE FROM sample WHERE id=(SELECT min(id) FROM sample WHERE model!=?)", (model,))
                    others, total = others - 1, total - 1
                elif total > limit:
                    fullest = max(counts, key=lambda c: (counts[c], -c))
                    oldest = "SELECT min(id) FROM sample WHERE model=? AND label=?"
                    db.execute(f"DELETE FROM sample WHERE id=({oldest})", (model, fullest))  # noqa: S608 - ours alone
                    counts[fullest] -= 1
                    total -= 1
            db.executemany(
                "INSERT OR REPLACE INTO meta VALUES(?,?)", [(f"seen:{label}", n) for label, n in seen.items()]
            )
        return added

    def samples(self) -> Iterator[tuple[Sample, bool]]:
        """Each sample and whether it is held out, oldest first, one at a time."""
        query = "SELECT features, label, target, held FROM sample WHERE model=? ORDER BY id"
        for *sample, held in self._db.execute(query, (self.features,)):
            yield Sample(*sample), bool(held)

    def counts(self, model: bytes | None = None) -> dict[int, int]:
        """Samples a label. model: as in ``add_samples``."""
        query = "SELECT label, count(*) FROM sample WHERE model=? GROUP BY label ORDER BY label"
        return dict(self._db.execute(query, (self.features if model is None else model,)))

    def sample_count(self) -> tuple[int, int]:
        """(samples, held out), read from an index alone: an idle device asks at each heartbeat."""
        found: tuple[int, int] = self.row(
            "SELECT count(*), coalesce(sum(held), 0) FROM sample WHERE model=?", self.features
        )
        return found

    def sample_bytes(self) -> int:
        """Bytes of all features."""
        size: int = self._db.execute("SELECT coalesce(sum(length(features)), 0) FROM sample").fetchone()[0]
        return size

    def forget(self, label: int | None) -> int:
        """Remove the samples of a label (None: all, of other backbones too), and with them what training on them left:
        the residual and an unsent update. Returns how many."""
        with self._transaction() as db:
            where, values = ("WHERE label=? AND model=?", (label, self.features)) if label is not None else ("", ())
            gone = db.execute(f"DELETE FROM sample {where}", values).rowcount  # noqa: S608 - ours alone
            if gone:
                db.execute("DELETE FROM residual")
                db.execute("DELETE FROM journal")
        if gone:
            self._db.execute("VACUUM")  # the freed pages held features
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    # ---- head, update, choice -------------------------------------------------------------------------------

    def head(self) -> HeldHead:
        """The head held. There is one from enrolment on."""
        return HeldHead(*self._db.execute("SELECT version, signed, body FROM head").fetchone())

    def put_head(self, head: HeldHead, *, anew: bool = False, restored: bool = False) -> None:
        """Hold a newer head. anew: it does not go on from the one held so far, so the residual is void.

        restored: nor does its number, since the gateway went on from a backup; the board's model is chosen again.
        """
        with self._transaction() as db:
            if anew:
                db.execute("DELETE FROM residual")
            if restored:
                db.execute("UPDATE meta SET value=min(value, ?) WHERE key='last_round'", (head.version,))
                db.execute("UPDATE kept SET chosen_at=-1")
            db.execute("INSERT OR REPLACE INTO head VALUES(1,?,?,?)", (head.version, head.signed, head.body))

    def journal(self) -> Journal | None:
        """The update that is owed, if there is one."""
        row = self._db.execute("SELECT number, signed, codes, residual, steps FROM journal").fetchone()
        return Journal(*row) if row else None

    def put_journal(self, owed: Journal) -> None:
        """Keep a trained update until the gateway's receipt."""
        with self._transaction() as db:
            row = (owed.number, owed.signed, owed.codes, owed.residual, owed.steps)
            db.execute("INSERT OR REPLACE INTO journal VALUES(1,?,?,?,?,?)", row)

    def settle(self, residual: bytes | None, steps: bytes, *, counted: bool) -> None:
        """The owed update is done with: what stays of it becomes the residual (None: nothing does)."""
        with self._transaction() as db:
            number = db.execute("SELECT number FROM journal").fetchone()
            db.execute("DELETE FROM journal")
            db.execute("DELETE FROM residual")
            if residual is not None:
                db.execute("INSERT INTO residual VALUES(1,?,?)", (residual, steps))
            if counted and number:
                db.execute("INSERT OR REPLACE INTO meta VALUES('rounds',?)", (self.rounds + 1,))
                db.execute("INSERT OR REPLACE INTO meta VALUES('last_round',?)", (number[0],))

    def residual(self) -> tuple[bytes, bytes] | None:
        """(residual, steps it is in), to be added to the next update."""
        row: tuple[bytes, bytes] | None = self._db.execute("SELECT residual, steps FROM residual").fetchone()
        return row

    def kept(self) -> Kept:
        """The choice made last. There is one from enrolment on."""
        row = self._db.execute("SELECT * FROM kept").fetchone()
        return Kept(row[1], row[2], bool(row[3]), row[4], HeldHead(*row[5:8]), *row[8:])

    def put_kept(self, kept: Kept) -> None:
        """Remember the choice; the caller then switches the file."""
        start = (kept.start.version, kept.start.signed, kept.start.body)
        row = (kept.chosen_at, kept.kind, kept.fitted, kept.digest, *start, kept.previous, kept.fleet, kept.personal)
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO kept VALUES(1,?,?,?,?,?,?,?,?,?,?)", row)


def is_held_out(place: int, label: int) -> bool:
    """Is the sample that came as number ``place`` of its class held out? Small classes do not all begin with one."""
    return (place + 2 * label) % HELD_EVERY == HELD_EVERY - 1


def floats_to_bytes(values: Sequence[float]) -> bytes:
    """Floats as float64 bytes, the form of ``steps`` in the tables."""
    return struct.pack(f"<{len(values)}d", *values)


def bytes_to_floats(blob: bytes) -> tuple[float, ...]:
    """The floats of such bytes."""
    return struct.unpack(f"<{len(blob) // 8}d", blob)
