# SPDX-License-Identifier: Apache-2.0
"""A head that does worse than the one before is told, of the same devices and of enough samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_tiny.gateway import setup
from fl_tiny.gateway.gather import first_made, make_version
from fl_tiny.gateway.manifests import Wanted
from fl_tiny.gateway.notices import notices
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Entry, OpenRound
from fl_tiny.lab import watch
from fl_tiny.learn.head import head_spec, read_parameters
from fl_tiny.learn.tflite import read_model
from fl_tiny.protocol import signed, wire

Judged = dict[int, tuple[int, float]]  # a device's number: held-out samples, share right


def rounds(directory: Path, *every: Judged) -> Store:
    """A ledger with a published round for each of ``every``: what devices said of the head that it began with."""
    model = directory / "watch.tflite"
    model.write_bytes(watch.load().model)
    setup.initialise(directory / "gw", model, None, Wanted(2))
    store = Store.open(directory / "gw" / "state.db")
    dids = {place: bytes([place]) * 16 for judged in every for place in judged}
    for place, did in dids.items():
        store.add_devices([(did, did * 2, bytes([place]) * 32)])
    made = first_made(read_parameters(head_spec(read_model(model.read_bytes()), 2)))
    for number, judged in enumerate(every, 1):
        rid = bytes([number]) * 8
        store.open_round(OpenRound(rid, number, number - 1, 60.0, "train"))
        entries = []
        for place, (held, share) in judged.items():
            update = wire.Update(rid, dids[place], bytes(32), 40, bytes(32), 1)
            message = signed.sign(wire.encode(update), bytes(32))
            entries.append(Entry(dids[place], message, 40, held, 1.0, share, None, b"codes"))
        store.receive(rid, entries)
        store.publish(rid, make_version(number, made, bytes(32), bytes(32)), 1.0)
    return store


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({1: (100, 0.9), 2: (100, 0.9)}, {1: (100, 0.3), 2: (100, 0.6)}, True),
        ({1: (100, 0.9), 2: (100, 0.9)}, {1: (100, 0.88), 2: (100, 0.9)}, False),  # chance
        ({1: (9, 0.9), 2: (9, 0.9)}, {1: (9, 0.1), 2: (9, 0.1)}, False),  # too few to tell
        ({1: (100, 0.9), 2: (100, 0.9)}, {1: (100, 0.9), 3: (100, 0.1)}, False),  # another device, not another head
        ({1: (100, 0.3)}, {1: (100, 0.9)}, False),
    ],
)
def test_a_fall_of_accuracy_is_told_when_it_is_one(tmp_path: Path, before: Judged, after: Judged, told: bool) -> None:
    store = rounds(tmp_path, before, after)
    found = [notice.text for notice in notices(store)]
    assert bool(found) == told
    if told:
        assert found[0].startswith("head 1 is right of 0.45 of 200 held-out samples, head 0 was of 0.90")


def test_a_fleet_without_rounds_has_nothing_to_tell(tmp_path: Path) -> None:
    assert notices(rounds(tmp_path)) == []
