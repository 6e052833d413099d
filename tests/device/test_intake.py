# SPDX-License-Identifier: Apache-2.0
"""The same sample is stored once, a group is held out as a whole, and what was held out stays so."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_tiny.device.intake import Added, Sample, hash_of
from fl_tiny.device.schema import MIGRATIONS
from fl_tiny.device.store import DeviceStore

WIDTH = 16


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DeviceStore]:
    with closing(DeviceStore.create(tmp_path / "state.db")) as found:
        yield found


def codes(number: int) -> bytes:
    return np.random.default_rng(number).integers(-128, 128, WIDTH, np.int8).tobytes()


def test_the_same_features_are_known_and_the_newest_label_counts_where_they_are(store: DeviceStore) -> None:
    rows = [Sample(codes(n), n % 2) for n in range(20)]
    assert store.add_samples(rows, 100) == Added(20)
    before = list(store.samples())
    assert store.add_samples(rows, 100) == Added(0, 20)
    turned = [sample._replace(label=1 - sample.label) for sample in rows[:5]]
    assert store.add_samples([*turned, *turned], 100) == Added(0, 10, 5)
    after = list(store.samples())
    assert [held for _, held in after] == [held for _, held in before], "what is held out stays so"
    assert [sample.label for sample, _ in after[:5]] == [1 - sample.label for sample, _ in before[:5]]
    assert store.counts() == {label: sum(s.label == label for s, _ in after) for label in (0, 1)}


def test_targets_and_other_models_are_told_apart(store: DeviceStore) -> None:
    assert store.add_samples([Sample(codes(1), 0, b"\0\0\0\0")], 100) == Added(1)
    assert store.add_samples([Sample(codes(1), 0, b"\1\0\0\0")], 100) == Added(0, 1, 1)
    assert store.add_samples([Sample(codes(1), 0, b"\1\0\0\0")], 100, b"other") == Added(1)


def test_features_of_one_hash_that_differ_are_two_samples(store: DeviceStore) -> None:
    store.add_samples([Sample(codes(1), 0)], 100)
    with store.write() as db:
        db.execute("UPDATE sample SET hash=?", (hash_of(codes(2)),))
    assert store.add_samples([Sample(codes(2), 0)], 100) == Added(1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 25)), min_size=1, max_size=40))
def test_groups_are_held_out_whole_and_about_a_fifth_of_a_class(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, int, int]]
) -> None:
    """Each batch: a class, how many groups, how large."""
    number = 0
    with closing(DeviceStore.create(tmp_path_factory.mktemp("d") / "state.db")) as store:
        for label, groups, size in batches:
            rows = []
            for group in range(groups):
                for _ in range(size):
                    number += 1
                    rows.append(Sample(codes(number), label, None, -1 - group))
            store.add_samples(rows, 65_535)
        found = [(s.label, s.group, held) for s, held in store.samples()]
    assert len({group: held for _, group, held in found}) == len({(group, held) for _, group, held in found})
    largest = max(size for _, _, size in batches)
    for label in {label for label, _, _ in found}:
        of_class = [held for each, _, held in found if each == label]
        assert not of_class[0], "a class begins with something to train on"
        assert sum(of_class) <= len(of_class) / 5 + largest + 1
        assert sum(of_class) >= len(of_class) / 5 - largest - 1


def test_single_samples_are_held_out_as_one_in_five_and_classes_begin_differently(store: DeviceStore) -> None:
    store.add_samples([Sample(codes(n), n % 10) for n in range(40)], 100)
    held = [sample.label for sample, out in store.samples() if out]
    assert 6 <= len(held) <= 10 and len(set(held)) == len(held)


def test_a_stretch_goes_on_over_calls_and_ends_with_its_name(store: DeviceStore) -> None:
    for call in range(12):
        store.add_samples([Sample(codes(call), 0)], 100, stretch="camera:1" if call < 8 else "camera:2")
    groups = [sample.group for sample, _ in store.samples()]
    assert len(set(groups[:8])) == 1 and len(set(groups[8:])) == 1 and len(set(groups)) == 2


def test_a_group_whose_samples_are_gone_begins_anew(store: DeviceStore) -> None:
    assert store.add_samples([Sample(codes(1), 0, None, 4711)], 100) == Added(1)
    (sample, held), *_ = store.samples()
    assert sample.group == 1 and not held


def test_what_an_older_version_held_out_stays_held_out_and_is_never_trained_on(tmp_path: Path) -> None:
    """Version 7 held out every fifth sample; among those here are copies of others."""
    path = tmp_path / "state.db"
    DeviceStore.create(path).close()
    with closing(sqlite3.connect(path)) as db:
        for column in ("grp", "hash"):
            db.execute(f"DROP INDEX sample_{'group' if column == 'grp' else 'hash'}")
            db.execute(f"ALTER TABLE sample DROP COLUMN {column}")
        for table in ("sent", "summed", "refusal"):
            db.execute(f"DROP TABLE {table}")
        for table in ("kept", "slot"):
            for column in ("judged", "groups", "chosen_on"):
                db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        for n in range(50):
            values = (n % 2, n % 5 == 4, codes(n // 3))
            db.execute("INSERT INTO sample(label, held, features) VALUES(?,?,?)", values)
        db.executemany("INSERT INTO meta VALUES(?,?)", [("enrolled", 1), ("seen:0", 25), ("seen:1", 25)])
        db.execute("PRAGMA user_version=7")
        db.commit()
    assert MIGRATIONS[7]
    with closing(DeviceStore.open(path)) as store:
        before = [held for _, held in store.samples()]
        assert sum(before) == 10 and len(store.unjoined()) == 50
        assert store.add_samples([Sample(codes(0), 0)], 100) == Added(0, 1), "it is looked up among the old ones"
        store.regroup({row: 1 + (row - 1) // 3 * 3 for row in store.unjoined()})
        assert store.unjoined() == {} and [held for _, held in store.samples()] == before
        assert len({sample.group for sample, _ in store.samples()}) == 17
        store.add_samples([Sample(codes(1000 + n), n % 2) for n in range(20)], 100)
        assert sum(held for _, held in store.samples()) == 14, "a fifth of all that came"
