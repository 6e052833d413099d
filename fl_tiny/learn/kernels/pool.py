# SPDX-License-Identifier: Apache-2.0
"""AVERAGE_POOL_2D, MAX_POOL_2D and MEAN: many values become one."""

from __future__ import annotations

import math

import numpy as np

from fl_tiny.learn.flatbuffer import I32, U8
from fl_tiny.learn.kernels.activation import away_from_zero, to_codes
from fl_tiny.learn.kernels.conv import frame_of, padder, windows
from fl_tiny.learn.kernels.node import CODES, Array, Kernel, Node, clip_range
from fl_tiny.learn.kernels.rounding import Rule, fixed_point, fixed_product, fixed_shift
from fl_tiny.learn.quant import Affine

F32 = np.float32
FEW = 16  # windows of so many values are gone through value by value, larger ones by numpy's own reduction; measured


def pool_2d(node: Node) -> Kernel:
    """A kernel of AVERAGE_POOL_2D and MAX_POOL_2D; what lies outside the image counts for neither.

    Source: tensorflow/lite/kernels/internal/reference/integer_ops/pooling.h.
    """
    kind, source = node.kinds(*CODES, "float32"), node.tensor(0)
    if len(source.shape) != 4:
        raise node.refuse("an image needs four axes")
    size = node.number(4, I32), node.number(3, I32)
    frame = frame_of(node, size, (2, 1), None)
    node.shape((source.shape[0], *frame.result, source.shape[3]))
    node.work(math.prod(node.output.shape) * math.prod(size))
    kept = node.activation(5)
    low, high = kept
    if kind != "float32":
        low, high = clip_range(_same(node), kind, kept)
    average = node.operator.name == "AVERAGE_POOL_2D"
    lowest = -math.inf if kind == "float32" else np.iinfo(kind).min
    pad = padder(frame, ("float32" if kind == "float32" else "int32") if average else kind, 0 if average else lowest)
    join = np.add if average else np.maximum
    count = windows(frame, padder(frame, "int32", 0)(np.ones((1, *frame.image, 1), np.int32))).sum(axis=(3, 4))

    def run(x: Array) -> Array:
        view = windows(frame, pad(x))
        if math.prod(size) > FEW:
            values = join.reduce(view, axis=(3, 4), dtype=view.dtype)
        else:
            values = view[:, :, :, 0, 0].copy()
            for i, j in list(np.ndindex(*size))[1:]:
                join(values, view[:, :, :, i, j], out=values)
        if average:
            values = values / count.astype(F32) if kind == "float32" else _divided(values, count)
        result: Array = np.clip(values, low, high).astype(kind)
        return result

    return Kernel(run, (source.index,))


def mean(node: Node) -> Kernel:
    """A kernel of MEAN."""
    kind, source = node.kinds(*CODES, "float32"), node.tensor(0)
    rank = len(source.shape)
    axes = node.integers(1)
    if not axes or not all(-rank <= axis < rank for axis in axes):
        raise node.refuse(f"axes {axes} of {list(source.shape)}")
    over = tuple(sorted({axis % rank for axis in axes}))
    keep = bool(node.number(0, U8))
    left = [1 if axis in over else side for axis, side in enumerate(source.shape) if keep or axis not in over]
    node.shape(tuple(left))
    inputs, single = (source.index,), 0 in over
    if kind == "float32":
        return Kernel(lambda x: x.mean(axis=over, keepdims=keep, dtype=F32), inputs, single)
    before, after = node.affine(source), node.affine(node.output)
    count = math.prod(source.shape[axis] for axis in over)
    if count > 2**23:
        raise node.refuse(f"a mean of {count} values")

    codes = _mean_codes if node.rule is Rule.TFLITE else _float_mean_codes
    if node.rule is Rule.TFLITE and keep and rank == 4 and over == (1, 2):
        codes = _image_mean_codes
    if node.rule is Rule.LITERT and before == after:
        codes = _plain_mean_codes

    def run(x: Array) -> Array:
        sums = x.sum(axis=over, keepdims=keep, dtype=np.int64)
        return to_codes(codes(sums, count, before, after), kind)

    return Kernel(run, inputs, single)


def _mean_codes(sums: Array, count: int, before: Affine, after: Affine) -> Array:
    """Sums of codes as codes of their mean. Source: tensorflow/lite/kernels/internal/reference/reduce.h."""
    q, shift = fixed_point(before.scale / after.scale)
    down = min(count.bit_length() - 1, 32, 31 + shift)
    whole = sums - count * before.zero_point
    return fixed_shift(whole, (q << down) // count, shift - down, away=True) + after.zero_point


def _image_mean_codes(sums: Array, count: int, before: Affine, after: Affine) -> Array:
    """The same as it is computed over height and width alone, when their axes stay: zero points come apart.

    Source: tensorflow/lite/kernels/internal/optimized/integer_ops/mean.h.
    """
    first, second = F32(before.scale), F32(after.scale)
    shift = after.zero_point - int(away_from_zero(np.array(F32(before.zero_point) * first / second)))
    return fixed_product(sums, float(first / (F32(count) * second)), away=True) + shift


def _float_mean_codes(sums: Array, count: int, before: Affine, after: Affine) -> Array:
    """The LITERT rule: XNNPACK's mean."""
    scale = F32(before.scale) / F32(after.scale) / F32(count)
    steps: Array = np.rint((sums - count * before.zero_point).astype(F32) * scale)
    return steps.astype(np.int64) + after.zero_point


def _plain_mean_codes(sums: Array, count: int, before: Affine, after: Affine) -> Array:
    """The LITERT rule where nothing is rescaled: the mean of the codes themselves.

    Measured: three of 3,000 drawn models have a value half way between two codes that goes the other way.
    """
    whole: Array = np.rint(sums.astype(F32) * (F32(1) / F32(count)))
    return whole.astype(np.int64)


def _image_mean(x: Array, count: int, before: Affine, after: Affine) -> Array:
    """The mean of images whose axes stay, which tflite-runtime computes by another kernel: zero points come last.

    Source: tensorflow/lite/kernels/internal/optimized/integer_ops/mean.h.
    """
    shift = F32(before.zero_point) * F32(before.scale) / F32(after.scale)
    point = after.zero_point - int(shift + F32(0.5) if shift > 0 else shift - F32(0.5))
    scale = before.scale / float(F32(count) * F32(after.scale))
    sums = x.sum(axis=(1, 2), keepdims=True, dtype=np.int64)
    return fixed_shift(sums, *fixed_point(scale), away=True) + point


def _same(node: Node) -> Affine:
    """The scale of input and output. Raises: ModelError when they differ: a pool does not rescale."""
    result = node.affine(node.output)
    if node.affine(node.tensor(0)) != result:
        raise node.refuse("its input and output have different scales")
    return result


def _divided(sums: Array, count: Array) -> Array:
    """Sums over counts, rounded half away from zero."""
    result: Array = np.sign(sums) * ((np.abs(sums) + count // 2) // count)
    return result
