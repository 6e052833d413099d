# SPDX-License-Identifier: Apache-2.0
"""Exact sums and the head that they determine: the same bits however samples are spread, and the ridge solution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_tiny.errors import DataError, ModelError
from fl_tiny.learn import exact, gram, ridge
from fl_tiny.learn.dense import forward
from fl_tiny.learn.head import HeadSpec, head_spec, read_parameters
from fl_tiny.learn.loss import Task, classes_of, right_share
from fl_tiny.learn.requant import requantise
from fl_tiny.learn.tflite import read_model

MODELS = Path(__file__).parents[1] / "models"
LIMIT = 262_144
SEED = b"s" * 32


def spec_of(name: str, layers: int) -> HeadSpec:
    return head_spec(read_model((MODELS / f"{name}.tflite").read_bytes()), layers)


def samples(spec: HeadSpec, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Feature codes in clusters, one a class."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(5).integers(-100, 100, (spec.classes, spec.feature_size))
    labels = rng.integers(0, spec.classes, n)
    codes = middles[labels] + rng.normal(size=(n, spec.feature_size)) * 120
    return np.clip(np.rint(codes), -128, 127).astype(np.int8), labels


def solved(spec: HeadSpec, sums: gram.Sums) -> list[bytes]:
    base = read_parameters(spec)
    made = exact.exact_head(spec, base, exact.plan(spec, SEED, LIMIT), sums)
    return [each.tobytes() for each in made.params] + [np.array(made.ranges).tobytes()]


HEADS = [("bench/head_224-16-4", 2), ("zoo/no_bias", 1), ("zoo/hidden_relu6", 2), ("zoo/logistic_one", 1)]


@given(parts=st.lists(st.integers(0, 5), min_size=60, max_size=60), head=st.sampled_from(HEADS))
@settings(max_examples=40)
def test_any_spread_of_samples_over_devices_gives_the_bits_of_all_in_one_place(
    parts: list[int], head: tuple[str, int]
) -> None:
    spec = spec_of(*head)
    base, plan = read_parameters(spec), exact.plan(spec, SEED, LIMIT)
    x, y = samples(spec, 60)
    whole = gram.summed(spec, base, plan, x, y)
    total = None
    for device in np.random.default_rng(len(set(parts))).permutation(6):
        own = np.array(parts) == device
        if own.any():
            body = gram.to_bytes(gram.summed(spec, base, plan, x[own], y[own]))
            assert len(body) == gram.size_bytes(plan.width, plan.outputs)
            sums = gram.from_bytes(body, plan.width, plan.outputs)
            total = sums if total is None else total.plus(sums)
    assert total is not None
    assert np.array_equal(total.gram, whole.gram) and np.array_equal(total.moments, whole.moments)
    assert solved(spec, total) == solved(spec, whole)
    if 0 in parts:  # taking a device out again leaves the others
        own = np.array(parts) == 0
        rest = whole.plus(gram.summed(spec, base, plan, x[own], y[own]), -1)
        assert np.array_equal(rest.gram, gram.summed(spec, base, plan, x[~own], y[~own]).gram)


@pytest.mark.parametrize(("name", "layers", "bias"), [("bench/head_224-16-4", 2, True), ("zoo/no_bias", 1, False)])
def test_the_solution_is_ridge_regression_of_all_samples_in_one_place(name: str, layers: int, bias: bool) -> None:
    spec = spec_of(name, layers)
    base, plan = read_parameters(spec), exact.plan(spec, SEED, LIMIT)
    x, y = samples(spec, 300)
    found = exact.regression(spec, base, plan, gram.summed(spec, base, plan, x, y))
    f = x.astype(float) if bias else x.astype(float) - spec.features.zero_point
    wanted = (y[:, None] == np.arange(spec.classes)) - exact.offset(spec)
    columns = np.ones((len(f), 1)) if bias else np.empty((len(f), 0))
    free = np.zeros((f.shape[1], columns.shape[1]))
    system = np.block([[f, columns], [np.sqrt(found.penalty) * np.eye(f.shape[1]), free]])
    w = np.linalg.lstsq(system, np.vstack([wanted, np.zeros((f.shape[1], spec.classes))]), rcond=None)[0]
    scores = np.hstack([f, columns]) @ w
    ours = np.hstack([x, np.ones((len(x), 1))]) @ found.coefficients
    assert np.allclose(ours, scores, atol=1e-9)
    assert np.allclose(found.mean, scores.mean(axis=0)) and np.allclose(found.spread, scores.std(axis=0))
    squared = ((scores - wanted) ** 2).sum(axis=1).mean()
    sums = gram.summed(spec, base, plan, x, y)
    assert ridge.mean_loss(found, sums, exact.offset(spec)) == pytest.approx(squared)


def test_the_penalty_is_that_of_leaving_out_samples() -> None:
    """Generalised cross-validation is close to leave-one-out: the penalty chosen costs hardly more than the best."""
    spec = spec_of("bench/head_224-16-4", 2)
    base, plan = read_parameters(spec), exact.plan(spec, SEED, LIMIT)
    x, y = samples(spec, 150)
    sums = gram.summed(spec, base, plan, x, y)
    test = gram.summed(spec, base, plan, *samples(spec, 2000, seed=9))
    offset = exact.offset(spec)

    def loss(penalty: float | None) -> float:
        return ridge.mean_loss(ridge.solve(sums, origin=None, offset=offset, penalty=penalty), test, offset)

    assert loss(None) <= 1.05 * min(loss(10.0**power) for power in range(9))


@pytest.mark.parametrize(
    ("name", "layers", "width"),
    [
        ("bench/head_224-16-4", 2, 224),
        ("bench/head_1280x10", 1, 350),
        ("zoo/no_bias", 1, 12),
        ("zoo/no_bias", 2, 12),
        ("zoo/hidden_relu6", 2, 12),
        ("zoo/three_layers", 2, 16),
        ("zoo/logits", 1, 12),
        ("zoo/logistic_one", 2, 16),
        ("zoo/logistic_three", 1, 12),
        ("zoo/conv_dense", 2, 48),
    ],
)
def test_the_int8_head_finds_what_the_solution_finds(name: str, layers: int, width: int) -> None:
    spec = spec_of(name, layers)
    base, plan = read_parameters(spec), exact.plan(spec, SEED, LIMIT)
    assert plan.width == width
    x, y = samples(spec, 800)
    test, labels = samples(spec, 1000, seed=1)
    sums = gram.summed(spec, base, plan, x, y)
    made = exact.exact_head(spec, base, plan, sums)
    head = requantise(spec, made.params, list(zip(made.ranges[::2], made.ranges[1::2], strict=True)))
    found = classes_of(head.run(test)) == labels
    whole = classes_of(forward(spec, made.params, spec.features.to_real(test))[-1]) == labels
    assert found.mean() > whole.mean() - 0.02
    direct = gram.summed(spec, base, plan, test, labels)  # its scores, without the way through the model's layers
    assert ridge.mean_loss(exact.regression(spec, base, plan, sums), direct, exact.offset(spec)) < 1
    assert found.mean() > 1.3 / spec.classes


def test_a_projection_folds_back_into_the_layer() -> None:
    spec = spec_of("bench/head_1280x10", 1)
    base, plan = read_parameters(spec), exact.plan(spec, SEED, LIMIT)
    signs = gram.projection(plan, 1280)
    assert signs is not None and signs.shape == (1280, 350) and abs(float(signs.mean())) < 0.01
    assert gram.size_bytes(350, 10) <= LIMIT < gram.size_bytes(351, 10)
    x, y = samples(spec, 600)
    sums = gram.summed(spec, base, plan, x, y)
    made = exact.exact_head(spec, base, plan, sums)
    codes = np.clip(np.floor((x.astype(int) - spec.features.zero_point) @ signs / 2**plan.shift + 0.5), -128, 127)
    coefficients = exact.regression(spec, base, plan, sums).coefficients
    scores = np.hstack([codes, np.ones((len(codes), 1))]) @ coefficients
    logits = forward(spec, made.params, spec.features.to_real(x))[-1]
    assert np.mean(scores.argmax(axis=1) == logits.argmax(axis=1)) > 0.97


def test_labels_of_their_own_are_solved_for_too() -> None:
    data = read_model((MODELS / "zoo/logistic_three.tflite").read_bytes())
    spec = head_spec(data, 2, task=Task.LABELS)
    base, plan = read_parameters(spec), exact.plan(spec, SEED, LIMIT)
    rng = np.random.default_rng(1)
    x = rng.integers(-128, 128, (600, spec.feature_size)).astype(np.int8)
    score = (x[:, :3].astype(int) + x[:, 3:6] > 0).astype(np.float32)
    made = exact.exact_head(spec, base, plan, gram.summed(spec, base, plan, x[:400], score[:400]))
    head = requantise(spec, made.params, list(zip(made.ranges[::2], made.ranges[1::2], strict=True)))
    assert right_share(Task.LABELS, head.run(x[400:]), score[400:]) > 0.9
    with pytest.raises(DataError, match="neither 0 nor 1"):
        gram.summed(spec, base, plan, x[:1], np.array([[0.5, 0, 1]], np.float32))


@pytest.mark.parametrize(("name", "reason"), [("value", "not for values"), ("conv_head", "conv pooled")])
def test_a_head_that_is_no_linear_map_to_classes_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        exact.plan(spec_of(f"zoo/{name}", 1), SEED, LIMIT)


def test_what_cannot_be_solved_for_is_refused_with_the_reason() -> None:
    spec = spec_of("bench/head_1280x205", 1)
    with pytest.raises(ModelError, match="205 outputs"):
        exact.plan(spec, SEED, 4096)
    base = read_parameters(spec)
    x, y = samples(spec, 20)
    for plan in (gram.Plan(0, 1280, 10), gram.Plan(0, 300, 205), gram.Plan(1, 1280, 205), gram.Plan(0, 9, 205, SEED)):
        with pytest.raises(DataError):
            gram.summed(spec, base, plan, x, y)


def test_sums_hold_what_a_device_may_have() -> None:
    spec = spec_of("zoo/no_bias", 1)
    base, plan = read_parameters(spec), exact.plan(spec, SEED, LIMIT)
    x = np.full((gram.MAX_SAMPLES, spec.feature_size), -128, np.int8)
    y = np.zeros(len(x), np.int64)
    sums = gram.summed(spec, base, plan, x, y)
    back = gram.from_bytes(gram.to_bytes(sums), plan.width, plan.outputs)
    assert back.gram[0, 0] == 128**2 * gram.MAX_SAMPLES and np.array_equal(back.gram, sums.gram)
    with pytest.raises(DataError, match="65536 samples"):
        gram.to_bytes(sums.plus(gram.summed(spec, base, plan, x[:1], y[:1])))
