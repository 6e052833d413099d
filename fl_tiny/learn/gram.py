# SPDX-License-Identifier: Apache-2.0
"""Exact integer sums over samples that a ridge regression can be solved from: the Gram matrix and class moments.

Integers have no rounding: sums of parts add up to the sums of all samples, bit for bit, however samples are spread.
Source: He et al., AFL: A Single-Round Analytic Approach for Federated Learning (2024), arXiv 2405.16240.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import DataError
from fl_tiny.learn.head import Array, HeadSpec
from fl_tiny.learn.loss import Targets
from fl_tiny.learn.quant import Affine
from fl_tiny.learn.requant import BATCH, QuantHead, requantise

Codes = NDArray[np.int8]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

LARGEST = 128  # |code| at most
WORD = 4  # bytes of one sum: int32
MAX_SAMPLES = 65_535  # of one device: LARGEST^2 times as many is below 2^31


@dataclass(frozen=True, slots=True)
class Plan:
    """What is summed: ``width`` codes a sample, of the input of dense layer ``layer``, and ``outputs`` targets.

    seed, shift: of the projection that makes a wide input that narrow; None: the input's own codes.
    """

    layer: int
    width: int
    outputs: int
    seed: bytes | None = None
    shift: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Of samples with codes f (a constant 1 appended) and targets t: gram = sum(f f^T), moments = sum(f t^T).

    gram: (width + 1, width + 1), symmetric.   moments: (width + 1, outputs); its last row counts.   Both are int64 as a
    device makes them, float64 where devices' sums were cut.
    """

    gram: Integers | Floats
    moments: Integers | Floats

    @property
    def samples(self) -> int:
        """How many samples are in the sums."""
        return int(self.gram[-1, -1])

    def plus(self, other: Sums, times: float = 1) -> Sums:
        """The sums of both sets of samples, the other's counted ``times``; with -1: without the other."""
        return Sums(self.gram + times * other.gram, self.moments + times * other.moments)


def size_bytes(width: int, outputs: int) -> int:
    """The length of sums as bytes."""
    return WORD * ((width + 1) * (width + 2) // 2 + (width + 1) * outputs)


def widest(outputs: int, limit_bytes: int) -> int:
    """The largest width whose sums fit into ``limit_bytes``; 0 when none does."""
    words, b = limit_bytes // WORD, 3 + 2 * outputs  # w^2 + (3 + 2c) w + 2 + 2c <= 2 words
    return max(0, (math.isqrt(max(0, b * b - 4 * (2 + 2 * outputs - 2 * words))) - b) // 2)


def targets(spec: HeadSpec, labels: Targets) -> Codes:
    """What a regression is to predict, (n, outputs) of 0 and 1: the class of each sample, its labels, or of one output
    its label. Raises: DataError for labels between yes and no."""
    outputs = spec.outputs
    if labels.ndim == 2:
        whole = np.asarray(labels, np.int8)
        if not np.array_equal(whole, labels) or whole.min(initial=0) < 0 or whole.max(initial=0) > 1:
            raise DataError("labels that are neither 0 nor 1 have no exact sums")
        return whole
    if outputs == 1:
        return np.asarray(labels[:, None], np.int8)
    return np.asarray(labels[:, None] == np.arange(outputs), np.int8)


def layer_input(spec: HeadSpec, params: Sequence[Array], layer: int) -> tuple[QuantHead, Affine]:
    """The layers before ``layer`` in integers, the same on every board, and what the codes behind them mean."""
    before = QuantHead(requantise(spec, params, None).layers[:layer])
    return before, before.layers[-1].result if layer else spec.features


def summed(spec: HeadSpec, params: Sequence[Array], plan: Plan, features: Codes, labels: Targets) -> Sums:
    """The sums over samples. params: of the head whose layers before ``plan.layer`` the features go through.

    features: (n, in) codes.   labels: (n,) classes, or (n, outputs) of 0 and 1.   Raises: DataError when the plan does
    not fit the head, or labels are in between.
    """
    if plan.layer >= len(spec.layers) or (plan.seed is None) != (plan.shift is None):
        raise DataError(f"sums before layer {plan.layer} of {len(spec.layers)}, or half a projection")
    inputs, outputs = spec.layers[plan.layer].weights.shape[1], spec.layers[-1].weights.shape[0]
    if outputs != plan.outputs or (plan.seed is None and inputs != plan.width):
        raise DataError(f"sums of {plan.width} x {plan.outputs} do not fit a layer of {inputs} x {outputs}")
    before, source = layer_input(spec, params, plan.layer)
    signs = projection(plan, inputs)
    gram, moments = np.zeros((plan.width + 1,) * 2), np.zeros((plan.width + 1, plan.outputs))
    for start in range(0, len(features), BATCH):
        codes = features[start : start + BATCH]
        for layer in before.layers:
            codes = layer.run(codes)
        if signs is not None and plan.shift is not None:
            codes = _projected(codes, source.zero_point, signs, plan.shift)
        f = np.concatenate([codes.astype(np.float64), np.ones((len(codes), 1))], axis=1)
        gram += f.T @ f  # exact: integers far below 2^53, whatever the order of additions
        moments += f.T @ targets(spec, labels[start : start + BATCH])
    return Sums(gram.astype(np.int64), moments.astype(np.int64))


def projection(plan: Plan, inputs: int) -> Array | None:
    """The signs, (inputs, width) of -1 and 1, that the plan's seed stands for; None without a projection."""
    if plan.seed is None:
        return None
    count = inputs * plan.width
    bits = np.frombuffer(hashlib.shake_256(plan.seed).digest(-(-count // 8)), np.uint8)
    signs = np.unpackbits(bits, count=count).astype(np.float32) * 2 - 1
    return np.asarray(signs.reshape(inputs, plan.width), np.float32)


def to_bytes(sums: Sums) -> bytes:
    """The upper triangle of the Gram matrix by rows, then the moments by rows: int32, little endian.

    Raises: DataError beyond 65,535 samples.
    """
    if sums.samples > MAX_SAMPLES:
        raise DataError(f"{sums.samples} samples in one sum, at most {MAX_SAMPLES} fit its integers")
    upper = sums.gram[np.triu_indices(len(sums.gram))]
    words: bytes = np.concatenate([upper, sums.moments.ravel()]).astype("<i4").tobytes()
    return words


def from_bytes(body: bytes, width: int, outputs: int) -> Sums:
    """The sums of such bytes, of exactly the length that ``size_bytes`` says."""
    words = np.frombuffer(body, "<i4").astype(np.int64)
    ends = np.triu_indices(width + 1)
    gram = np.zeros((width + 1,) * 2, np.int64)
    gram[ends] = words[: len(ends[0])]
    gram.T[ends] = words[: len(ends[0])]
    return Sums(gram, words[len(ends[0]) :].reshape(width + 1, outputs).copy())


def _projected(codes: Codes, zero_point: int, signs: Array, shift: int) -> Codes:
    """Codes less their zero point times the signs, / 2^shift, rounded and clipped to int8.

    float32 is exact: 65,535 inputs of at most 255 stay within 2^24.
    """
    x = codes.astype(np.float32)
    x -= zero_point
    y = np.floor((x @ signs) / np.float32(2**shift) + np.float32(0.5))
    return np.asarray(np.clip(y, -LARGEST, LARGEST - 1), np.int8)
