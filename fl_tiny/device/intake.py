# SPDX-License-Identifier: Apache-2.0
"""Samples into a device's database: the same ones once, whole groups held out, the oldest out when it is full."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple

HELD_EVERY = 5  # about one sample in five of a class is held out, for good


class Sample(NamedTuple):
    """features: the backbone's int8 codes.   label: the class; of several labels the first, for values 0.

    target: several labels or values as float32, little endian; None: the label says it all.
    group: of samples that are alike or came together (learn/likeness.py); None: it stands alone.
    """

    features: bytes
    label: int
    target: bytes | None = None
    group: int | None = None


class Added(NamedTuple):
    """What became of samples. known: stored already, so not again.   relabelled: known, but with another label until
    now; the newest label counts."""

    added: int
    known: int = 0
    relabelled: int = 0


class Shares:
    """How many samples of each class came, and how many of those were held out.

    seen: by label.   held: by label; what is missing there follows from the rule of earlier versions, one by one.
    """

    def __init__(self, seen: dict[int, int], held: dict[int, int]) -> None:
        self.seen = seen
        self.held = {label: held.get(label, (n + 2 * label % HELD_EVERY) // HELD_EVERY) for label, n in seen.items()}

    def holds_out(self, label: int) -> bool:
        """True when a group that begins with a sample of this class is to be held out.

        A fifth of all that came so far, this sample included; small classes do not all begin with one.
        """
        return self.held.get(label, 0) < (self.seen.get(label, 0) + 1 + 2 * label % HELD_EVERY) // HELD_EVERY

    def count(self, label: int, *, held: bool) -> None:
        """Note a sample that has come."""
        self.seen[label] = self.seen.get(label, 0) + 1
        self.held[label] = self.held.get(label, 0) + held


def add(db: Any, rows: Iterable[Sample], limit: int, model: bytes, stretch: str = "") -> Added:
    """Add samples within a transaction; beyond ``limit`` the oldest of the most frequent class goes.

    A group number of 0 or more is a stored group's, a negative one stands for a new group of these rows.
    stretch: name of a span of time; new groups of calls in a row with the same name are one.
    """
    counts: dict[int, int] = dict(
        db.execute("SELECT label, count(*) FROM sample WHERE model=? GROUP BY label", (model,))
    )
    others: int = db.execute("SELECT count(*) FROM sample WHERE model!=?", (model,)).fetchone()[0]
    shares = Shares(_facts(db, "seen"), _facts(db, "out"))
    total = sum(counts.values()) + others
    groups = _Groups(db, shares, model, stretch)
    added = known = relabelled = 0
    for sample in rows:
        features, label, target, _ = sample
        found = _stored(db, features, model)
        if found is not None:
            row, old_label, old_target = found
            if (old_label, old_target) == (label, target):
                known += 1
                continue
            db.execute("UPDATE sample SET label=?, target=? WHERE id=?", (label, target, row))
            counts[old_label] -= 1
            counts[label] = counts.get(label, 0) + 1
            known, relabelled = known + 1, relabelled + 1
            continue
        group, held = groups.of(sample)
        row = db.execute(
            "INSERT INTO sample(label, held, features, target, model, grp, hash) VALUES(?,?,?,?,?,?,?)",
            (label, held, features, target, model, group, hash_of(features)),
        ).lastrowid
        groups.stored(sample, row if group is None else group, held=held)
        shares.count(label, held=held)
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
    if added:
        for key, numbers in (("seen", shares.seen), ("out", shares.held)):
            facts = [(f"{key}:{label}", n) for label, n in numbers.items()]
            db.executemany("INSERT OR REPLACE INTO meta VALUES(?,?)", facts)
    return Added(added, known, relabelled)


def hash_of(features: bytes) -> int:
    """A number by which equal features are looked up; those of one number are compared whole."""
    return int.from_bytes(hashlib.blake2b(features, digest_size=8).digest(), "big", signed=True)


class _Groups:
    """The groups that the rows of one call belong to, by the numbers that the caller gave them."""

    def __init__(self, db: Any, shares: Shares, model: bytes, stretch: str) -> None:
        self._db, self._shares, self._model, self._stretch = db, shares, model, stretch
        self._met: dict[int, tuple[int, bool]] = {}
        self._last = db.execute("SELECT value FROM meta WHERE key='stretch_group'").fetchone()
        if not stretch or db.execute("SELECT value FROM meta WHERE key='stretch'").fetchone() != (stretch,):
            self._last = None

    def of(self, sample: Sample) -> tuple[int | None, bool]:
        """The stored group of a new sample (None: it begins one), and whether that is held out."""
        if sample.group in self._met:
            return self._met[sample.group]
        for group in (sample.group, self._last[0] if self._last else None):
            if group is not None and group >= 0:
                (held,) = self._db.execute(
                    "SELECT min(held) FROM (SELECT held FROM sample WHERE id=?1 AND grp IS NULL UNION ALL"
                    " SELECT held FROM sample WHERE grp=?1)",
                    (group,),
                ).fetchone()
                if held is not None:
                    return group, bool(held)
        return None, self._shares.holds_out(sample.label) and self._trains(sample.label)

    def stored(self, sample: Sample, group: int, *, held: bool) -> None:
        """Note in which group a sample was stored."""
        if sample.group is not None:
            self._met[sample.group] = group, held
        if self._stretch and self._last != (group,):
            self._last = (group,)
            facts = [("stretch", self._stretch), ("stretch_group", group)]
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES(?,?)", facts)

    def _trains(self, label: int) -> bool:
        """True when a sample of this class is there that is not held out."""
        query = "SELECT 1 FROM sample WHERE model=? AND label=? AND held=0 LIMIT 1"
        return self._db.execute(query, (self._model, label)).fetchone() is not None


def _stored(db: Any, features: bytes, model: bytes) -> tuple[int, int, bytes | None] | None:
    """Row, label and target of the sample with the same features."""
    query = "SELECT id, label, target, features FROM sample WHERE hash=? AND model=?"
    for row, label, target, stored in db.execute(query, (hash_of(features), model)).fetchall():
        if stored == features:
            return row, label, target
    return None


def _facts(db: Any, key: str) -> dict[int, int]:
    """Numbers by label, of the ``meta`` table."""
    rows = db.execute("SELECT key, value FROM meta WHERE key LIKE ?", (f"{key}:%",))
    return {int(name.partition(":")[2]): value for name, value in rows}
