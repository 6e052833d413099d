# SPDX-License-Identifier: Apache-2.0
"""A trained head in int8 by what samples show: ranges of outputs, balance between layers, corrected biases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fl_tiny.learn.dense import forward
from fl_tiny.learn.head import Array, HeadSpec
from fl_tiny.learn.layer import Activation, Dense, bias_scale
from fl_tiny.learn.loss import Loss
from fl_tiny.learn.requant import BATCH, MAX_BIAS, TANH_END, QuantHead, requantise
from fl_tiny.learn.trail import Step, Tail

Codes = NDArray[np.int8]

NARROWER = (0.7, 0.5, 0.35, 0.25)
FADED = 8.0  # nats below the best class a class counts for less than 1 in 3,000: logits need no codes further down


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """What samples did to a head: per layer the smallest and largest value of each output before a TANH, the same of
    all that leaves the layer, and the mean of each input; ``lowest_best``: over samples, the least best logit."""

    low: list[Array]
    high: list[Array]
    left: list[tuple[float, float]]
    mean: list[Array]
    lowest_best: float


def calibrated(spec: HeadSpec, params: Sequence[Array], features: Codes) -> QuantHead:
    """``params`` in int8 as suits ``features``, (n, features) codes. Raises: ModelError when they are not finite."""
    balanced = equalised(spec, params, features)
    balanced = _within_public(spec, balanced, _observe(spec, balanced, features))
    ranges = _ranges(spec, _observe(spec, balanced, features))
    heads = [requantise(spec, balanced, each) for each in _narrower(spec, ranges)]
    if len(heads) > 1:
        part = features[:BATCH]
        wanted = forward(spec, balanced, spec.features.to_real(part)).final
        heads.sort(key=lambda head: float(((head.run(part) - wanted) ** 2).sum()))
    return corrected(spec, balanced, heads[0], features)


def activation_ranges(spec: HeadSpec, params: Sequence[Array], features: Codes) -> list[tuple[float, float]]:
    """The range each layer's output needs codes for over ``features``, (n, features) codes, in real units.

    That is all of it; but of logits before a SOFTMAX only what is not certain to lose, which makes finer steps.
    """
    return [(span[0], span[1]) for span in _ranges(spec, _observe(spec, params, features))]


def _ranges(spec: HeadSpec, seen: _Seen) -> list[tuple[float, ...]]:
    """As ``activation_ranges``, with the range behind a pool where there is one."""
    ranges: list[tuple[float, ...]] = []
    for layer, low, high, left in zip(spec.layers, seen.low, seen.high, seen.left, strict=True):
        ranges.append((float(low.min()), float(high.max()), *(left if layer.pool else ())))
    if spec.tail is Tail.SOFTMAX and spec.layers[-1].pool is not Step.AVERAGE:
        *before, low_end, high_end = ranges[-1]
        ranges[-1] = (*before, max(low_end, seen.lowest_best - FADED), high_end)
    return ranges


def equalised(spec: HeadSpec, params: Sequence[Array], features: Codes) -> list[Array]:
    """``params`` that compute the same, each hidden unit scaled so that one scale suits all units.

    A unit may be made smaller and the next layer's weights for it larger, where the activation lets scales through.
    Measured on a 224-16-4 head: int8 and float disagree on 6 % of samples instead of 12 %.
    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (2019), section 4.1.
    """
    balanced, place = list(params), 0
    for depth, layer in enumerate(spec.layers[:-1]):
        size = 1 if layer.bias is None else 2
        if _scales_through(layer, spec.layers[depth + 1]) and not spec.biases_only:
            seen = _observe(spec, balanced, features)
            scale = _unit_scales(balanced[place], balanced[place + size], seen.low[depth], seen.high[depth])
            balanced[place] = balanced[place] / scale[:, None]
            if layer.bias is not None:
                balanced[place + 1] = balanced[place + 1] / scale
            balanced[place + size] = balanced[place + size] * scale
        place += size
    return balanced


def corrected(spec: HeadSpec, params: Sequence[Array], head: QuantHead, features: Codes) -> QuantHead:
    """``head`` with biases that take up what rounding did to the mean of each output over ``features``.

    Source: as for ``equalised``, section 4.2, with the means of samples at hand instead of assumed ones.
    """
    means, layers, place = _observe(spec, params, features).mean, list(head.layers), 0
    for depth, layer in enumerate(layers):
        weights = params[place]
        place += 1 if layer.bias is None else 2
        if layer.bias is None:
            continue
        coarse = layer.weights * layer.weight_scale[:, None]
        drift = weights @ means[depth] - coarse @ _mean_input(spec, QuantHead(tuple(layers[:depth])), features)
        steps = np.rint(drift / bias_scale(layer.input, layer.weight_scale))
        bias = np.clip(layer.bias + steps.astype(np.float64), -MAX_BIAS, MAX_BIAS).astype(np.int32)
        layers[depth] = replace(layer, bias=bias)
    return QuantHead(tuple(layers))


def _unit_scales(weights: Array, after: Array, low: Array, high: Array) -> Array:
    """What to divide each unit of a layer by, so that its weights and output and its next weights have like ranges."""
    reach, rows = np.maximum(high, -low), np.abs(weights).max(axis=1)
    own = np.maximum(reach / max(float(reach.max()), 1e-12), rows / max(float(rows.max()), 1e-12))
    next_ = np.abs(after).max(axis=0)
    alive = (own > 1e-6) & (next_ > 1e-6 * max(float(next_.max()), 1e-12))
    if not alive.any():
        return np.ones_like(own)
    scale = np.sqrt(np.where(alive, own, 1) / np.where(alive, next_, 1))
    middle = np.exp(np.log(scale[alive]).mean())
    return np.where(alive, scale / middle, 1).astype(np.float32)


def _within_public(spec: HeadSpec, params: Sequence[Array], seen: _Seen) -> list[Array]:
    """``params`` whose logits fit the codes of a model that gives them out; which one is largest stays the same.

    Those codes cannot be made to hold more, and saturated logits are all alike: measured 10 points on a head of 16
    classes, 4 on one of 4.
    """
    last, fitting = spec.layers[-1], list(params)
    public = last.keeps_output and last.activation is Activation.NONE and spec.tail is Tail.LOGITS
    if not public or spec.loss is not Loss.SOFTMAX or spec.biases_only:
        return fitting
    bottom, top = max(seen.left[-1][0], seen.lowest_best - FADED), seen.left[-1][1]
    low, high = last.result.to_real(np.array([-128, 127], np.int8))
    if last.bias is None:
        share = min([1.0, *(end / reach for end, reach in ((low, bottom), (high, top)) if reach * end > 0)])
        return [*fitting[:-1], fitting[-1] * np.float32(share)]
    share = min(1.0, float(high - low) / max(top - bottom, 1e-12))
    moved = high - share * top if share * top > high or share * bottom < low else 0.0
    return [*fitting[:-2], fitting[-2] * np.float32(share), fitting[-1] * np.float32(share) + np.float32(moved)]


def _narrower(spec: HeadSpec, ranges: list[tuple[float, ...]]) -> list[list[tuple[float, ...]]]:
    """``ranges``; where codes are averaged in their own scale, also with less of that layer's range.

    An average of many places needs finer steps than its places do, and few of those lie far out.
    """
    found = [ranges]
    for depth, layer in enumerate(spec.layers):
        if layer.pool is Step.AVERAGE and not layer.keeps_output:
            part = [tuple(share * end for end in ranges[depth]) for share in NARROWER]
            found += [[*ranges[:depth], each, *ranges[depth + 1 :]] for each in part]
    return found


def _scales_through(layer: Dense, after: Dense) -> bool:
    """Does a unit's scale pass the activation unchanged, and reach one column of the next weights?"""
    bends = layer.activation in (Activation.RELU6, Activation.TANH)
    return not bends and layer.weights.shape[0] == after.weights.shape[1]


def _observe(spec: HeadSpec, params: Sequence[Array], features: Codes) -> _Seen:
    sizes = [layer.weights.shape for layer in spec.layers]
    low, high = [np.zeros(out, np.float32) for out, _ in sizes], [np.zeros(out, np.float32) for out, _ in sizes]
    left, total, lowest_best = [(0.0, 0.0)] * len(sizes), [np.zeros(size) for _, size in sizes], np.inf
    for x in _parts(spec, features):
        passed = forward(spec, params, x)
        leaving = [*passed.inputs[1:], passed.final]
        for each, layer in enumerate(spec.layers):
            y = passed.outputs[each]
            if layer.activation is Activation.TANH:
                y = np.arctanh(np.clip(y, -np.tanh(TANH_END), np.tanh(TANH_END)))
            np.minimum(low[each], y.min(axis=0), out=low[each])
            np.maximum(high[each], y.max(axis=0), out=high[each])
            left[each] = (
                min(left[each][0], float(leaving[each].min())),
                max(left[each][1], float(leaving[each].max())),
            )
            np.add(total[each], passed.inputs[each].mean(axis=0) * len(x), out=total[each])
        lowest_best = min(lowest_best, float(passed.final.max(axis=1).min()))
    means = [(each / len(features)).astype(np.float32) for each in total]
    return _Seen(low, high, left, means, lowest_best)


def _mean_input(spec: HeadSpec, before: QuantHead, features: Codes) -> Array:
    """The mean over ``features`` of what goes into the layer behind the layers ``before``: of each of its inputs."""
    total, width = 0.0, spec.layers[len(before.layers)].weights.shape[1]
    for start in range(0, len(features), BATCH):
        codes = features[start : start + BATCH]
        real = before.run(codes) if before.layers else spec.features.to_real(codes)
        total = total + real.reshape(-1, width).mean(axis=0, dtype=float) * len(codes)
    return np.asarray(total / len(features), np.float32)


def _parts(spec: HeadSpec, features: Codes) -> Iterator[Array]:
    for start in range(0, len(features), BATCH):
        yield spec.features.to_real(features[start : start + BATCH])
