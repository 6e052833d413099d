# SPDX-License-Identifier: Apache-2.0
"""Operators that move values and change none: RESHAPE and its kin, PAD, CONCATENATION, TRANSPOSE, slices, RESIZE."""

from __future__ import annotations

import math

import numpy as np

from fl_tiny.learn.flatbuffer import I32, U8
from fl_tiny.learn.kernels.node import CODES, Array, Kernel, Node, clip_range

PLAIN = (*CODES, "float32")


def reshape(node: Node) -> Kernel:
    """A kernel of RESHAPE, SQUEEZE and EXPAND_DIMS; the file's shape of the output says what is wanted."""
    kept(node, *PLAIN)
    source, shape = node.tensor(0), node.output.shape
    if math.prod(source.shape) != math.prod(shape):
        raise node.refuse(f"{list(shape)} of {list(source.shape)}")
    if node.operator.name == "RESHAPE" and node.has(1) and node.is_constant(1):
        wanted = node.integers(1)
        if len(wanted) != len(shape) or any(a not in (-1, b) for a, b in zip(wanted, shape, strict=True)):
            raise node.refuse(f"the file says {list(shape)}, its shape input {wanted}")
    rest = shape[1:]
    if not shape:
        return Kernel(lambda x: x.reshape(()), (source.index,), single=True)
    return Kernel(lambda x: x.reshape(-1, *rest), (source.index,))


def pad(node: Node) -> Kernel:
    """A kernel of PAD and PADV2: zeros, or a constant, around."""
    kind, source = kept(node, *PLAIN), node.tensor(0)
    sides = node.integers(1)
    if len(sides) != 2 * len(source.shape) or min(sides, default=-1) < 0:
        raise node.refuse(f"sides {sides} of {list(source.shape)}")
    pairs = tuple(zip(sides[::2], sides[1::2], strict=True))
    node.shape(tuple(side + sum(pair) for side, pair in zip(source.shape, pairs, strict=True)))
    value = 0 if kind == "float32" else node.affine(node.output).zero_point
    if node.has(2):
        given = node.constant(2)
        if given.size != 1 or given.dtype != kind:
            raise node.refuse("its fill is not one value of its type")
        value = given.reshape(-1)[0]
    inside = tuple(slice(first, first + side) for side, (first, _) in zip(source.shape[1:], pairs[1:], strict=True))
    shape = node.output.shape

    def run(x: Array) -> Array:
        around = np.full((len(x) + sum(pairs[0]), *shape[1:]), value, kind)
        place = (slice(pairs[0][0], pairs[0][0] + len(x)), *inside)
        around[place] = x
        return around

    return Kernel(run, (source.index,), single=any(pairs[0]))


def concatenation(node: Node) -> Kernel:
    """A kernel of CONCATENATION."""
    places = range(len(node.operator.inputs))
    tensors = [node.tensor(place) for place in places]
    kind, shape = node.output.dtype, node.output.shape
    rank, axis = len(shape), node.number(0, I32)
    if kind not in PLAIN or any(each.dtype != kind or len(each.shape) != rank for each in tensors):
        raise node.refuse("its inputs differ in type or rank")
    if not -rank <= axis < rank:
        raise node.refuse(f"axis {axis} of {rank}")
    axis %= rank
    if any(each.shape[:axis] + each.shape[axis + 1 :] != shape[:axis] + shape[axis + 1 :] for each in tensors):
        raise node.refuse("its inputs differ in more than the axis they are joined along")
    node.shape((*shape[:axis], sum(each.shape[axis] for each in tensors), *shape[axis + 1 :]))
    low, high = node.activation(1)
    if kind != "float32":
        result = node.affine(node.output)
        if any(node.affine(each) != result for each in tensors):
            raise node.refuse("its inputs have other scales than its output")
        low, high = clip_range(result, kind, (low, high))
    given = [node.constants.get(each.index) for each in tensors]
    inputs = tuple(each.index for each, values in zip(tensors, given, strict=True) if values is None)
    clips = node.activation(1)[1] != math.inf or node.activation(1)[0] != -math.inf

    def run(*arrays: Array) -> Array:
        computed = iter(arrays)
        joined = np.concatenate([next(computed) if values is None else values for values in given], axis)
        return np.clip(joined, low, high).astype(kind) if clips else joined

    return Kernel(run, inputs, single=axis == 0 or len(inputs) < len(tensors))


def transpose(node: Node) -> Kernel:
    """A kernel of TRANSPOSE."""
    kept(node, *PLAIN)
    source, order = node.tensor(0), node.integers(1)
    if sorted(order) != list(range(len(source.shape))):
        raise node.refuse(f"axes {order} of {list(source.shape)}")
    node.shape(tuple(source.shape[axis] for axis in order))
    single = order[:1] != [0]
    return Kernel(lambda x: np.ascontiguousarray(x.transpose(order)), (source.index,), single)


def strided_slice(node: Node) -> Kernel:
    """A kernel of STRIDED_SLICE without ellipsis and new axes.

    Source: tensorflow/lite/kernels/internal/strided_slice_logic.h; options begin_mask, end_mask, ellipsis_mask,
    new_axis_mask, shrink_axis_mask, offset.
    """
    kept(node, *PLAIN)
    source = node.tensor(0)
    starts, ends, steps = (node.integers(place) for place in (1, 2, 3))
    begin, end, ellipsis, new, shrink = (node.number(slot, I32) for slot in range(5))
    if ellipsis or new or node.number(5, U8):
        raise node.refuse("an ellipsis, a new axis or an offset")
    if not len(starts) == len(ends) == len(steps) <= len(source.shape) or 0 in steps:
        raise node.refuse(f"from {starts} to {ends} by {steps} of {list(source.shape)}")
    cuts: list[slice | int] = []
    for axis, (start, stop, step) in enumerate(zip(starts, ends, steps, strict=True)):
        side = source.shape[axis]
        if shrink >> axis & 1:
            if not -side <= start < side:
                raise node.refuse(f"place {start} of {side}")
            cuts.append(start)
            continue
        cuts.append(slice(None if begin >> axis & 1 else start, None if end >> axis & 1 else stop, step))
    probe = np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), source.shape, (0,) * len(source.shape))
    node.shape(probe[tuple(cuts)].shape)
    first = cuts[0] if cuts else slice(None)
    whole = isinstance(first, slice) and range(*first.indices(source.shape[0])) == range(source.shape[0])
    place = (slice(None), *cuts[1:]) if whole else tuple(cuts)
    return Kernel(lambda x: np.ascontiguousarray(x[place]), (source.index,), single=not whole)


def resize_nearest(node: Node) -> Kernel:
    """A kernel of RESIZE_NEAREST_NEIGHBOR.

    Source: tensorflow/lite/kernels/internal/reference/resize_nearest_neighbor.h.
    """
    kept(node, *PLAIN)
    source, size = node.tensor(0), node.integers(1)
    if len(source.shape) != 4 or len(size) != 2 or min(size) < 1:
        raise node.refuse(f"{list(source.shape)} to {size}")
    node.shape((source.shape[0], *size, source.shape[3]))
    corners, centres = bool(node.number(0, U8)), bool(node.number(1, U8))
    rows, columns = (_nearest(side, many, corners, centres) for side, many in zip(source.shape[1:3], size, strict=True))
    return Kernel(lambda x: x[:, rows][:, :, columns], (source.index,))


def kept(node: Node, *allowed: str) -> str:
    """The type of input and output, whose scales are the same. Raises: ModelError for others."""
    kind = node.kinds(*allowed)
    if kind in CODES and node.tensor(0).quantisation is not None:
        before, after = node.affine(node.tensor(0)), node.affine(node.output)
        if before != after:
            raise node.refuse("its input and output have different scales")
    return kind


def _nearest(side: int, many: int, corners: bool, centres: bool) -> Array:
    """Which of ``side`` places each of ``many`` takes its value from."""
    f32 = np.float32
    scale = f32(side - 1) / f32(many - 1) if corners and many > 1 else f32(side) / f32(many)
    at = (np.arange(many, dtype=f32) + f32(0.5 if centres else 0)) * scale
    places = np.floor(at + f32(0.5)) if corners else np.floor(at)
    result: Array = np.clip(places.astype(np.int64), 0, side - 1)
    return result
