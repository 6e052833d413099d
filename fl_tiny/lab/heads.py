# SPDX-License-Identifier: Apache-2.0
"""Every head that a model offers, trained on made-up samples: before, after in int8 by the runtime, and in floats."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.backbone import open_backbone
from fl_tiny.device.evaluation import as_targets, real_values
from fl_tiny.learn.calibrate import calibrated
from fl_tiny.learn.dense import forward
from fl_tiny.learn.head import HeadSpec, candidates, head_spec, read_parameters
from fl_tiny.learn.loss import Targets, Task, right_share
from fl_tiny.learn.quant import Affine
from fl_tiny.learn.requant import patch
from fl_tiny.learn.tflite import Model, cut, read_model
from fl_tiny.learn.trail import Tail, follow
from fl_tiny.learn.train import Settings, fit

TRAINED, TESTED = 600, 1000
NOISE = 1.5  # of a sample's own field to its class's: hard enough that no head is right always
MOST_LAYERS = 4
MAX_FEATURES = 20_000  # bytes a sample: a board would not keep more
SEED = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One head of one model. before, after, float_head: ``loss.right_share`` on test samples.

    reason: why there is no such head to train.
    """

    layers: int
    kinds: tuple[str, ...]
    task: str
    parameters: int
    before: float | None
    after: float | None
    float_head: float | None
    reason: str | None


def rows(data: bytes) -> list[Row]:
    """A row for each head of up to four layers, and one with the reason where no (more) head can be trained."""
    model = read_model(data)
    found = []
    for candidate in candidates(model)[:MOST_LAYERS]:
        if candidate.reason is not None:
            found.append(Row(candidate.layers, (), "", 0, None, None, None, candidate.reason))
        elif math.prod(candidate.feature_shape or ()) <= MAX_FEATURES:
            for task in _tasks(model):
                found.append(_row(model, head_spec(model, candidate.layers, task=task)))
    return found


def _tasks(model: Model) -> tuple[Task, ...]:
    tail, outputs = follow(model).tail, math.prod(model.output.shape[1:])
    if tail is Tail.SOFTMAX:
        return (Task.CLASSES,)
    if outputs in (1, math.prod(model.input.shape[1:])):
        return (Task.VALUES,) if tail is Tail.LOGITS else (Task.LABELS,)
    return (Task.CLASSES, Task.LABELS if tail is Tail.LOGISTIC else Task.VALUES)


def _row(model: Model, spec: HeadSpec) -> Row:
    rng = np.random.default_rng(SEED)
    x, targets = samples(model, spec, TRAINED + TESTED, rng)
    backbone = open_backbone(cut(model, spec.feature_tensor))
    features = backbone.run(x).reshape(len(x), -1)
    test = slice(TRAINED, None)

    def by_runtime(file: bytes) -> float:
        outputs = real_values(model.output, open_backbone(file).run(x[test]))
        if spec.tail is Tail.LOGISTIC and (spec.task is Task.LABELS or outputs.shape[1] == 1):
            outputs = outputs - np.float32(0.5)
        return right_share(spec.task, outputs, targets[test])

    fitted = fit(spec, read_parameters(spec), features[:TRAINED], targets[:TRAINED], settings=Settings(), rng=rng)
    in_floats = forward(spec, fitted, spec.features.to_real(features[test])).final
    head = calibrated(spec, fitted, features[:TRAINED])
    return Row(
        len(spec.layers),
        tuple(layer.kind for layer in spec.layers),
        spec.task.value,
        spec.parameters,
        by_runtime(model.data),
        by_runtime(patch(model.data, spec, head)),
        right_share(spec.task, in_floats, targets[test]),
        None,
    )


def samples(model: Model, spec: HeadSpec, count: int, rng: np.random.Generator) -> tuple[NDArray[Any], Targets]:
    """Codes of the model's input and targets: smooth fields that stand for classes, labels or values, in noise."""
    shape, outputs = tuple(model.input.shape[1:]), max(spec.outputs, 2)
    own = spec.task is not Task.CLASSES and spec.outputs == math.prod(shape)
    signs = _fields(8 if own else outputs, shape, rng)
    if spec.task is Task.CLASSES:
        told: Targets = rng.integers(0, spec.classes, count)
        shares = np.eye(outputs)[told]
    else:
        shares = rng.random((count, len(signs)))
        shares = (shares > 0.5).astype(float) if spec.task is Task.LABELS else shares * 2 - 1
        told = as_targets(spec.task, shares[:, : spec.outputs])
    fields = np.tensordot(shares, signs, 1)
    noise = 0.3 if spec.task is Task.VALUES else NOISE
    x = _codes(model, fields + noise * _fields(count, shape, rng))
    if own:
        return x, real_values(model.input, x).reshape(count, -1)
    return x, _held_by_output(spec, told) if spec.task is Task.VALUES else told


def _held_by_output(spec: HeadSpec, values: Targets) -> Targets:
    """Values from -1 to 1 moved into what a model's integer output can hold."""
    last = spec.layers[-1]
    if not last.keeps_output:
        return values
    low, high = last.result.to_real(np.array([-128, 127], np.int8))
    return np.asarray((low + high) / 2 + values * 0.4 * (high - low), np.float32)


def _fields(count: int, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Random pictures, recordings or rows that are smooth along every axis but the last, of variance one."""
    fields = rng.normal(size=(count, *shape))
    for axis in range(1, len(shape)):
        for _ in range(3):
            fields = fields + np.roll(fields, 1, axis) + np.roll(fields, 2, axis)
    return np.asarray(fields / fields.std())


def _codes(model: Model, fields: NDArray[np.float64]) -> NDArray[Any]:
    """Fields spread over what the model's input can hold."""
    source = model.input
    after = next((op.outputs[0] for op in model.main.operators if source.index in op.inputs), source.index)
    quantised = source if source.dtype != "float32" else model.main.tensors[after]
    scale = quantised.quantisation
    spread: NDArray[np.float64] = fields / np.abs(fields).max() * 1.5  # a few are clipped, as in life
    if scale is None or quantised.dtype not in ("int8", "uint8"):
        return spread.astype(np.float32)
    affine = Affine(scale.scale[0], scale.zero_point[0])
    limits = np.iinfo(np.dtype(quantised.dtype))
    middle, half = (limits.max + limits.min) / 2, (limits.max - limits.min) / 2
    codes: NDArray[Any] = np.clip(np.rint(middle + spread * half), limits.min, limits.max).astype(
        np.dtype(quantised.dtype)
    )
    if source.dtype == "float32":
        return affine.to_real(codes)
    return codes
