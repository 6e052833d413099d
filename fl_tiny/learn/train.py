# SPDX-License-Identifier: Apache-2.0
"""Training a head on feature codes and labels: normalised features, minibatches, a pull towards the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from fl_tiny.learn.dense import backward, forward
from fl_tiny.learn.head import Array, HeadSpec
from fl_tiny.learn.layer import Activation
from fl_tiny.learn.loss import Loss, Targets, loss_and_grad
from fl_tiny.learn.requant import BATCH

Update = Callable[[Array, float], None]

SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)  # of the start head that training may begin with
STEPS_AN_EPOCH = 32  # few samples still take this many steps an epoch, in batches of four or more
SMALLEST_BATCH = 4
MIN_NORM = 1e-6  # real units; features that are all equal teach only the bias
FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # Adam's decay rates and epsilon, as in its paper
MOMENTUM = 0.9


class Optimiser(str, Enum):
    """How a gradient becomes a step."""

    ADAM = "adam"
    SGD = "sgd"  # with momentum


@dataclass(frozen=True, slots=True)
class Settings:
    """How a head is trained; the defaults are measured on eight pairs of head and data, 30 to 3,000 samples."""

    epochs: int = 60
    batch: int = 64  # at most; few samples are cut into smaller ones
    rate: float = 0.02  # of the first step, in units of normalised features; falls to zero as a cosine
    pull: float = 0.03  # towards the start, as a prior that weighs against the sum over samples
    optimiser: Optimiser = Optimiser.ADAM
    shrink: bool = True  # may begin with less of the start's last layer, where its samples are unlike the start's


@dataclass(frozen=True, slots=True)
class _Normal:
    """(code - shift) * gain has mean zero and length one; ``mean`` and ``length`` are the same in real units.

    (target - centre) / unit has mean zero and variance one for values; classes and labels stay as they are.
    """

    mean: Array
    length: np.float32
    shift: Array
    gain: np.float32
    centre: Array
    unit: np.float32


def fit(
    spec: HeadSpec,
    params: Sequence[Array],
    features: NDArray[np.int8],
    targets: Targets,
    *,
    settings: Settings,
    rng: np.random.Generator,
) -> list[Array]:
    """``params`` trained to tell ``targets`` from ``features``; the same generator state gives the same result.

    params: all of them, real units; not changed.   features: (n, features) codes of the feature tensor.
    targets: as ``loss.loss_and_grad`` takes them.   Memory beyond the arguments grows by 8 bytes a sample only.
    """
    normal = _normal(spec, features, targets)
    shrinks = settings.shrink and not spec.biases_only and spec.loss is not Loss.SQUARED
    begin = _shrunk(spec, params, features, targets) if shrinks else list(params)
    flat, live = _flat(_folded(spec, begin, normal))
    start, pull = flat.copy(), np.float32(settings.pull / len(features))
    update = _adam(flat) if settings.optimiser is Optimiser.ADAM else _sgd(flat)
    frozen = np.concatenate([np.full(each.size, spec.biases_only and each.ndim > 1) for each in live])
    for chosen, progress in _batches(len(features), settings, rng):
        x = features[chosen].reshape(-1, len(normal.shift)).astype(np.float32)
        x -= normal.shift
        x *= normal.gain
        passed = forward(spec, live, x.reshape(len(chosen), -1))
        _, grad = loss_and_grad(spec.loss, passed.final, _aimed(spec, targets[chosen], normal))
        slope = np.concatenate([each.ravel() for each in backward(spec, live, passed, grad)])
        slope += pull * (flat - start)
        slope[frozen] = 0
        update(slope, settings.rate * 0.5 * (1 + math.cos(math.pi * progress)))
    done = _unfolded(spec, live, normal)
    return [old if spec.biases_only and old.ndim > 1 else new for old, new in zip(params, done, strict=True)]


def with_epochs(settings: Settings, epochs: int | None) -> Settings:
    """``settings`` with another number of epochs; None leaves them."""
    return settings if epochs is None else replace(settings, epochs=epochs)


def _batches(n: int, settings: Settings, rng: np.random.Generator) -> Iterator[tuple[NDArray[np.int64], float]]:
    """Rows of one batch after the other, each epoch in a new order, and the share of all steps done before it."""
    size = min(settings.batch, max(SMALLEST_BATCH, n // STEPS_AN_EPOCH))
    starts = range(0, n, size)
    steps = settings.epochs * len(starts)
    for epoch in range(settings.epochs):
        order = rng.permutation(n)
        for place, start in enumerate(starts):
            yield order[start : start + size], (epoch * len(starts) + place) / steps


def _adam(flat: Array) -> Update:
    """Steps of ``flat`` in place. Source: Kingma and Ba, Adam (2015), algorithm 1, reordered as in its section 2."""
    mean, square, taken = np.zeros_like(flat), np.zeros_like(flat), 0

    def update(slope: Array, rate: float) -> None:
        nonlocal taken
        taken += 1
        short = math.sqrt(1 - SECOND**taken)
        np.add(mean, np.float32(1 - FIRST) * (slope - mean), out=mean)
        np.add(square, np.float32(1 - SECOND) * (slope * slope - square), out=square)
        size = np.sqrt(square)
        size += np.float32(TINY * short)
        np.subtract(flat, np.float32(rate * short / (1 - FIRST**taken)) * mean / size, out=flat)

    return update


def _sgd(flat: Array) -> Update:
    """Steps of ``flat`` in place, by gradient descent with momentum."""
    speed = np.zeros_like(flat)

    def update(slope: Array, rate: float) -> None:
        np.multiply(speed, np.float32(MOMENTUM), out=speed)
        np.add(speed, slope, out=speed)
        np.subtract(flat, np.float32(rate) * speed, out=flat)

    return update


def _flat(params: Sequence[Array]) -> tuple[Array, list[Array]]:
    """All parameters in one vector, and each as a view of it: an optimiser's step is then a handful of calls."""
    flat = np.concatenate([each.ravel() for each in params])
    ends = np.cumsum([each.size for each in params])
    parts = np.split(flat, ends[:-1])
    return flat, [part.reshape(each.shape) for part, each in zip(parts, params, strict=True)]


def _normal(spec: HeadSpec, features: NDArray[np.int8], targets: Targets) -> _Normal:
    """How features are moved to mean zero, where a bias can take the mean up, and scaled to a mean length of one.

    Learning rates then mean the same for every model, and the mean of all-positive features no longer drowns
    what differs between them: measured .361 without and .607 with it, after 60 epochs of SGD on 64 x 10.
    """
    first, width = spec.layers[0], spec.layers[0].weights.shape[1]
    total, square, rows = np.zeros(width), 0.0, len(features) * first.places
    for start in range(0, len(features), BATCH):
        x = spec.features.to_real(features[start : start + BATCH].reshape(-1, width)).astype(np.float64)
        total += x.sum(axis=0)
        square += float((x * x).sum())
    mean = total / rows if first.bias is not None else np.zeros_like(total)
    length = np.sqrt(max(square / rows - float(mean @ mean), MIN_NORM**2))
    shift = mean / spec.features.scale + spec.features.zero_point
    gain = np.float32(spec.features.scale / length)
    centre, unit = _target_normal(spec, targets)
    return _Normal(mean.astype(np.float32), np.float32(length), shift.astype(np.float32), gain, centre, unit)


def _target_normal(spec: HeadSpec, targets: Targets) -> tuple[Array, np.float32]:
    """Centre and unit of values that a last layer without an activation can be moved and scaled by."""
    last, outputs = spec.layers[-1], spec.outputs
    if spec.loss is not Loss.SQUARED or last.activation is not Activation.NONE or spec.biases_only:
        return np.zeros(outputs, np.float32), np.float32(1)
    centre = targets.mean(axis=0) if last.bias is not None else np.zeros(outputs)
    unit = np.sqrt(max(float(((targets - centre) ** 2).mean()), MIN_NORM**2))
    return centre.astype(np.float32), np.float32(unit)


def _aimed(spec: HeadSpec, targets: Targets, normal: _Normal) -> Targets:
    return (targets - normal.centre) / normal.unit if spec.loss is Loss.SQUARED else targets


def _shrunk(spec: HeadSpec, params: Sequence[Array], features: NDArray[np.int8], targets: Targets) -> list[Array]:
    """``params`` with the last layer times that share which fits the samples best.

    A head made for other data is sure of what is wrong: starting from, and being pulled to, less of it costs nothing
    where it fits (share 1) and halves the loss where it does not.
    """
    losses = np.zeros(len(SHARES))
    for start in range(0, len(features), BATCH):
        logits = forward(spec, params, spec.features.to_real(features[start : start + BATCH])).final
        part = targets[start : start + BATCH]
        losses += [len(part) * loss_and_grad(spec.loss, logits * np.float32(share), part)[0] for share in SHARES]
    share, last = np.float32(SHARES[int(losses.argmin())]), 1 if spec.layers[-1].bias is None else 2
    return [*params[:-last], *(each * share for each in params[-last:])]


def _folded(spec: HeadSpec, params: Sequence[Array], normal: _Normal) -> list[Array]:
    """Copies of ``params`` that do to normalised features what ``params`` do to real ones, for normalised targets."""
    live = [np.array(each, np.float32) for each in params]
    if spec.layers[0].bias is not None:
        live[1] += live[0] @ normal.mean
    live[0] *= normal.length
    if spec.layers[-1].bias is not None:
        live[-1] -= normal.centre
        live[-2] /= normal.unit
    live[-1] /= normal.unit
    return live


def _unfolded(spec: HeadSpec, live: Sequence[Array], normal: _Normal) -> list[Array]:
    """The inverse of ``_folded``."""
    params = list(live)
    params[-1] = params[-1] * normal.unit
    if spec.layers[-1].bias is not None:
        params[-1] = params[-1] + normal.centre
        params[-2] = params[-2] * normal.unit
    params[0] = params[0] / normal.length
    if spec.layers[0].bias is not None:
        params[1] = params[1] - params[0] @ normal.mean
    return params
