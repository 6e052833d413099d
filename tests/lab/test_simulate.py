# SPDX-License-Identifier: Apache-2.0
"""Rounds in one process: the same seed gives the same files, and federating beats training alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_tiny.device.backbone import open_backbone
from fl_tiny.device.intake import Sample
from fl_tiny.device.store import DeviceStore
from fl_tiny.lab import encodings, fashion, watch
from fl_tiny.lab.simulate import Client, client_of, simulate
from fl_tiny.learn import likeness
from fl_tiny.learn.head import head_spec
from fl_tiny.learn.tflite import cut, read_model
from fl_tiny.protocol import wire

FASHION = Path(__file__).parent.parent / "models" / "fashion.tflite"


def clients(devices: int) -> tuple[bytes, list[Client]]:
    found = watch.load()
    model = read_model(found.model)
    spec = head_spec(model, 2)
    backbone = open_backbone(cut(model, spec.feature_tensor))
    made = []
    for arm in found.arms[:devices]:
        part = watch.labelled(arm, 5)
        features = backbone.run(part.x).reshape(len(part.x), -1)
        made.append(client_of(features, part.y, spec.features.zero_point))
    return found.model, made


def test_the_simulation_holds_out_what_a_devices_store_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 7, 200)
    codes = np.repeat(rng.integers(-128, 128, (100, 64)), 2, axis=0).astype(np.int8)  # each twice, nearly
    codes[1::2, 0] ^= 1
    store = DeviceStore.create(tmp_path / "state.db")
    groups = likeness.join(codes, 0)
    rows = zip(codes, labels, groups, strict=True)
    store.add_samples((Sample(f.tobytes(), int(label), None, int(group)) for f, label, group in rows), 5000)
    stored = [held for _, held in store.samples()]
    store.close()
    made = client_of(codes, labels, 0)
    assert stored == made.held.tolist() and 20 < sum(stored) < 60
    assert stored[::2] == stored[1::2] and len(np.unique(made.groups)) == 100


def test_the_same_seed_gives_the_same_files_and_another_seed_others() -> None:
    model, few = clients(2)
    train = wire.Train(2, 16, 0.1)
    one, same, other = (
        simulate(model, 2, few, rounds=2, train=train, seed=seed, personal_epochs=2) for seed in (1, 1, 2)
    )
    assert (one.fleet, one.kept, one.accuracy) == (same.fleet, same.kept, same.accuracy)
    assert one.fleet != other.fleet != model
    assert len(one.fleet) == len(model) and len(one.kept) == 2


def test_labels_are_spread_over_the_earlier_part_and_equally_many_a_class() -> None:
    for arm in watch.load().arms:
        part = watch.labelled(arm, 5)
        assert np.bincount(part.y, minlength=7).tolist() == [5] * 7
        assert watch.labelled(arm, None) is arm.earlier


@pytest.mark.slow
@pytest.mark.skipif(not fashion.IMAGES.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fifteen_lopsided_clients_learn_together_what_none_learns_alone() -> None:
    found = fashion.run(FASHION.read_bytes(), 0.3, rounds=10, tested=1000)
    assert found.fedavg > found.alone + 0.15
    assert found.central > found.fedavg - 0.02


@pytest.mark.skipif(not fashion.IMAGES.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_one_exact_round_is_worth_many_of_training_however_lopsided_the_clients_are() -> None:
    model = FASHION.read_bytes()
    solved = {alpha: fashion.run_exact(model, alpha, rounds=3, tested=2000) for alpha in (0.1, 1.0)}
    assert abs(solved[0.1].exact - solved[1.0].exact) < 0.02, "other samples are held out, else nothing differs"
    assert solved[0.1].exact > 0.75 and solved[0.1].fedavg > solved[0.1].exact - 0.03
    assert solved[1.0].fedavg > solved[1.0].exact


def test_small_updates_cost_little_accuracy_and_few_bytes() -> None:
    found = encodings.compare(encodings.watches(devices=5, rounds=8))
    assert all(found[name]["points_below_float32"] < 3 for name in ("int8", "int4", "topk")), found
    assert found["topk"]["up"] < found["int4"]["up"] / 3 < found["int8"]["up"] / 5
    assert found["int4"]["down"] < 6_500
