# SPDX-License-Identifier: Apache-2.0
"""Databases of older versions are read with all that is in them, and what is long is stored once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_tiny.device.intake import Sample, hash_of
from fl_tiny.device.left import Body
from fl_tiny.device.schema import MIGRATIONS
from fl_tiny.device.store import DeviceStore, HeldHead, Journal, Kept
from fl_tiny.errors import DataError

# As versions 1 to 3 of the database made them; a board's file is of any of these.
META = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES('enrolled', 1), ('slot', 'b');
"""
STATE = """
CREATE TABLE head(only INTEGER PRIMARY KEY CHECK(only=1), version INT NOT NULL, signed BLOB NOT NULL,
  body BLOB NOT NULL) STRICT;
CREATE TABLE journal(only INTEGER PRIMARY KEY CHECK(only=1), number INT NOT NULL, signed BLOB NOT NULL,
  codes BLOB NOT NULL, residual BLOB NOT NULL, steps BLOB NOT NULL) STRICT;
CREATE TABLE residual(only INTEGER PRIMARY KEY CHECK(only=1), residual BLOB NOT NULL, steps BLOB NOT NULL) STRICT;
CREATE TABLE kept(only INTEGER PRIMARY KEY CHECK(only=1), chosen_at INT NOT NULL, kind TEXT NOT NULL,
  fitted INT NOT NULL, digest BLOB NOT NULL, version INT NOT NULL, signed BLOB NOT NULL, body BLOB NOT NULL,
  previous REAL, fleet REAL, personal REAL) STRICT;
INSERT INTO head VALUES(1, 5, x'05', x'0505');
INSERT INTO journal VALUES(1, 6, x'66', x'0102', x'0a0b', x'0c');
INSERT INTO residual VALUES(1, x'0d0e', x'0f');
INSERT INTO kept VALUES(1, 5, 'personal', 1, x'dd', 4, x'04', x'0404', 0.5, 0.25, 0.75);
"""
SAMPLE_1 = """
CREATE TABLE sample(id INTEGER PRIMARY KEY AUTOINCREMENT, label INT NOT NULL, held INT NOT NULL,
  features BLOB NOT NULL) STRICT;
CREATE INDEX sample_label ON sample(label, held);
INSERT INTO sample(label, held, features) VALUES(2, 0, x'0102'), (2, 1, x'0304');
"""
SAMPLE_2 = "ALTER TABLE sample ADD COLUMN target BLOB;"
SAMPLE_3 = """
ALTER TABLE sample ADD COLUMN model BLOB NOT NULL DEFAULT x''; DROP INDEX sample_label;
CREATE INDEX sample_model ON sample(model, label, held);
CREATE TABLE slot(only INTEGER PRIMARY KEY CHECK(only=1), name TEXT NOT NULL, manifest BLOB NOT NULL,
  model_pk BLOB NOT NULL, features BLOB NOT NULL, head_version INT NOT NULL, head_signed BLOB NOT NULL,
  head_body BLOB NOT NULL, chosen_at INT NOT NULL, kind TEXT NOT NULL, fitted INT NOT NULL, digest BLOB NOT NULL,
  version INT NOT NULL, signed BLOB NOT NULL, body BLOB NOT NULL, previous REAL, fleet REAL, personal REAL) STRICT;
INSERT INTO slot VALUES(1, 'a', x'aa', x'bb', x'cc', 9, x'09', x'0909', 8, 'global', 0, x'ee', 4, x'04', x'0404',
  NULL, NULL, 0.125);
"""
FILES = {
    1: META + STATE + SAMPLE_1,
    2: META + STATE + SAMPLE_1 + SAMPLE_2,
    3: META + STATE + SAMPLE_1 + SAMPLE_2 + SAMPLE_3,
}


LEFT, CARRIED = b"\xb1\x00", b"\xe1\x00"  # 0x0b0a and 0x0e0d in 1/256 of a step, in 1/16


@pytest.fixture(params=[*FILES, 4, 5, 6, 7], ids="version {}".format)
def version(request: pytest.FixtureRequest, tmp_path: Path) -> int:
    found: int = request.param
    base = min(found, max(FILES))
    with closing(sqlite3.connect(tmp_path / "state.db")) as db:
        db.create_function("feature_hash", 1, hash_of)
        db.executescript(FILES[base] + "".join(MIGRATIONS[n] for n in range(base, found)))
        db.execute(f"PRAGMA user_version={found}")
    return found


def test_an_older_file_is_read_with_all_that_is_in_it(version: int, tmp_path: Path) -> None:
    for _ in range(2):
        with closing(DeviceStore.open(tmp_path / "state.db")) as store:
            store.check()
            assert store.sample_count() == (2, 1) and store.counts() == {2: 2}
            assert [sample for sample, _ in store.samples()] == [
                Sample(b"\x01\x02", 2, group=1),
                Sample(b"\x03\x04", 2, group=2),
            ]
            start = HeldHead(4, b"\x04", b"\x04\x04")
            assert store.head() == HeldHead(5, b"\x05", b"\x05\x05")
            assert store.kept() == Kept(5, "personal", True, b"\xdd", start), (
                "figures of samples that heads had seen are dropped"
            )
            assert store.journal() == Journal(6, b"\x66", b"\x01\x02", LEFT, b"\x0c")
            assert store.residual() == (CARRIED, b"\x0f")
            if version >= 3:
                held = store.row("SELECT version, signed, body FROM head JOIN slot ON head.id=slot.head")
                begun = store.row("SELECT version, signed, body FROM head JOIN slot ON head.id=slot.start")
                assert (HeldHead(*held), HeldHead(*begun)) == (HeldHead(9, b"\x09", b"\x09\x09"), start)
                rest = "SELECT name, manifest, model_pk, features, chosen_at, kind, fitted, digest, previous, personal"
                assert store.row(f"{rest} FROM slot")[:4] == ("a", b"\xaa", b"\xbb", b"\xcc")
                assert store.row(f"{rest} FROM slot")[4:] == (8, "global", 0, b"\xee", None, None)
            assert store.row("SELECT count(*) FROM head") == ((3,) if version >= 3 else (2,)), "each once"


def test_an_older_file_goes_on_with_its_round(version: int, tmp_path: Path) -> None:
    with closing(DeviceStore.open(tmp_path / "state.db")) as store:
        owed = store.journal()
        assert owed is not None and version
        store.settle(owed.residual, owed.steps, counted=True)
        assert (store.journal(), store.residual()) == (None, (LEFT, b"\x0c"))
        assert (store.rounds, store.get("last_round")) == (1, 6)


def test_a_file_that_names_a_head_it_has_not_is_damaged(tmp_path: Path) -> None:
    with closing(DeviceStore.create(tmp_path / "state.db")) as store:
        store.put_head(HeldHead(1, b"s", b"b"))
        store.put(head=7)
        with pytest.raises(DataError, match="enrol anew"):
            store.head()


SMALL = st.integers(0, 3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("journal"), SMALL),
        st.tuples(st.just("settle"), st.sampled_from(["owed", "other", "none"])),
        st.tuples(st.just("head"), SMALL, st.booleans()),
        st.tuples(st.just("kept"), SMALL),
        st.tuples(st.just("forget")),
        st.tuples(st.just("restart")),
    ),
    max_size=12,
)


@given(STEPS)
@settings(max_examples=60)
def test_whatever_the_order_each_thing_is_what_was_put_last_and_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[object, ...]]
) -> None:
    path = tmp_path_factory.mktemp("dev") / "state.db"
    store = DeviceStore.create(path)
    heads = [HeldHead(n, bytes([n]), bytes([n]) * 3000) for n in range(4)]
    head, kept = heads[0], Kept(0, "model", False, b"d", heads[0])
    owed: Journal | None = None
    carried: tuple[bytes, bytes] | None = None
    residuals = 0
    store.put_head(head)
    store.put_kept(kept)
    store.put(enrolled=1)
    for step in steps:
        match step:
            case "journal", int(n):
                owed = Journal(n, b"s", bytes([n]) * 2000, bytes([n]) * 4000, b"x")
                store.put_journal(owed, Body(bytes([n]) * 8, n, 2000, 40))
                residuals = 1 + (carried is not None)
            case "settle", what:
                left = {"owed": owed.residual if owed else b"r", "other": b"other", "none": None}[str(what)]
                store.settle(left, b"x", counted=False)
                if what != "owed" or not owed:  # else all stays in place until the next journal
                    residuals = int(left is not None)
                owed, carried = None, None if left is None else (left, b"x")
            case "head", int(n), bool(anew):
                residuals -= anew and carried is not None
                head, carried = heads[n], None if anew else carried
                store.put_head(head, anew=anew)
            case "kept", int(n):
                runs = bytes([n]) * 2000 if n else None
                kept = Kept(n, "global", False, b"e", heads[n], patch=runs)
                store.put_kept(kept)
            case ("forget",):
                store.add_samples([Sample(b"f", 1)], 9)
                store.forget(None)
                owed, carried, residuals = None, None, 0
            case ("restart",):
                store.close()
                store = DeviceStore.open(path)
        assert (store.head(), store.kept(), store.journal(), store.residual()) == (head, kept, owed, carried)
        used, rows = len({head.version, kept.start.version}), store.row("SELECT count(*) FROM head")[0]
        assert used <= rows <= 2 * used, "besides those in use whole ones alone, which they are stored near to"
        assert store.row("SELECT count(DISTINCT version) FROM head") == (rows,)
        assert store.row("SELECT count(*) FROM patch") == (int(kept.patch is not None),)
        assert store.row("SELECT count(*) FROM residual") == (residuals,)
    store.close()
