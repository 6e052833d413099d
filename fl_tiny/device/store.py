# SPDX-License-Identifier: Apache-2.0
"""A device's state in SQLite: who it is, its samples as features, the head it holds, and the update it owes.

Each change is one transaction. Raw inputs never come here. No numpy: the idle agent reads this too.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_tiny import database
from fl_tiny.database import transaction
from fl_tiny.device import intake, packing
from fl_tiny.device.intake import Added, Sample
from fl_tiny.device.left import Body, Left, note_body
from fl_tiny.device.schema import CHOICE, HINT, MIGRATIONS, SCHEMA, SCHEMA_VERSION, UNUSED
from fl_tiny.errors import ConfigError, DataError, MalformedMessage
from fl_tiny.protocol import signed, wire

PRAGMAS = (
    "page_size=512",  # of a new file: a transaction writes whole pages, to the log and later to their place
    "journal_mode=WAL",
    "synchronous=FULL",
    "secure_delete=FAST",  # `forget` vacuums; zeroing each freed page of codes would write as much as the codes
    "trusted_schema=OFF",
    "cache_size=-256",  # KiB: an idle device's memory counts more than a page read twice
)
NEWEST = 2**63 - 1


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
    digest: SHA-256 of the file.   previous, fleet, personal: accuracies of the candidates on samples that none of them
    was trained on; None where those are too few to tell.   judged, groups: how many, of how many groups.
    chosen_on: how many samples, of folds over all, the choice was made by.
    patch: what makes the file of the slot's own (device/derived.py); None: it is that file.
    """

    chosen_at: int
    kind: str
    fitted: bool
    digest: bytes
    start: HeldHead
    previous: float | None = None
    fleet: float | None = None
    personal: float | None = None
    patch: bytes | None = None
    judged: int | None = None
    groups: int | None = None
    chosen_on: int | None = None


class DeviceStore:
    """One connection to DIR/state.db."""

    def __init__(self, path: Path, *, reading: bool = False) -> None:
        self._path = path
        self._db = database.connect(path, PRAGMAS, HINT, reads=SCHEMA_VERSION if reading else None)
        self.left = Left(self._db, lambda: self.features)

    @classmethod
    def create(cls, path: Path) -> DeviceStore:
        """The database, made with mode 0600 where it is not there yet."""
        if not path.exists():
            path.touch(mode=0o600)
        store = cls(path)
        database.create(store._db, SCHEMA, SCHEMA_VERSION)
        return store

    @classmethod
    def open(cls, path: Path, *, reading: bool = False) -> DeviceStore:
        """The database of an enrolled device. reading: for a command that writes nothing.

        Raises: ConfigError when it is not one, or a newer fl-tiny's; DataError when it is damaged.
        """
        hint = "fl-tiny device enroll DIR --code CODE"
        if not path.exists():
            raise ConfigError(f"{path.parent} is not a device", hint=hint)
        store = cls(path, reading=reading)
        store._db.create_function("feature_hash", 1, intake.hash_of, deterministic=True)  # for MIGRATIONS[7]
        database.migrate(store._db, path, MIGRATIONS, SCHEMA_VERSION, HINT)
        with database.reading(path, HINT):
            enrolled = store.get("enrolled")
        if enrolled is None:
            raise ConfigError(f"{path.parent} is not enrolled", hint=hint)
        return store

    def count_start(self) -> int:
        """The number of this start of the daemon, on the disk when this returns: only one of a copy has it, too."""
        with self._transaction() as db:
            boots = int(self.get("boots") or 0) + 1
            put_fact(db, "boots", boots)
        return boots

    def check(self) -> None:
        """Read the whole file, as the daemon does at its start. Raises: DataError when it is damaged."""
        with database.reading(self._path, HINT):
            found = self._db.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            raise DataError(f"the device's state is damaged: {found}", hint=HINT)

    def close(self) -> None:
        """Give the connection back."""
        self._db.close()

    def _transaction(self, *, flushed: bool = True) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._db, "state", flushed=flushed)

    def write(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction for the modules beside this one: on the disk when it ends, or nothing has changed."""
        return self._transaction()

    def row(self, query: str, *values: Any) -> Any:
        """The first row that a query finds, or None."""
        with database.reading(self._path, HINT):
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

    def add_samples(
        self, rows: Iterable[Sample], limit: int, model: bytes | None = None, once: str = "", stretch: str = ""
    ) -> Added:
        """Add samples that are not known yet, as ``intake.add`` says.

        model: whose features they are; None: those of the model in use.   once: a name of these samples; those that
        were added last under the same name are not looked at again.
        """
        with self._transaction() as db:
            if once and self.get("taken") == once:
                return Added(0)
            if once:
                put_fact(db, "taken", once)
            return intake.add(db, rows, limit, self.features if model is None else model, stretch)

    def samples(self, last: int | None = None) -> Iterator[tuple[Sample, bool]]:
        """Each sample and whether it is held out, oldest first, one at a time. last: no younger one than this id."""
        query = (
            "SELECT features, label, target, coalesce(grp, id), held FROM sample WHERE model=? AND id<=? ORDER BY id"
        )
        for *sample, held in self._db.execute(query, (self.features, NEWEST if last is None else last)):
            yield Sample(*sample), bool(held)

    def newest(self) -> int:
        """The id of the sample that came last, 0 before the first."""
        found: int = self.row("SELECT coalesce(max(id), 0) FROM sample")[0]
        return found

    def trainable(self, last: int) -> dict[int, int]:
        """Samples a label that are not held out, up to the id ``last``."""
        query = "SELECT label, count(*) FROM sample WHERE model=? AND held=0 AND id<=? GROUP BY label"
        return dict(self._db.execute(query, (self.features, last)))

    def grouped_features(self, model: bytes, size: int) -> Iterator[tuple[bytes, int]]:
        """Features of a model's samples, of ``size`` codes each, and their groups, one at a time."""
        query = "SELECT features, coalesce(grp, id) FROM sample WHERE model=? AND length(features)=?"
        yield from self._db.execute(query, (model, size))

    def newest_features(self, label: int, model: bytes) -> bytes | None:
        """Features of the sample of a class that was stored last."""
        query = "SELECT features FROM sample WHERE model=? AND label=? ORDER BY id DESC LIMIT 1"
        row = self.row(query, model, label)
        return row[0] if row else None

    def regroup(self, groups: Mapping[int, int]) -> None:
        """Put samples that an earlier version stored into groups; what is held out stays so. groups: by row number."""
        with self._transaction() as db:
            for row, group in groups.items():  # what came since is of the group of the row that it is alike to
                db.execute("UPDATE sample SET grp=? WHERE id=? OR grp=?", (group, row, row))
            db.execute("DELETE FROM meta WHERE key='unjoined'")

    def unjoined(self) -> dict[int, bytes]:
        """Features, by row number, that an earlier version stored and that nobody has put into groups yet."""
        query = "SELECT id, features FROM sample WHERE model=? AND id<=? ORDER BY id"
        return dict(self._db.execute(query, (self.features, self.get("unjoined") or 0)))

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
                drop_update(db)
        with database.writing(self._db, "state"):  # always: a full disk may have stopped the last one
            self._db.execute("VACUUM")  # the freed pages held features
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    # ---- head, update, choice -------------------------------------------------------------------------------

    def head(self) -> HeldHead:
        """The head held. There is one from enrolment on."""
        return _head(self._found(f"SELECT {_HEAD} WHERE head.id=(SELECT value FROM meta WHERE key='head')"))  # noqa: S608 - ours

    def _found(self, query: str) -> Any:
        """What is there in every whole file. One query: a process beside us may write between two."""
        found = self.row(query)
        if found is None:
            raise DataError("the device's state is damaged: a head is missing", hint=HINT)
        return found

    def put_head(self, head: HeldHead, *, anew: bool = False, restored: bool = False) -> None:
        """Hold a newer head. anew: it does not go on from the one held so far, so the residual is void.

        restored: nor does its number, since the gateway went on from a backup; the board's model is chosen again.
        Lost with the power, it is fetched again.
        """
        with self._transaction(flushed=False) as db:
            if anew:
                _drop_residual(db)
            if restored:
                db.execute("UPDATE meta SET value=min(value, ?) WHERE key='last_round'", (head.version,))
                db.execute("UPDATE kept SET chosen_at=-1")
            put_fact(db, "head", add_head(db, head))
            drop_unused(db)

    def journal(self) -> Journal | None:
        """The update that is owed, if there is one."""
        row = self.row(f"SELECT number, signed, codes, {_OWED}")
        if row is None:
            return None
        number, message, codes, _, *left = row
        return Journal(number, message, packing.codes_of(codes) if left[-1] else codes, *_residual(*left))

    def put_journal(self, owed: Journal, body: Body) -> None:
        """Keep a trained update until the gateway's receipt, and note that it leaves."""
        with self._transaction() as db:
            note_body(db, body, self.features)
            db.execute(f"DELETE FROM residual WHERE id IS NOT {_CARRIED}")  # noqa: S608 - ours
            row = (
                owed.number,
                owed.signed,
                packing.packed_codes(owed.codes),
                _add_residual(db, owed.residual, owed.steps),
            )
            db.execute("INSERT OR REPLACE INTO journal VALUES(1,?,?,?,?)", row)

    def settle(self, residual: bytes | None, steps: bytes, *, counted: bool) -> None:
        """The owed update is done with: what stays of it becomes the residual (None: nothing does).

        Lost with the power, it is had again: the update is owed still, and the gateway calls it a duplicate.
        """
        with self._transaction(flushed=False) as db:
            owed = self.row(f"SELECT number, {_OWED}")
            if residual is not None and owed and _residual(*owed[2:]) == (residual, steps):
                put_fact(db, "residual", owed[1])  # all stays where it was written; the next journal clears up
            else:
                drop_update(db)
                if residual is not None:
                    put_fact(db, "residual", _add_residual(db, residual, steps))
            if counted and owed:
                put_fact(db, "rounds", self.rounds + 1)
                put_fact(db, "last_round", owed[0])

    def residual(self) -> tuple[bytes, bytes] | None:
        """(residual, steps it is in), to be added to the next update."""
        row = self.row(f"SELECT {_RESIDUAL} FROM residual WHERE id={_CARRIED}")  # noqa: S608 - ours
        return _residual(*row) if row else None

    def kept(self) -> Kept:
        """The choice made last. There is one from enrolment on."""
        patch = "(SELECT runs FROM patch WHERE id=kept.patch)"
        query = f"SELECT {CHOICE}, {patch}, {_HEAD} JOIN kept ON head.id=start"
        row = self._found(query)
        chosen_at, kind, fitted, digest, _, previous, fleet, personal, _, *counts, runs = row[:13]
        start = _head(row[13:])
        return Kept(chosen_at, kind, bool(fitted), digest, start, previous, fleet, personal, runs, *counts)

    def put_kept(self, kept: Kept) -> None:
        """Remember the choice; the caller then switches the file. Lost with the power, it is made again."""
        with self._transaction(flushed=False) as db:
            put_choice(db, kept)
            drop_unused(db)


def add_head(db: sqlite3.Connection, head: HeldHead) -> int:
    """Where a head is in the database, within a transaction; put there when it is not. Two that use it share it."""
    query = f"SELECT head.id, {_HEAD} WHERE head.version=? AND head.signed=?"
    for place, *found in db.execute(query, (head.version, head.signed)):
        if _head(found) == head:
            return int(place)
    last = db.execute("SELECT id, body FROM head WHERE near IS NULL ORDER BY id DESC LIMIT 1").fetchone()
    difference = packing.body_difference(head.body, last[1]) if last else None
    row = (head.version, head.signed, *((head.body, None) if difference is None else (difference, last[0])))
    made = db.execute("INSERT INTO head(version, signed, body, near) VALUES(?,?,?,?)", row).lastrowid
    assert made is not None
    return made


def _head(row: Sequence[Any]) -> HeldHead:
    """Of the columns ``_HEAD``."""
    version, message, body, near = row
    return HeldHead(version, message, body if near is None else packing.body_of(body, near))


def put_choice(db: sqlite3.Connection, kept: Kept) -> None:
    """Replace the choice, within a transaction."""
    figures, counts = (kept.previous, kept.fleet, kept.personal), (kept.judged, kept.groups, kept.chosen_on)
    patch = None if kept.patch is None else _add_patch(db, kept.patch)
    row = (kept.chosen_at, kept.kind, kept.fitted, kept.digest, add_head(db, kept.start), *figures, patch, *counts)
    db.execute(f"INSERT OR REPLACE INTO kept(only, {CHOICE}) VALUES(1,?,?,?,?,?,?,?,?,?,?,?,?)", row)


def drop_unused(db: sqlite3.Connection) -> None:
    """Remove heads and patches that nothing names any more, within a transaction."""
    for statement in UNUSED:
        db.execute(statement)


def _add_patch(db: sqlite3.Connection, runs: bytes) -> int | None:
    found = db.execute("SELECT id FROM patch WHERE runs=?", (runs,)).fetchone()
    return found[0] if found else db.execute("INSERT INTO patch(runs) VALUES(?)", (runs,)).lastrowid


# what _head takes; beside a body that is a difference the one that it is to
_HEAD = "head.version, head.signed, head.body, whole.body FROM head LEFT JOIN head AS whole ON whole.id=head.near"
_RESIDUAL = "residual, steps, size, planes"  # what _residual takes
_CARRIED = "(SELECT value FROM meta WHERE key='residual')"
# rest and the residual of the update that is owed: a settled one stays in place, its residual the one carried
_OWED = f"rest, {_RESIDUAL} FROM journal JOIN residual ON id=rest WHERE rest IS NOT {_CARRIED}"


def _add_residual(db: sqlite3.Connection, residual: bytes, steps: bytes) -> int | None:
    row = (packing.packed_residual(residual), steps, len(residual), packing.FOLDED)
    return db.execute("INSERT INTO residual(residual, steps, size, planes) VALUES(?,?,?,?)", row).lastrowid


def _residual(stored: bytes, steps: bytes, size: int | None, form: int | None) -> tuple[bytes, bytes]:
    return packing.residual_of(stored, size, form), steps


def put_fact(db: sqlite3.Connection, key: str, value: object) -> None:
    """Set a fact of the ``meta`` table, within a transaction."""
    db.execute("INSERT OR REPLACE INTO meta VALUES(?,?)", (key, value))


def drop_update(db: sqlite3.Connection) -> None:
    """Remove an unsent update and what earlier ones left unsaid, within a transaction."""
    for table in ("meta WHERE key='residual'", "residual", "journal"):
        db.execute(f"DELETE FROM {table}")  # noqa: S608 - ours alone


def _drop_residual(db: sqlite3.Connection) -> None:
    """Remove the residual, but not that of an unsent update."""
    db.execute("DELETE FROM residual WHERE id=(SELECT value FROM meta WHERE key='residual')")
    db.execute("DELETE FROM meta WHERE key='residual'")


def floats_to_bytes(values: Sequence[float]) -> bytes:
    """Floats as float64 bytes, the form of ``steps`` in the tables."""
    return struct.pack(f"<{len(values)}d", *values)


def bytes_to_floats(blob: bytes) -> tuple[float, ...]:
    """The floats of such bytes."""
    return struct.unpack(f"<{len(blob) // 8}d", blob)
