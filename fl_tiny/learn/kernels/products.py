# SPDX-License-Identifier: Apache-2.0
"""What convolutions and dense layers share: weights as whole numbers in floats, and sums of products to codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fl_tiny.learn.kernels.node import CODES, Array, Node, clip_range
from fl_tiny.learn.kernels.rounding import EXACT_FLOAT32, Channels, Rule, Target, constant_codes, scaler

MAX_SUM = 2**31  # what the accumulators of a runtime hold
MAX_STEP = 2.0**32  # guess; of a weight
MAX_SCALE = 256  # XNNPACK's limit; a real layer has far less than 1


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Weights less their zero point, and what they and their input mean.

    values: float64, whole numbers, of the file's shape; real numbers in a float32 layer.
    bias: (outputs,) float64.   zero: the input's zero point.   scale: (1,) or (outputs,) float32, empty in float32.
    """

    values: Array
    bias: Array
    zero: int
    scale: Array


@dataclass(frozen=True, slots=True)
class Finish:
    """``codes``: from sums of products (rows, outputs) of type ``kind`` to the output's values."""

    kind: str
    codes: Callable[[Array], Array]


def read_weights(node: Node, axis: int) -> Weights:
    """Weights and bias of inputs 1 and 2; scales may stand along ``axis``. Raises: ModelError for other kinds."""
    source, weights, result = node.tensor(0), node.tensor(1), node.output
    bias = node.constant(2) if node.has(2) else None
    kinds = (source.dtype, weights.dtype, result.dtype, "" if bias is None else bias.dtype.name)
    outputs = weights.shape[axis]
    if bias is not None and bias.size != outputs:
        raise node.refuse(f"a bias of {bias.size} values for {outputs} outputs")
    added = np.zeros(outputs) if bias is None else bias.reshape(-1).astype(np.float64)
    values = node.constant(1).astype(np.float64)
    if kinds[:3] == ("float32",) * 3 and kinds[3] in ("", "float32"):
        return Weights(values, added, 0, np.empty(0, np.float32))
    if source.dtype not in CODES or len(set(kinds[:3])) > 1 or kinds[3] not in ("", "int32"):
        raise node.refuse(f"it works on {', '.join(kinds[:3])}, the bias on {kinds[3] or 'nothing'}")
    scale = weights.quantisation
    sound = scale is not None and min(scale.scale) > 0 and max(scale.scale) <= MAX_STEP
    if scale is None or not sound or (len(scale.scale) > 1 and scale.axis != axis):
        raise node.refuse("the weights have no scale, or none along their outputs")
    if len(set(scale.zero_point)) > 1 or (weights.dtype == "int8" and scale.zero_point[0] != 0):
        raise node.refuse("the weights have several zero points, or one that is not 0")
    if weights.dtype == "uint8":
        if len(scale.scale) > 1 or not 0 <= scale.zero_point[0] <= 255:
            raise node.refuse("uint8 weights have one scale and a zero point from 0 to 255")
        values -= scale.zero_point[0]
    return Weights(values, added, node.affine(source).zero_point, np.array(scale.scale, np.float32))


def finish(node: Node, weights: Weights, matrix: Array, slot: int, positions: int, *, away: bool) -> Finish:
    """From products of ``matrix``, (inputs, outputs), with codes as they are: bias, zero point, scale, activation.

    slot: the options' field of the activation.   positions: rows of one batch.   away: see ``fixed_product``.
    """
    kept = node.activation(slot)
    if not weights.scale.size:
        return _float_finish(kept, weights.bias)
    kind, outputs = node.output.dtype, matrix.shape[1]
    result, size = node.affine(node.output), np.abs(matrix).sum(axis=0)
    bias = weights.bias - weights.zero * matrix.sum(axis=0)
    bound = (128 if kind == "int8" else 255) * size + np.abs(bias)
    if bound.max() >= MAX_SUM:
        raise node.refuse("sums of its products need more than 32 bits")
    channels = Channels(_scales(node, weights, outputs), bias, np.full(outputs, result.zero_point), bound)
    target = Target(*clip_range(result, kind, kept), kind)
    if (pruned := size == 0).any():  # a channel without weights is a constant, often with a huge bias
        code = np.where(pruned, _constants(channels, target, node, away), channels.code)
        live = ~pruned
        channels = Channels(channels.scale * live, bias * live, code, bound * live)
    sums = "float32" if channels.bound.max() < EXACT_FLOAT32 else "float64"
    channels = replace(channels, bias=channels.bias.astype(sums))
    return Finish(sums, scaler(channels, target, node.rule, positions=positions, away=away))


def _scales(node: Node, weights: Weights, outputs: int) -> Array:
    """What one step of a sum is worth in steps of the output, one an output.

    Source: tensorflow/lite/kernels/kernel_util.cc, GetQuantizedConvolutionMultipler (one scale) and
    PopulateConvolutionQuantizationParams (one an output).
    """
    source, result = (np.float32(node.affine(each).scale) for each in (node.tensor(0), node.output))
    if node.rule is Rule.LITERT:
        scales = source * weights.scale / result
    elif len(weights.scale) == 1 and (node.operator.name == "FULLY_CONNECTED" or node.output.dtype == "uint8"):
        scales = (source * weights.scale).astype(np.float64) / np.float64(result)
    else:
        scales = np.float64(source) * weights.scale.astype(np.float64) / np.float64(result)
    found = np.broadcast_to(scales, outputs).astype(np.float64)
    if not (found < MAX_SCALE).all():
        raise node.refuse(f"a product is worth more than {MAX_SCALE} steps of the output")
    return found


def _constants(channels: Channels, target: Target, node: Node, away: bool) -> Array:
    return np.clip(constant_codes(channels, node.rule, away=away), target.low, target.high)


def _float_finish(kept: tuple[float, float], bias: Array) -> Finish:
    added, low, high = bias.astype(np.float32), np.float32(kept[0]), np.float32(kept[1])

    def values(sums: Array) -> Array:
        sums += added
        return sums if kept[0] == -math.inf else np.clip(sums, low, high, out=sums)

    return Finish("float32", values)
