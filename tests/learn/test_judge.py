# SPDX-License-Identifier: Apache-2.0
"""A head is replaced only when training was better on samples held out from it (facts.md, trap 11)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_tiny.errors import DataError
from fl_tiny.learn.head import head_spec, read_parameters
from fl_tiny.learn.judge import Score, better, judged, personalise, splits, trained
from fl_tiny.learn.requant import patch, requantise
from fl_tiny.learn.tflite import read_model
from fl_tiny.learn.train import Settings
from tests.learn.test_train import a_task
from tests.learn.tiny import classifier


@settings(max_examples=200)
@given(st.integers(10, 3000), st.integers(1, 12), st.integers(0, 99))
def test_held_out_parts_have_their_size_and_every_class_its_share(n: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    parts = splits(labels, np.arange(n), rng)
    held = int(min(0.2 * n, max(50, n / 10)))
    if held >= 50:
        assert [int(part.sum()) for part in parts] == [held]
        for label in range(classes):
            of_class = labels == label
            assert abs((parts[0] & of_class).sum() - of_class.sum() * held / n) <= 1.01
    else:
        assert len(parts) == 5
        assert (np.sum(parts, axis=0) == 1).all()
        for label in range(classes):
            counts = [int((part & (labels == label)).sum()) for part in parts]
            assert max(counts) - min(counts) <= 1


def test_five_hundred_samples_hold_out_fifty() -> None:
    labels = np.arange(500) % 10
    assert [int(part.sum()) for part in splits(labels, np.arange(500), np.random.default_rng(0))] == [50]
    assert len(splits(labels[:249], np.arange(249), np.random.default_rng(0))) == 5


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(DataError, match="too few"):
        splits(np.zeros(9, np.int64), np.arange(9), np.random.default_rng(0))


def test_better_means_less_loss_and_no_less_accuracy() -> None:
    old = Score(1.0, 0.5, 50)
    assert better(Score(0.9, 0.5, 50), old)
    assert not better(Score(0.9, 0.49, 50), old)
    assert not better(Score(1.0, 0.6, 50), old)
    assert not better(Score(float("nan"), 0.9, 50), old)


def test_training_on_another_task_is_accepted_and_kept_on_all_samples() -> None:
    spec = head_spec(read_model(classifier()), 1)
    features, labels = a_task(spec, 800)
    outcome = personalise(spec, features[:400], labels[:400], np.arange(400), Settings(), np.random.default_rng(1))
    assert outcome.accepted
    assert outcome.head is not None
    assert outcome.after.accuracy > outcome.before.accuracy + 0.3
    unseen = judged(spec, [outcome.head], features[400:], labels[400:], [np.ones(400, bool)])
    assert unseen.accuracy > 0.9


def test_labels_without_a_rule_are_not_learned() -> None:
    data = classifier()
    spec = head_spec(read_model(data), 1)
    own = requantise(spec, read_parameters(spec), None)
    rng = np.random.default_rng(3)
    accepted = 0
    for seed in range(4):
        features = rng.integers(-128, 128, (60, 12), np.int8)
        found = own.run(features).argmax(axis=1)
        outcome = personalise(
            spec, features, found.astype(np.int64), np.arange(60), Settings(), np.random.default_rng(seed)
        )
        accepted += outcome.accepted
        assert outcome.accepted == (outcome.head is not None)
    assert accepted == 0  # the model's own labels: nothing can be more right


def test_thirty_samples_that_make_a_good_head_worse_are_refused() -> None:  # trap 11
    """A head that knows its task, and thirty samples more: taken always they cost accuracy, judged first hardly."""
    data = classifier(sizes=(24, 5))
    spec = head_spec(read_model(data), 1)
    features, labels = a_task(spec, 4000)
    noisy = np.clip(features + _rng(1).normal(size=features.shape) * 60, -128, 127).astype(np.int8)
    head = trained(spec, read_parameters(spec), noisy[:1500], labels[:1500], settings=Settings(), rng=_rng(0))
    spec = head_spec(read_model(patch(data, spec, head)), 1)
    start, unseen, all_of = read_parameters(spec), slice(2000, 4000), [np.ones(2000, bool)]
    before = judged(spec, [requantise(spec, start, None)], noisy[unseen], labels[unseen], all_of).accuracy
    always, kept, accepted = [], [], 0
    for seed in range(6):
        chosen = _rng(seed).permutation(np.arange(1500, 2000))[:30]
        taken = trained(spec, start, noisy[chosen], labels[chosen], settings=Settings(), rng=_rng(seed))
        always.append(judged(spec, [taken], noisy[unseen], labels[unseen], all_of).accuracy)
        outcome = personalise(spec, noisy[chosen], labels[chosen], np.arange(30), Settings(), _rng(seed))
        accepted += outcome.accepted
        better_head = outcome.head
        kept.append(
            before
            if better_head is None
            else judged(spec, [better_head], noisy[unseen], labels[unseen], all_of).accuracy
        )
    assert before > 0.6
    assert np.mean(always) < before - 0.03
    assert np.mean(kept) > before - 0.02
    assert accepted <= 1  # by chance: five folds of six samples are a noisy judge


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
