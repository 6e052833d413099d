# SPDX-License-Identifier: Apache-2.0
"""What a gateway makes of sums: outliers among devices, removal in an open round, databases of an older version."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from fl_tiny.device.backbone import open_backbone
from fl_tiny.errors import ConfigError
from fl_tiny.gateway import forget, setup
from fl_tiny.gateway.gather import ExactStart, Grams
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.notices import outliers
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Entry, OpenRound
from fl_tiny.lab import watch
from fl_tiny.learn import gram
from fl_tiny.learn.head import head_spec, read_parameters
from fl_tiny.learn.tflite import cut, read_model
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.update import decode_head, encode_head

V1 = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE device(did BLOB PRIMARY KEY, pk BLOB UNIQUE NOT NULL, psk BLOB NOT NULL, state TEXT NOT NULL, name TEXT,
  samples INT, head INT, last_round INT, seen REAL, boot TEXT) STRICT;
CREATE TABLE version(number INTEGER PRIMARY KEY, digest BLOB NOT NULL, body BLOB NOT NULL, signed BLOB NOT NULL,
  residual BLOB NOT NULL, steps BLOB NOT NULL, weight INT NOT NULL) STRICT;
CREATE TABLE round(rid BLOB PRIMARY KEY, number INT NOT NULL, base INT NOT NULL REFERENCES version(number),
  state TEXT NOT NULL, left_s REAL NOT NULL, seconds REAL, why TEXT) STRICT;
CREATE TABLE answer(rid BLOB NOT NULL REFERENCES round(rid) ON DELETE CASCADE, did BLOB NOT NULL, said INT NOT NULL,
  PRIMARY KEY(rid, did)) STRICT, WITHOUT ROWID;
CREATE TABLE ledger(rid BLOB NOT NULL REFERENCES round(rid), did BLOB NOT NULL REFERENCES device(did),
  signed BLOB NOT NULL, samples INT NOT NULL, status INT NOT NULL, held INT, loss REAL, accuracy REAL, ranges BLOB,
  codes BLOB, consumed_by INT REFERENCES version(number), PRIMARY KEY(rid, did)) STRICT;
INSERT INTO version VALUES(0, x'00', x'00', x'00', x'', x'', 0);
INSERT INTO round VALUES(x'01', 1, 0, 'aborted', 0.0, 2.5, 'nobody');
PRAGMA user_version=1;
"""


def fleet(directory: Path, labels: int) -> tuple[Store, ExactStart, dict[bytes, bytes], dict[bytes, bytes]]:
    """A gateway for the watch model; sums of its ten arms, and of the same with shuffled labels, by device."""
    found = watch.load()
    file = directory / "watch.tflite"
    file.write_bytes(found.model)
    setup.initialise(directory / "gw", file, None, Wanted(2))
    store = Store.open(directory / "gw" / "state.db")
    start = ExactStart.of(store, found.model)
    model = read_model(found.model)
    spec = head_spec(model, 2)
    base = decode_head(encode_head(read_parameters(spec)), spec.tensors)
    backbone = open_backbone(cut(model, spec.feature_tensor))
    honest, shuffled = {}, {}
    for place, arm in enumerate(found.arms):
        part = watch.labelled(arm, labels)
        x = backbone.run(part.x).reshape(len(part.x), -1)
        y = np.random.default_rng(place).permutation(part.y)
        honest[bytes([place]) * 16] = gram.to_bytes(gram.summed(spec, base, start.plan, x, part.y))
        shuffled[bytes([place]) * 16] = gram.to_bytes(gram.summed(spec, base, start.plan, x, y))
    return store, start, honest, shuffled


def enrol(store: Store, did: bytes) -> None:
    store.add_pairings([(did[:8], bytes(16))], 60.0)
    store.enrol(did[:8], did, did * 2, bytes(32), None)
    store.activate(did)


def update(did: bytes) -> bytes:
    """A signed update of a device, as the ledger keeps it."""
    return signed.sign(wire.encode(wire.Update(b"r" * 8, did, bytes(32), 9, bytes(32), 9)), did * 2)


@pytest.mark.parametrize("labels", [5, 20])
def test_a_device_with_shuffled_labels_stands_out_and_no_other_does(tmp_path: Path, labels: int) -> None:
    _, start, honest, shuffled = fleet(tmp_path, labels)
    assert max(score or 0 for score in start.outliers(list(honest.values()))) < 3
    for liar in (0, 5):
        bodies = list(honest.values())
        bodies[liar] = list(shuffled.values())[liar]
        scores = [score or 0 for score in start.outliers(bodies)]
        assert scores.pop(liar) > 3 > max(scores)
    assert start.outliers(list(honest.values())[:3]) == [None] * 3


def test_forgetting_ends_an_open_round_and_leaves_a_sound_ledger(tmp_path: Path) -> None:
    store, start, honest, _ = fleet(tmp_path, 5)
    dids = list(honest)[:3]
    bodies = [honest[did] for did in dids]
    store.open_round(OpenRound(b"r" * 8, 1, 0, 60.0, "exact"))
    for did in dids:
        enrol(store, did)
        samples = gram.from_bytes(honest[did], start.plan.width, start.plan.outputs).samples
        store.receive(b"r" * 8, [Entry(did, update(did), samples, None, None, None, None, honest[did])])
    seed = bytes(32)
    made = Grams(start, 10).made(store.head(), lambda: store.accepted(b"r" * 8))
    assert made.head.head.body == start.made(start.total(bodies)[0]).head.head.body
    first = forget.make_version(1, made, bytes(32), seed)
    store.publish(b"r" * 8, first, 1.0, shares=made.shares, outliers=made.outliers, keeps_sums=True)
    assert store.faults() == []
    store.open_round(OpenRound(b"s" * 8, 2, 1, 60.0, "train"))
    store.receive(b"s" * 8, [Entry(dids[0], update(dids[0]), 9, None, None, None, None, b"codes")])
    version = forget.carry_out(store, start, seed, dids[1])
    rest, _ = start.total([honest[did] for did in (dids[0], dids[2])])
    assert version.number == 2 and version.body == start.made(rest).head.head.body
    assert store.opened() is None and store.faults() == []
    assert honest[dids[1]] not in (tmp_path / "gw/state.db").read_bytes()
    for did in (dids[0], dids[2]):
        last = forget.carry_out(store, start, seed, did)
    assert last.body == store.version(0).body, "without any device the head is the model's own"
    assert store.faults() == []


def test_a_database_of_version_1_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as db:
        db.executescript(V1)
    db.close()
    for _ in range(2):
        store = Store.open(path)
        assert [(r["number"], r["kind"], r["state"]) for r in store.rounds()] == [(1, "train", "aborted")]
        assert outliers(store) == {} and store.faults() == []
        store.open_round(OpenRound(b"r" * 8, 1, 0, 1.0, "exact"))
        store.abort(b"r" * 8, "no device takes part", 1.0)
        store.close()
        with sqlite3.connect(path) as db:
            db.execute("UPDATE round SET kind='train'")
        db.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(ConfigError, match="version 99"):
        Store.open(path)
