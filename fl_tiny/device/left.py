# SPDX-License-Identifier: Apache-2.0
"""What has left this board, and what it would not send: tables of the device's database."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from fl_tiny.database import transaction
from fl_tiny.protocol.consent import Past

log = logging.getLogger(__name__)

BODIES, REFUSALS = 256, 64  # rows that are remembered at least


@dataclass(frozen=True, slots=True)
class Summed:
    """Sums that leave. manifest: SHA-256.   last: id of the youngest sample.   digest: SHA-256 of the sums."""

    manifest: bytes
    last: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Body:
    """A body that leaves this board for a round. size: bytes.   samples: it is of.   summed: None for an update."""

    rid: bytes
    number: int
    size: int
    samples: int
    summed: Summed | None = None

    @property
    def kind(self) -> str:
        """For people."""
        return "train" if self.summed is None else "sums"


def note_body(db: sqlite3.Connection, body: Body, features: bytes) -> None:
    """A body is about to leave, within the transaction that keeps it. features: whose features its samples are."""
    row = (body.rid, body.number, body.kind, body.size, body.samples)
    newest = db.execute("INSERT INTO sent(rid, number, kind, size, samples) VALUES(?,?,?,?,?)", row).lastrowid
    assert newest is not None
    db.execute("DELETE FROM sent WHERE id<=? AND number!=?", (newest - BODIES, body.number))
    if body.summed is not None:
        s = body.summed
        db.execute(
            "INSERT OR IGNORE INTO summed VALUES(?,?,?,?,?)", (s.manifest, features, s.last, body.samples, s.digest)
        )


class Left:
    """The device store's tables ``sent``, ``summed`` and ``refusal``."""

    def __init__(self, db: sqlite3.Connection, features: Callable[[], bytes]) -> None:
        """features: whose features the samples in use are."""
        self._db, self._features = db, features

    def past(self, rid: bytes, number: int) -> Past:
        """What has left this board before an offer. number: of the offer's round."""
        query = "SELECT coalesce(max(rid=?), 0), coalesce(sum(number=?), 0) FROM sent"
        same, bodies = self._db.execute(query, (rid, number)).fetchone()
        summed = self.summed()
        return Past(bool(same), bodies, summed[1] if summed else None)

    def summed(self) -> tuple[int, int] | None:
        """(id of the youngest, number) of the samples whose sums have left; None before the first sums."""
        query = "SELECT last, samples FROM summed WHERE features=? ORDER BY last LIMIT 1"
        found: tuple[int, int] | None = self._db.execute(query, (self._features(),)).fetchone()
        return found

    def digest(self, manifest: bytes) -> bytes | None:
        """SHA-256 of the sums that have left for a manifest, None when none have."""
        row = self._db.execute("SELECT digest FROM summed WHERE manifest=?", (manifest,)).fetchone()
        return row[0] if row else None

    def refuse(self, number: int, why: str) -> None:
        """Remember what this board would not do, for its owner; lost with the power, it is refused again."""
        log.warning("not allowed round=%d why=%r", number, why)
        with transaction(self._db, "state", flushed=False) as db:
            db.execute("INSERT OR IGNORE INTO refusal VALUES(?,?)", (number, why))
            db.execute("DELETE FROM refusal WHERE rowid<=(SELECT max(rowid) FROM refusal)-?", (REFUSALS,))

    def bodies(self) -> list[tuple[int, str, int, int]]:
        """(number of the round, kind, bytes, samples) of what has left, oldest first."""
        return list(self._db.execute("SELECT number, kind, size, samples FROM sent ORDER BY id"))

    def refusals(self) -> list[tuple[int, str]]:
        """(number of the round, reason) of what this board would not do, oldest first."""
        return list(self._db.execute("SELECT number, why FROM refusal ORDER BY rowid"))
