# SPDX-License-Identifier: Apache-2.0
"""CONV_2D and DEPTHWISE_CONV_2D as matrix products and sums of windows in float32, exact where codes go in.

Products of codes are whole numbers, and so are their sums; below 2^24 each is a float32, whatever the order in which a
BLAS adds them up. The bound is worked out from the weights at load; where it does not hold, float64 is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from fl_tiny.learn.flatbuffer import I8, I32
from fl_tiny.learn.kernels.node import MAX_VALUES, Array, Kernel, Node
from fl_tiny.learn.kernels.products import Finish, finish, read_weights

VALID = 1  # schema.fbs, Padding: SAME is 0


@dataclass(frozen=True, slots=True)
class Frame:
    """Where windows lie on an image: image, window, step, dilation, result as (height, width); zeros around it."""

    image: tuple[int, int]
    window: tuple[int, int]
    step: tuple[int, int]
    dilation: tuple[int, int]
    result: tuple[int, int]
    before: tuple[int, int]
    padded: tuple[int, int]

    @property
    def pointwise(self) -> bool:
        return self.window == (1, 1) and self.step == (1, 1)


def conv_2d(node: Node) -> Kernel:
    """A kernel of CONV_2D: windows copied into rows, rows times weights."""
    source, result = node.tensor(0), node.output
    weights = node.tensor(1)
    if not len(source.shape) == len(weights.shape) == len(result.shape) == 4:
        raise node.refuse("image, weights and result need four axes")
    outputs, height, width, inputs = weights.shape
    if inputs != source.shape[3] or outputs < 1 or inputs < 1:
        raise node.refuse(f"weights {list(weights.shape)} on an image of {list(source.shape)}")
    frame = frame_of(node, (height, width), (2, 1), (5, 4))
    node.shape((source.shape[0], *frame.result, outputs))
    node.work(math.prod(result.shape) * height * width * inputs)
    read = read_weights(node, 0)
    matrix = np.ascontiguousarray(read.values.reshape(outputs, -1).T)
    return _by_rows(
        node,
        frame,
        matrix,
        finish(node, read, matrix, 3, math.prod(result.shape[:3]), away=source.dtype == "uint8"),
        read.zero,
    )


def depthwise_conv_2d(node: Node) -> Kernel:
    """A kernel of DEPTHWISE_CONV_2D: one sum of products of a channel with its own window."""
    source, result = node.tensor(0), node.output
    weights = node.tensor(1)
    if not len(source.shape) == len(weights.shape) == len(result.shape) == 4 or weights.shape[0] != 1:
        raise node.refuse("image, weights and result need four axes, the weights' first of one")
    _, height, width, outputs = weights.shape
    inputs = source.shape[3]
    if inputs < 1 or outputs < 1 or outputs % inputs:
        raise node.refuse(f"{outputs} channels of {inputs}")
    frame = frame_of(node, (height, width), (2, 1), (6, 5))
    node.shape((source.shape[0], *frame.result, outputs))
    node.work(math.prod(result.shape) * height * width)
    read = read_weights(node, 3)
    matrix = np.ascontiguousarray(read.values.reshape(height * width, outputs))
    last = finish(node, read, matrix, 4, math.prod(result.shape[:3]), away=True)
    if inputs == 1:
        return _by_rows(node, frame, matrix, last, read.zero)
    return _by_channel(node, frame, matrix.astype(last.kind), last, read.zero)


def frame_of(node: Node, window: tuple[int, int], steps: tuple[int, int], dilations: tuple[int, int] | None) -> Frame:
    """The windows of an image operator; ``steps`` and ``dilations`` are the options' fields of height and width.

    Raises: ModelError when they do not fit the image.   Source: tensorflow/lite/kernels/padding.h.
    """
    image = node.tensor(0).shape[1:3]
    step = tuple(node.number(slot, I32) for slot in steps)
    dilation = (1, 1) if dilations is None else tuple(node.number(slot, I32, 1) for slot in dilations)
    if not all(0 < each < 2**15 for each in (*window, *step, *dilation, *image)):
        raise node.refuse(f"window {window}, step {step}, dilation {dilation}, image {image}")
    reach = [(size - 1) * apart + 1 for size, apart in zip(window, dilation, strict=True)]
    valid = node.number(0, I8) == VALID
    fits = zip(image, reach, step, strict=True)
    result = [(side - size) // by + 1 if valid else (side - 1) // by + 1 for side, size, by in fits]
    if min(result) < 1:
        raise node.refuse(f"a window of {reach} does not fit an image of {list(image)}")
    needed = [(many - 1) * by + size for many, by, size in zip(result, step, reach, strict=True)]
    before = [max(0, need - side) // 2 for need, side in zip(needed, image, strict=True)]
    padded = [max(need, side + first) for need, side, first in zip(needed, image, before, strict=True)]
    values = node.tensor(0).shape[0] * node.tensor(0).shape[3]
    if math.prod(padded) * values > MAX_VALUES:
        raise node.refuse(f"an image padded to {padded}")
    return Frame(image, window, step, dilation, *(tuple(each) for each in (result, before, padded)))  # type: ignore[arg-type]


def padder(frame: Frame, kind: str, zero: float) -> Callable[[Array], Array]:
    """A function from images (n, height, width, channels) to those of type ``kind`` with ``zero`` around them."""
    (top, left), (rows, columns), (height, width) = frame.before, frame.padded, frame.image
    if (rows, columns) == (height, width):
        return lambda x: x.astype(kind, order="C", copy=False)

    def pad(x: Array) -> Array:
        padded = np.empty((len(x), rows, columns, x.shape[3]), kind)
        padded[:, top : top + height, left : left + width] = x
        padded[:, :top] = padded[:, top + height :] = zero
        padded[:, :, :left] = padded[:, :, left + width :] = zero
        return padded

    return pad


def windows(frame: Frame, x: Array) -> Array:
    """A view of padded images (n, …) as (n, *result, *window, channels)."""
    n, row, column, channel = x.strides
    (up, right), (down, over) = frame.step, frame.dilation
    shape = (len(x), *frame.result, *frame.window, x.shape[3])
    return as_strided(x, shape, (n, row * up, column * right, row * down, column * over, channel), writeable=False)


def _by_rows(node: Node, frame: Frame, matrix: Array, last: Finish, zero: int) -> Kernel:
    """Each window is a row, (n * positions, window * channels), times ``matrix``, (window * channels, outputs)."""
    inputs, outputs = matrix.shape
    if node.tensor(0).shape[0] * math.prod(frame.result) * inputs > MAX_VALUES:
        raise node.refuse(f"windows of {math.prod(frame.result)} x {inputs} values")
    pad, matrix = padder(frame, last.kind, zero), matrix.astype(last.kind)

    def run(x: Array) -> Array:
        rows = pad(x)
        if not frame.pointwise:
            rows = windows(frame, rows)
        return last.codes(rows.reshape(-1, inputs) @ matrix).reshape(len(x), *frame.result, outputs)

    return Kernel(run, (node.tensor(0).index,))


def _by_channel(node: Node, frame: Frame, matrix: Array, last: Finish, zero: int) -> Kernel:
    """``matrix``: (window, outputs). Rows of images are summed at a time where windows lie side by side.

    Measured (docs/adr/0012-numpy-kernels.md): einsum multiplies and adds in one pass, and is fast when its innermost
    loop is long.
    """
    outputs, repeat = matrix.shape[1], matrix.shape[1] // node.tensor(0).shape[3]
    weights, width = matrix.reshape(*frame.window, outputs), frame.result[1]
    pad, joined = padder(frame, last.kind, zero), frame.step[1] == 1
    if joined:
        weights = np.tile(weights, width)

    def run(x: Array) -> Array:
        view = windows(frame, pad(np.repeat(x, repeat, 3) if repeat > 1 else x))
        if joined:
            strides = (*view.strides[:2], *view.strides[3:])
            view = as_strided(view, (*view.shape[:2], *frame.window, width * outputs), strides, writeable=False)
            sums = np.einsum("nhijc,ijc->nhc", view, weights)
        else:
            sums = np.einsum("nhwijc,ijc->nhwc", view, weights)
        return last.codes(sums.reshape(-1, outputs)).reshape(len(x), *frame.result, outputs)

    return Kernel(run, (node.tensor(0).index,))
