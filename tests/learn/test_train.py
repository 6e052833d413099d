# SPDX-License-Identifier: Apache-2.0
"""Training: right gradients, the same result from the same seed, good without tuning, small in memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fl_tiny.learn.dense import backward, forward
from fl_tiny.learn.head import HeadSpec, head_spec, read_parameters
from fl_tiny.learn.loss import Loss, Task, classes_of, loss_and_grad, right_share
from fl_tiny.learn.optimiser import Optimiser
from fl_tiny.learn.tflite import read_model
from fl_tiny.learn.train import RATES, Settings, fit, revived
from tests.learn.tiny import classifier, silabs, zoo

DEEP = (("dense relu6", "dense relu", "dense"), (8, 7, 6, 4))


def a_task(spec: HeadSpec, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Feature codes as a ReLU makes them, all above zero, and labels that a head can learn."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, spec.classes, count)
    centres = np.random.default_rng(99).normal(size=(spec.classes, spec.feature_size)) * 25
    codes = np.clip(centres[labels] + rng.normal(size=(count, spec.feature_size)) * 20, -128, 127)
    return codes.astype(np.int8), labels.astype(np.int64)


def accuracy(spec: HeadSpec, params: list[np.ndarray], features: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(classes_of(forward(spec, params, spec.features.to_real(features)).final) == labels))


HEADS = {
    "softmax": (classifier(*DEEP), 3, None),
    "logistic": (classifier(*DEEP, tail="logistic"), 3, None),
    "labels": (classifier(*DEEP, tail="logistic"), 3, Task.LABELS),
    "logits without bias": (classifier(*DEEP, tail="logits", bias=False), 3, None),
    "values": (classifier(*DEEP, tail="logits"), 3, Task.VALUES),
    "one sigmoid": (classifier(("dense",), (8, 1), tail="uint8"), 1, None),
    "tanh": (zoo("hidden_tanh"), 2, None),
    "convolution and mean": (zoo("conv_head"), 1, None),
    "convolution with relu and mean": (zoo("conv_relu"), 1, None),
    "two convolutions and mean": (zoo("conv_two"), 2, None),
    "convolution and average pool": (zoo("conv_average"), 1, None),
    "convolution flattened into dense": (zoo("conv_dense"), 2, None),
}


@pytest.fixture(params=HEADS)
def spec(request: pytest.FixtureRequest) -> HeadSpec:
    data, layers, task = HEADS[request.param]
    return head_spec(read_model(data), layers, task=task)


def targets_for(spec: HeadSpec, count: int, rng: np.random.Generator) -> np.ndarray:
    if spec.task is Task.CLASSES:
        return rng.integers(0, spec.classes, count)
    values = rng.normal(size=(count, spec.outputs))
    return (values > 0).astype(np.float32) if spec.task is Task.LABELS else values * 3 + 1


def test_the_gradient_agrees_with_a_central_difference(spec: HeadSpec) -> None:
    rng = np.random.default_rng(7)
    params = [rng.normal(size=shape) * 0.5 for shape in spec.tensors]
    x, labels = rng.normal(size=(9, spec.feature_size)), targets_for(spec, 9, rng)

    def loss() -> float:
        return loss_and_grad(spec.loss, forward(spec, params, x).final, labels)[0]

    passed = forward(spec, params, x)
    grads = backward(spec, params, passed, loss_and_grad(spec.loss, passed.final, labels)[1])
    assert [each.shape for each in grads] == [each.shape for each in params]
    for param, grad in zip(params, grads, strict=True):
        for at in [tuple(rng.integers(0, param.shape)) for _ in range(min(param.size, 40))]:
            kept = param[at]
            param[at] = kept + 1e-6
            high = loss()
            param[at] = kept - 1e-6
            low = loss()
            param[at] = kept
            assert grad[at] == pytest.approx((high - low) / 2e-6, abs=1e-7)


def test_weights_and_smoothing_stand_in_the_gradient_too(spec: HeadSpec) -> None:
    rng = np.random.default_rng(8)
    outputs = rng.normal(size=(6, spec.outputs))
    targets, weights = targets_for(spec, 6, rng), rng.uniform(0.2, 2, 6)

    def loss() -> float:
        return loss_and_grad(spec.loss, outputs, targets, weights=weights, smoothing=0.1)[0]

    _, grad = loss_and_grad(spec.loss, outputs, targets, weights=weights, smoothing=0.1)
    for at in np.ndindex(*outputs.shape):
        kept = outputs[at]
        outputs[at] = kept + 1e-6
        high = loss()
        outputs[at] = kept - 1e-6
        assert grad[at] == pytest.approx((high - loss()) / 2e-6, abs=1e-7)
        outputs[at] = kept


def test_balanced_classes_find_a_rare_class_more_often() -> None:
    spec = head_spec(read_model(classifier(sizes=(12, 4))), 1)
    features, labels = a_task(spec, 3000)
    noise = np.random.default_rng(4).integers(-90, 91, features.shape)
    features = np.clip(features + noise, -128, 127).astype(np.int8)
    few = np.flatnonzero((labels != 0) | (np.arange(3000) % 25 == 0))
    x = spec.features.to_real(features[labels == 0])

    def rare_found(**more: object) -> float:
        settings = Settings(epochs=20, **more)  # type: ignore[arg-type]
        rng = np.random.default_rng(1)
        fitted = fit(spec, read_parameters(spec), features[few], labels[few], settings=settings, rng=rng)
        return float(np.mean(classes_of(forward(spec, fitted, x).final) == 0))

    assert rare_found(balanced=True) > rare_found() + 0.1


def test_a_proximal_term_keeps_the_head_closer_to_its_start() -> None:
    spec = head_spec(read_model(classifier()), 1)
    features, labels = a_task(spec, 200)
    start = read_parameters(spec)

    def moved(mu: float) -> float:
        settings = Settings(epochs=5, proximal=mu, shrink=False)
        fitted = fit(spec, start, features, labels, settings=settings, rng=np.random.default_rng(1))
        return float(np.abs(fitted[0] - start[0]).sum())

    assert moved(10) < moved(1) < moved(0)


def test_with_patience_labels_of_chance_do_not_take_the_head_far() -> None:
    """On labels that features say nothing of, every epoch makes the loss on other samples worse."""
    spec = head_spec(read_model(zoo("reshape_fc")), 1)
    rng = np.random.default_rng(5)
    features, labels = rng.integers(-128, 128, (200, 256)).astype(np.int8), rng.integers(0, 4, 200)
    fresh, told = rng.integers(-128, 128, (2000, 256)).astype(np.int8), rng.integers(0, 4, 2000)

    def fresh_loss(patience: int | None) -> float:
        settings = Settings(epochs=60, rate=0.1, pull=0, patience=patience)
        fitted = fit(spec, read_parameters(spec), features, labels, settings=settings, rng=np.random.default_rng(1))
        return loss_and_grad(spec.loss, forward(spec, fitted, spec.features.to_real(fresh)).final, told)[0]

    assert fresh_loss(3) < fresh_loss(None)


@pytest.mark.parametrize("optimiser", list(Optimiser))
def test_a_rate_that_is_found_does_as_well_as_the_best_of_those_tried(optimiser: Optimiser) -> None:
    spec = head_spec(read_model(silabs("tflite_micro_magic_wand")), 2)
    features, labels = a_task(spec, 400)
    noise = np.random.default_rng(4).integers(-127, 128, features.shape)
    features = np.clip(features + noise, -128, 127).astype(np.int8)

    def reached(rate: float | None) -> float:
        settings = Settings(epochs=2, rate=rate, optimiser=optimiser, shrink=False)
        fitted = fit(spec, read_parameters(spec), features, labels, settings=settings, rng=np.random.default_rng(1))
        return accuracy(spec, fitted, features, labels)

    tried = [reached(rate) for rate in RATES]
    assert reached(None) > max(tried) - 0.1


def test_every_kind_of_head_learns_what_a_teacher_of_its_kind_knows(spec: HeadSpec) -> None:
    """The teacher is the same head with other parameters, so that what is asked can be learned."""
    rng = np.random.default_rng(3)
    features = rng.integers(-128, 128, (600, spec.feature_size)).astype(np.int8)
    start = read_parameters(spec)
    teacher = [each + rng.normal(size=each.shape) * each.std() for each in start]
    outputs = forward(spec, teacher, spec.features.to_real(features)).final
    outputs = outputs - np.median(outputs, axis=0)
    told = {Task.CLASSES: classes_of(outputs), Task.LABELS: (outputs > 0).astype(np.float32), Task.VALUES: outputs}
    targets = told[spec.task]
    before = right_share(spec.task, forward(spec, start, spec.features.to_real(features)).final, targets)
    fitted = fit(spec, start, features, targets, settings=Settings(), rng=rng)
    after = right_share(spec.task, forward(spec, fitted, spec.features.to_real(features)).final, targets)
    assert after > min(before + 0.25, 0.95)


def test_units_that_no_sample_wakes_learn_again_and_change_nothing_at_first() -> None:
    spec = head_spec(read_model(silabs("tflite_micro_magic_wand")), 2)
    features, labels = a_task(spec, 400)  # features unlike the model's own leave 14 of 16 units at zero
    start, x = read_parameters(spec), spec.features.to_real(features)
    woken = revived(spec, start, features)
    assert (forward(spec, start, x).outputs[0] > 0).any(axis=0).sum() <= 3
    assert (forward(spec, woken, x).outputs[0] > 0).any(axis=0).sum() >= 15
    assert forward(spec, woken, x).final == pytest.approx(forward(spec, start, x).final, rel=1e-4, abs=1e-4)

    def reached(revive: bool) -> float:
        settings = Settings(epochs=20, revive=revive)
        return accuracy(spec, fit(spec, start, features, labels, settings=settings, rng=rng), features, labels)

    rng = np.random.default_rng(1)
    assert reached(True) > reached(False) + 0.3


def test_with_biases_alone_the_weights_stay_and_the_loss_falls() -> None:
    spec = head_spec(read_model(classifier(*DEEP)), 3, biases_only=True)
    features, labels = a_task(spec, 300)
    start = read_parameters(spec)
    fitted = fit(spec, start, features, labels, settings=Settings(), rng=np.random.default_rng(1))
    assert all(np.array_equal(a, b) for a, b in zip(start, fitted, strict=True) if a.ndim == 2)
    assert not any(np.array_equal(a, b) for a, b in zip(start, fitted, strict=True) if a.ndim == 1)
    x = spec.features.to_real(features)
    losses = [loss_and_grad(spec.loss, forward(spec, each, x).final, labels)[0] for each in (start, fitted)]
    assert losses[1] < losses[0]


def test_huge_logits_give_finite_losses_and_gradients() -> None:
    logits = np.array([[1e30, -1e30, 0], [-1e30, 1e30, 5]], np.float32)
    for loss in (Loss.SOFTMAX, Loss.SIGMOID):
        _, grad = loss_and_grad(loss, logits, np.array([0, 1]))
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("optimiser", list(Optimiser))
def test_the_same_seed_gives_the_same_head_and_another_seed_another(optimiser: Optimiser) -> None:
    spec = head_spec(read_model(classifier()), 1)
    features, labels = a_task(spec, 60)
    made = [
        fit(spec, read_parameters(spec), features, labels, settings=Settings(optimiser=optimiser), rng=rng)
        for rng in (np.random.default_rng(1), np.random.default_rng(1), np.random.default_rng(2))
    ]
    assert all(np.array_equal(a, b) for a, b in zip(made[0], made[1], strict=True))
    assert not np.array_equal(made[0][0], made[2][0])


@pytest.mark.parametrize("samples", [30, 300, 3000])
@pytest.mark.parametrize(
    ("kinds", "sizes", "tail", "bias"),
    [
        (("dense",), (64, 10), "softmax", True),
        (("dense",), (1280, 10), "softmax", True),
        (("dense relu", "dense"), (224, 16, 4), "softmax", True),
        (("dense relu6", "dense"), (48, 32, 10), "logits", True),
        (("dense",), (64, 10), "float", False),
        (("dense",), (32, 1), "uint8", True),
        (("dense",), (32, 6), "logistic", True),
    ],
)
def test_the_defaults_learn_a_plain_task_on_any_head(
    kinds: tuple[str, ...], sizes: tuple[int, ...], tail: str, bias: bool, samples: int
) -> None:
    spec = head_spec(read_model(classifier(kinds, sizes, tail=tail, bias=bias)), len(kinds))
    features, labels = a_task(spec, samples + 500)
    settings = Settings(epochs=60 if samples < 3000 else 10)
    rng = np.random.default_rng(1)
    params = fit(spec, read_parameters(spec), features[500:], labels[500:], settings=settings, rng=rng)
    assert accuracy(spec, params, features[:500], labels[:500]) > (0.8 if samples == 30 else 0.9)


def test_the_scale_of_features_changes_nothing() -> None:  # facts.md, trap 10
    found = []
    for factor in (1, 2):
        spec = head_spec(read_model(classifier()), 1)
        features, labels = a_task(spec, 400)
        codes = ((features.astype(int) - spec.features.zero_point) // 4 * factor + spec.features.zero_point).clip(
            -128, 127
        )
        start = read_parameters(spec)
        start[0] = start[0] * np.float32(1 / factor)
        params = fit(spec, start, codes.astype(np.int8), labels, settings=Settings(), rng=np.random.default_rng(1))
        found.append(params[0] * factor)
    assert found[0] == pytest.approx(found[1], rel=0.02, abs=0.02)


def test_features_that_never_change_do_no_harm() -> None:
    spec = head_spec(read_model(classifier()), 1)
    features, labels = np.full((40, 12), -3, np.int8), np.arange(40) % 5
    params = fit(spec, read_parameters(spec), features, labels, settings=Settings(), rng=np.random.default_rng(0))
    assert all(np.isfinite(each).all() for each in params)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_two_thousand_samples_of_1280_features_train_in_64_mib() -> None:
    code = """
import numpy as np
from fl_tiny.learn.head import head_spec, read_parameters
from fl_tiny.learn.judge import personalise
from fl_tiny.learn.tflite import read_model
from fl_tiny.learn.train import Settings
import pathlib, sys
spec = head_spec(read_model(pathlib.Path(sys.argv[1]).read_bytes()), 1)
rng = np.random.default_rng(0)
x, y = rng.integers(-128, 128, (2000, 1280), np.int8), rng.integers(0, 10, 2000)
personalise(spec, x, y, np.arange(len(y)), Settings(epochs=2), rng)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(classifier(sizes=(1280, 10)))
        file.flush()
        env = {"PYTHONPATH": ":".join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code, file.name], capture_output=True, text=True, env=env, check=True
        )
    assert int(done.stdout) <= 64 * 1024, f"{int(done.stdout) / 1024:.1f} MiB"
