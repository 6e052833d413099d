# SPDX-License-Identifier: Apache-2.0
"""Operators of one tensor: what 8-bit codes become is a table of 256 entries, made once; SOFTMAX is made of two.

The tables are computed in the precision and order of TFLite's kernels, which are float32 for the most part.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fl_tiny.learn.flatbuffer import U32
from fl_tiny.learn.kernels.node import ACTIVATIONS, CODES, Array, Kernel, Node, clip_range, limits
from fl_tiny.learn.kernels.rounding import Rule, fixed_point, fixed_product
from fl_tiny.learn.quant import Affine

F32 = np.float32
RELUS = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}  # the same ranges as the fused ones
CVT_LEAST, CVT_MOST = 2.0**-8, 2.0**7  # what XNNPACK rescales by; the rest is left to TFLite's own kernel
REAL: dict[str, Callable[[Array], Array]] = {  # of float64, rounded to float32 as a good libm does
    "LOGISTIC": lambda x: F32(1) / (F32(1) + np.exp(-x.astype(np.float64)).astype(F32)),
    "TANH": lambda x: np.tanh(x.astype(np.float64)).astype(F32),
    "HARD_SWISH": lambda x: x * np.clip(x + F32(3), F32(0), F32(6)) / F32(6),
}


def unary(node: Node) -> Kernel:
    """A kernel of LOGISTIC, TANH and HARD_SWISH."""
    kind = node.kinds(*CODES, "float32")
    node.shape(node.tensor(0).shape)
    real = REAL[node.operator.name]
    if kind == "float32":
        return Kernel(real, (node.tensor(0).index,))
    source, result = node.affine(node.tensor(0)), node.affine(node.output)
    if node.operator.name == "HARD_SWISH":
        return _table(node, _hard_swish(node, source, result, kind))
    inputs = F32(source.scale) * (all_codes(kind) - source.zero_point).astype(F32)
    with np.errstate(over="ignore"):
        steps = real(inputs) * (F32(1) / F32(result.scale))
    return _table(node, to_codes(away_from_zero(steps) + result.zero_point, kind))


def relu(node: Node) -> Kernel:
    """A kernel of RELU, RELU6 and RELU_N1_TO_1."""
    kind, kept = node.kinds(*CODES, "float32"), ACTIVATIONS[RELUS[node.operator.name]]
    node.shape(node.tensor(0).shape)
    if kind == "float32":
        low, high = F32(kept[0]), F32(kept[1])
        return Kernel(lambda x: np.clip(x, low, high), (node.tensor(0).index,))
    source, result = node.affine(node.tensor(0)), node.affine(node.output)
    low_code, high_code = clip_range(result, kind, kept)
    codes = np.clip(_rescaled(node, source, result, kind), low_code, high_code)
    return _table(node, codes.astype(kind))


def quantize(node: Node) -> Kernel:
    """A kernel of QUANTIZE: real numbers or codes to codes."""
    source, result = node.tensor(0), node.output
    if result.dtype not in CODES or source.dtype not in (*CODES, "float32"):
        raise node.refuse(f"from {source.dtype} to {result.dtype}")
    node.shape(source.shape)
    after = node.affine(result)
    if source.dtype != "float32":
        return _table(node, to_codes(_rescaled(node, node.affine(source), after, source.dtype), result.dtype))
    scale, zero, kind = after.scale, after.zero_point, result.dtype
    inverse = F32(1) / F32(scale)
    low, high = (float(each - zero) for each in limits(kind))

    def run(x: Array) -> Array:
        # The clip comes before the rounding, and lets nothing through that has no integer, not even what is no number.
        if node.rule is Rule.LITERT:
            steps: Array = np.rint(np.fmin(np.fmax(x * inverse, low), high))
        else:
            steps = np.fmin(np.fmax(x.astype(np.float64) / scale, low), high)
            steps += np.copysign(0.5, steps)
            np.trunc(steps, out=steps)
        steps += zero
        codes: Array = steps.astype(kind)
        return codes

    return Kernel(run, (source.index,))


def dequantize(node: Node) -> Kernel:
    """A kernel of DEQUANTIZE: codes or float16 to float32."""
    source, result = node.tensor(0), node.output
    node.shape(source.shape)
    if result.dtype != "float32" or source.dtype not in (*CODES, "float16"):
        raise node.refuse(f"from {source.dtype} to {result.dtype}")
    if source.dtype == "float16":
        return Kernel(lambda x: x.astype(F32), (source.index,))
    before = node.affine(source)
    values = (all_codes(source.dtype) - before.zero_point).astype(np.float64) * before.scale
    return _table(node, values.astype(F32))


def softmax(node: Node) -> Kernel:
    """A kernel of SOFTMAX over the last axis.

    Source: tensorflow/lite/kernels/internal/optimized/optimized_ops.h, Softmax with a lookup table.
    """
    kind, beta = node.kinds(*CODES, "float32"), node.number(0, U32, 0)
    strength = np.array([beta], "<u4").view("<f4")[0] if beta else F32(0)
    shape = node.tensor(0).shape
    node.shape(shape)
    if not shape or not 0 < strength < 1e6:
        raise node.refuse(f"beta {strength} over {list(shape)}")
    inputs, single = (node.tensor(0).index,), len(shape) == 1
    if kind == "float32":
        return Kernel(lambda x: _float_softmax(x, strength), inputs, single)
    source, result = node.affine(node.tensor(0)), node.affine(node.output)
    steps = -F32(source.scale) * strength * np.arange(256, dtype=F32)
    table, scale = np.exp(steps.astype(np.float64)).astype(F32), F32(result.scale)
    low, high = limits(kind)

    def run(x: Array) -> Array:
        wide = x.astype(np.int16)
        powers = table[wide.max(axis=-1, keepdims=True) - wide]
        total = np.cumsum(powers, axis=-1)[..., -1:]  # one after the other, as the sum is taken there
        share = powers * (F32(1) / (total * scale))
        codes = away_from_zero(share) + result.zero_point
        return np.clip(codes, low, high).astype(kind)

    return Kernel(run, inputs, single)


def all_codes(kind: str) -> Array:
    """The 256 codes of a type as int64, in the order of their bytes read without a sign."""
    return np.arange(256).astype(np.uint8).view(kind).astype(np.int64)


def to_codes(values: Array, kind: str) -> Array:
    """Whole numbers clipped to the codes of a type."""
    return np.clip(values, *limits(kind)).astype(kind)


def away_from_zero(x: Array) -> Array:
    """Rounded to whole numbers, halves away from zero, as C's round does; of x's type."""
    whole = np.trunc(x)
    result: Array = whole + np.where(np.abs(x - whole) >= 0.5, np.sign(x), 0).astype(x.dtype)
    return result


def _table(node: Node, table: Array) -> Kernel:
    """A kernel that looks each byte up."""
    return Kernel(lambda x: table[x.view(np.uint8)], (node.tensor(0).index,))


def _rescaled(node: Node, source: Affine, result: Affine, kind: str) -> Array:
    """What each code of ``source`` is in steps of ``result``, zero point added, not clipped.

    Source: tensorflow/lite/kernels/requantize.h; XNNPACK src/microparams-init.c, xnn_init_qs8_cvt_params.
    """
    codes = all_codes(kind) - source.zero_point
    scale = F32(source.scale) / F32(result.scale)
    converts = node.operator.name == "QUANTIZE" and node.output.dtype == kind and CVT_LEAST <= scale <= CVT_MOST
    if node.rule is Rule.LITERT and converts:
        weight = int(np.rint(scale * F32(256)))
        return ((codes * weight + 128) >> 8) + result.zero_point
    product = fixed_product(codes, source.scale / result.scale, away=node.rule is Rule.TFLITE)
    return product + result.zero_point


def _float_softmax(x: Array, strength: np.float32) -> Array:
    powers = np.exp((x - x.max(axis=-1, keepdims=True)) * strength)
    result: Array = powers / powers.sum(axis=-1, keepdims=True)
    return result


def _hard_swish(node: Node, source: Affine, result: Affine, kind: str) -> Array:
    """The table of HARD_SWISH in 16-bit fixed point.

    Source: tensorflow/lite/kernels/internal/reference/hard_swish.h and activations.cc, HardSwishPrepare.
    """
    fine = F32(1 / 128) * F32(source.scale)
    output, output_shift = _short(float(fine / F32(result.scale)))
    ramp, ramp_shift = _short(float(fine / (F32(3) / F32(32768))))
    if output_shift > 0:
        raise node.refuse("its output's scale is too small for its input's")
    values = (all_codes(kind) - source.zero_point) * 128
    scaled = _high_product(values, output)
    slope = np.clip(values << max(0, ramp_shift - 1), -(2**15), 2**15 - 1)
    slope = _high_product(slope, ramp)
    if ramp_shift > 0:
        slope = np.clip(slope << 1, -(2**15), 2**15 - 1)
    slope = _shifted(slope, max(0, -ramp_shift))
    slope = (slope + 2**15) >> 1
    product = slope * scaled
    product = np.sign(product) * (np.abs(product) >> 15)
    return to_codes(_shifted(product, -output_shift) + result.zero_point, kind)


def _short(scale: float) -> tuple[int, int]:
    """``scale`` as (q, shift) with q of 15 bits."""
    q, shift = fixed_point(scale)
    return min((q + 2**15) >> 16, 2**15 - 1), min(max(shift, -31), 31)


def _high_product(values: Array, q: int) -> Array:
    """values * q / 2^15, rounded half up."""
    return (values * q + 2**14) >> 15


def _shifted(values: Array, right: int) -> Array:
    """values / 2^right, rounded half away from zero."""
    result: Array = np.sign(values) * ((np.abs(values) + (2**right >> 1)) >> right)
    return result
