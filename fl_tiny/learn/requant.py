# SPDX-License-Identifier: Apache-2.0
"""A trained head back in int8: new codes and scales, the integer arithmetic they mean, and their patch of the file."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import ModelError
from fl_tiny.learn.head import Array, HeadSpec
from fl_tiny.learn.layer import Activation, Dense, bias_scale
from fl_tiny.learn.quant import Affine, affine_over

Ranges = Sequence[tuple[float, ...]]  # a layer: least and largest output; then, if known, the same behind its MEAN

BATCH = 256  # rows of features that are floats at a time
MAX_WEIGHT = 127  # TFLite's weights are symmetric: -128 is not used
MAX_BIAS = 2**30  # half of int32: the products of inputs and weights are added to it
MAX_MULTIPLIER = 128.0  # input scale x weight scale / output scale; XNNPACK refuses 256 and above
MIN_MULTIPLIER = 2.0**-31  # XNNPACK refuses less than 2**-32
TANH_END = 4.0  # tanh(4) is within a tenth of a code of 1


@dataclass(frozen=True, slots=True, eq=False)
class QuantDense:
    """One layer's codes and scales, ready to be run or patched; arrays as in ``layer.Dense``, its ``origin``."""

    weights: NDArray[np.int8]
    bias: NDArray[np.int32] | None
    weight_scale: NDArray[np.float32]
    input: Affine
    output: Affine
    pooled: Affine | None
    origin: Dense

    @property
    def result(self) -> Affine:
        """The codes that leave the layer."""
        return self.pooled or self.origin.bent or self.output

    def run(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        """(n, inputs) codes of ``input`` to (n, outputs) codes of ``result``, to within one step as TFLite does."""
        places = self.origin.places
        x = codes.reshape(len(codes) * places, -1).astype(np.float64)  # exact: sums stay far below 2**53
        x -= self.input.zero_point
        total = x @ self.weights.T.astype(np.float64)
        if self.bias is not None:
            total += self.bias
        total *= np.float64(self.input.scale) * self.weight_scale.astype(np.float64) / self.output.scale
        low, high = self._limits()
        made = np.clip(np.rint(total) + self.output.zero_point, low, high).astype(np.int8)
        if (bent := self.origin.bent) is not None:
            every = np.arange(-128, 128, dtype=np.int8)
            made = bent.to_codes(np.tanh(self.output.to_real(every)), np.int8).astype(np.int8)[
                made.astype(np.int16) + 128
            ]
        return self._pool(made.reshape(len(codes), places, -1)) if self.origin.pool else made.reshape(len(codes), -1)

    def _limits(self) -> tuple[int, int]:
        low, high = -128, 127
        if self.origin.activation in (Activation.RELU, Activation.RELU6):
            low = self.output.zero_point
        if self.origin.activation is Activation.RELU6:
            high = min(127, self.output.zero_point + round(6 / self.output.scale))
        return low, high

    def _pool(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        before, after = self.origin.bent or self.output, self.result
        mean = (codes.mean(axis=1, dtype=np.float64) - before.zero_point) * (before.scale / after.scale)
        result: NDArray[np.int8] = np.clip(np.rint(mean + after.zero_point), -128, 127).astype(np.int8)
        return result


@dataclass(frozen=True, slots=True, eq=False)
class QuantHead:
    """A whole head in integers, first layer first."""

    layers: tuple[QuantDense, ...]

    def run(self, features: NDArray[np.int8]) -> Array:
        """What leaves the last layer in real units, (n, outputs), for (n, features) codes."""
        last = self.layers[-1]
        outputs = np.empty((len(features), last.origin.outputs), np.float32)
        for start in range(0, len(features), BATCH):
            codes = features[start : start + BATCH]
            for layer in self.layers:
                codes = layer.run(codes)
            outputs[start : start + BATCH] = last.result.to_real(codes)
        return outputs


def requantise(spec: HeadSpec, params: Sequence[Array], ranges: Ranges | None) -> QuantHead:
    """``params`` as int8. ``ranges``: of each layer's output; None keeps all scales that still hold the numbers.

    With unchanged parameters and no ranges the codes are those of the file. Raises: ModelError when a parameter is
    not finite.
    """
    if not all(np.isfinite(each).all() for each in params):
        raise ModelError("training ended in numbers that are not finite", hint="use a smaller learning rate")
    layers: list[QuantDense] = []
    place, source = 0, spec.features
    for depth, layer in enumerate(spec.layers):
        weights = params[place]
        bias = None if layer.bias is None else params[place + 1]
        place += 1 if bias is None else 2
        span = None if ranges is None else ranges[depth]
        made = _requantise_layer(layer, source, weights, bias, span, keep=spec.biases_only)
        layers.append(made)
        source = made.result
    return QuantHead(tuple(layers))


def patch(data: bytes, spec: HeadSpec, head: QuantHead) -> bytes:
    """``data``, the file that ``spec`` was read from, with ``head`` written over its own; the length stays."""
    copy = bytearray(data)
    for layer, made in zip(spec.layers, head.layers, strict=True):
        places = layer.patches
        _write(copy, places.weights, made.weights.tobytes())
        _write(copy, places.weight_scale, made.weight_scale.astype("<f4").tobytes())
        if places.bias is not None and made.bias is not None:
            _write(copy, places.bias, made.bias.astype("<i4").tobytes())
        # A stale bias scale is silent when wrong by less than the interpreter's tolerance (facts.md, trap 2).
        if places.bias_scale is not None and _moved(layer, made):
            _write(copy, places.bias_scale, bias_scale(made.input, made.weight_scale).astype("<f4").tobytes())
        for scale_at, point_at in places.outputs:
            _write_affine(copy, scale_at, point_at, made.output)
        for scale_at, point_at in places.pooled:
            _write_affine(copy, scale_at, point_at, made.pooled or made.output)
    assert len(copy) == len(data)
    return bytes(copy)


def _requantise_layer(
    layer: Dense, source: Affine, weights: Array, bias: Array | None, span: tuple[float, ...] | None, *, keep: bool
) -> QuantDense:
    output, pooled = layer.output, layer.pooled
    if span is not None and not layer.keeps_output:
        output = affine_over(*_clipped(layer, span[0], span[1]))
    if span is not None and layer.patches.pooled:
        pooled = affine_over(*_clipped(layer, span[-2], span[-1]))
    scale = _weight_scale(layer, source, output, weights, bias, keep=keep or span is None)
    if not layer.keeps_output and span is not None:
        output = _bounded(output, source.scale * float(scale.max()))
    codes = np.clip(np.rint(weights / scale[:, None]), -MAX_WEIGHT, MAX_WEIGHT).astype(np.int8)
    same = np.array_equal(scale, layer.weight_scale) and source == layer.input
    if same:  # -128, or a bias beyond float32's 24 bits, would not survive the way through real numbers
        codes = np.where(weights == layer.weights * scale[:, None], layer.weights, codes)
    if bias is None or layer.bias is None:
        return QuantDense(codes, None, scale, source, output, pooled, layer)
    step = bias_scale(source, scale)
    sums = np.clip(np.rint(bias.astype(np.float64) / step), -MAX_BIAS, MAX_BIAS).astype(np.int32)
    if same:
        sums = np.where(bias == layer.bias.astype(np.float32) * step, layer.bias, sums)
    return QuantDense(codes, sums, scale, source, output, pooled, layer)


def _clipped(layer: Dense, low: float, high: float) -> tuple[float, float]:
    if layer.activation is Activation.TANH:
        return max(low, -TANH_END), min(high, TANH_END)
    return low, min(high, 6.0) if layer.activation is Activation.RELU6 else high


def _weight_scale(
    layer: Dense, source: Affine, output: Affine, weights: Array, bias: Array | None, *, keep: bool
) -> NDArray[np.float32]:
    """One scale, or one a row, as the file has it; no smaller than weights, bias and runtime need.

    ``keep``: only where numbers that differ from the file's do not fit its scale is there a new one.
    """
    old = layer.weight_scale
    sizes, floor = np.abs(weights), np.float64(MIN_MULTIPLIER) * output.scale / source.scale
    reach = np.zeros(len(weights)) if bias is None else np.abs(bias.astype(np.float64))
    if keep:
        sizes = np.where(weights == layer.weights * old[:, None], 0, sizes)
        if bias is not None and layer.bias is not None:
            reach = np.where(bias == layer.bias.astype(np.float32) * bias_scale(layer.input, old), 0, reach)
    top, reach = sizes.max(axis=1), reach / (source.scale * MAX_BIAS)
    if len(old) == 1:
        top, reach = top.max(keepdims=True), reach.max(keepdims=True)
    needed = np.maximum(np.maximum(top / MAX_WEIGHT, reach), floor).astype(np.float32)
    fits = (top <= old * np.float32(MAX_WEIGHT + 0.5)) & (reach <= old)
    return np.asarray(np.where(fits, old, needed) if keep else needed, np.float32)


def _bounded(output: Affine, product: float) -> Affine:
    """``output``, its scale raised where one step of a product would be more steps of output than a runtime takes."""
    return output if product <= MAX_MULTIPLIER * output.scale else Affine(product / MAX_MULTIPLIER, output.zero_point)


def _moved(layer: Dense, made: QuantDense) -> bool:
    return made.input != layer.input or not np.array_equal(made.weight_scale, layer.weight_scale)


def _write_affine(copy: bytearray, scale_at: int, point_at: int, affine: Affine) -> None:
    _write(copy, scale_at, struct.pack("<f", affine.scale))
    _write(copy, point_at, struct.pack("<q", affine.zero_point))


def _write(copy: bytearray, at: int, data: bytes) -> None:
    assert at >= 0 and at + len(data) <= len(copy)
    copy[at : at + len(data)] = data
