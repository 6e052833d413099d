# SPDX-License-Identifier: Apache-2.0
"""Models of one operator, drawn at random: every option that numpy's kernels take, in all combinations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.learn.tiny import Fields, Net

Rng = np.random.Generator
OPTIONS = {  # BuiltinOptions of schema.fbs
    "CONV_2D": 1, "DEPTHWISE_CONV_2D": 2, "AVERAGE_POOL_2D": 5, "MAX_POOL_2D": 5, "FULLY_CONNECTED": 8, "SOFTMAX": 9,
    "CONCATENATION": 10, "ADD": 11, "RESHAPE": 17, "MUL": 21, "PAD": 22, "TRANSPOSE": 26, "MEAN": 27, "SUB": 28,
    "SQUEEZE": 30, "STRIDED_SLICE": 32, "EXPAND_DIMS": 52, "RESIZE_NEAREST_NEIGHBOR": 74,
}  # fmt: skip
ACTIVATIONS = (0, 1, 2, 3)


class Drawn:
    """A net of one operator whose tensors have scales and zero points at random."""

    def __init__(self, rng: Rng, kind: str) -> None:
        self.rng, self.kind, self.net = rng, kind, Net()
        self.low = {"int8": -128, "uint8": 0}.get(kind, 0)

    def affine(self) -> tuple[list[float], list[int]]:
        if self.kind == "float32":
            return [], []
        scale = float(np.float32(np.exp(self.rng.uniform(-5, 0))))
        return [scale], [int(self.rng.choice([self.low, self.low + 128, self.low + int(self.rng.integers(256))]))]

    def tensor(self, shape: Sequence[int], affine: tuple[list[float], list[int]] | None = None) -> int:
        return self.net.tensor(shape, self.kind, *(affine or self.affine()))

    def input(self, shape: Sequence[int], affine: tuple[list[float], list[int]] | None = None) -> int:
        self.net.inputs = [self.tensor(shape, affine)]
        return self.net.inputs[0]

    def integers(self, values: Sequence[int]) -> int:
        return self.net.tensor([len(values)], "int32", data=np.array(values, "<i4"))

    def constant(self, shape: Sequence[int], affine: tuple[list[float], list[int]] | None = None) -> int:
        if self.kind == "float32":
            return self.net.tensor(shape, self.kind, data=self.rng.normal(size=shape).astype("<f4"))
        codes = self.rng.integers(self.low, self.low + 256, shape).astype(self.kind)
        return self.net.tensor(shape, self.kind, *(affine or self.affine()), data=codes)

    def finish(
        self, name: str, inputs: Sequence[int], output: int, version: int, options: Fields | None = None
    ) -> bytes:
        what = (OPTIONS[name], options) if options is not None else None
        self.net.operator(name, inputs, [output], version, what)
        self.net.outputs = [output]
        return self.net.model()

    def weights(self, shape: Sequence[int], axis: int, source: int, sums: int) -> tuple[list[int], list[float]]:
        """Weights and bias (or none) behind ``source``, and scales of an output that their sums fill."""
        rng, outputs = self.rng, shape[axis]
        bias = len(shape) == 4 or bool(rng.integers(4))  # tflite-runtime refuses a convolution without, or ends by it
        if self.kind == "float32":
            more = [self.net.tensor([outputs], "float32", data=rng.normal(size=outputs).astype("<f4"))] if bias else []
            return [self.constant(shape), *more], []
        several = self.kind == "int8" and bool(rng.integers(3))
        scale = [float(np.float32(np.exp(rng.uniform(-6, -3)))) for _ in range(outputs if several else 1)]
        zero = [int(rng.integers(100, 156))] if self.kind == "uint8" else [0] * len(scale)
        codes = rng.integers(0 if self.kind == "uint8" else -127, 256 if self.kind == "uint8" else 128, shape)
        index = self.net.tensor(shape, self.kind, scale, zero, data=codes.astype(self.kind))
        table = self.net.tensors[index][4][1]
        if several:
            table[6] = ("i", axis)
        step = np.float32(self.net.tensors[source][4][1][2][1][0])
        added = [float(np.float32(step * np.float32(each))) for each in scale]
        more = []
        if bias:
            numbers = rng.integers(-(2**12), 2**12, outputs).astype("<i4")
            more = [self.net.tensor([outputs], "int32", added, data=numbers)]
        spread = float(np.mean(added)) * np.sqrt(sums) * 74 * 74 / rng.uniform(60, 130)
        return [index, *more], [float(np.float32(spread))]


def same(side: int, window: int, step: int, apart: int) -> int:
    return -(-side // step)


def valid(side: int, window: int, step: int, apart: int) -> int:
    return (side - (window - 1) * apart - 1) // step + 1


def image(rng: Rng, *, most: int = 3) -> tuple[list[int], tuple[int, int], tuple[int, int], int]:
    """Shape of an image, window, step and padding, so that a window fits."""
    shape = [1, int(rng.integers(4, 13)), int(rng.integers(4, 13)), int(rng.integers(1, 7))]
    window = int(rng.integers(1, most + 1)), int(rng.integers(1, most + 1))
    return shape, window, (int(rng.integers(1, 3)), int(rng.integers(1, 3))), int(rng.integers(2))


def conv(rng: Rng, kind: str, *, depthwise: bool) -> bytes:
    drawn = Drawn(rng, kind)
    shape, window, step, padding = image(rng)
    if kind == "float32":  # a step beyond the window: tflite-runtime 2.14 gives the bias everywhere, or ends
        step = min(step[0], window[0]), min(step[1], window[1])
    apart = (1, 1) if max(step) > 1 or rng.integers(3) else (2, 1)
    if any((size - 1) * by >= side for size, by, side in zip(window, apart, shape[1:3], strict=True)):
        apart = (1, 1)
    at = drawn.input(shape)
    reach = (
        (valid if padding else same)(shape[1], window[0], step[0], apart[0]),
        (valid if padding else same)(shape[2], window[1], step[1], apart[1]),
    )
    outputs = shape[3] * int(rng.integers(1, 4)) if depthwise else int(rng.integers(1, 9))
    size = [1, *window, outputs] if depthwise else [outputs, *window, shape[3]]
    sums = window[0] * window[1] * (1 if depthwise else shape[3])
    more, scale = drawn.weights(size, 3 if depthwise else 0, at, sums)
    result = drawn.tensor([1, *reach, outputs], (scale, drawn.affine()[1]) if scale else None)
    act = ("b", int(rng.choice(ACTIVATIONS)))
    fields: Fields = {0: ("b", padding), 1: ("i", step[1]), 2: ("i", step[0])}
    if depthwise:
        fields |= {3: ("i", outputs // shape[3]), 4: act, 5: ("i", apart[1]), 6: ("i", apart[0])}
    else:
        fields |= {3: act, 4: ("i", apart[1]), 5: ("i", apart[0])}
    version = {"int8": 3, "uint8": 2 if depthwise else 1, "float32": 2 if depthwise else 1}[kind]
    return drawn.finish("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", [at, *more], result, version, fields)


def dense(rng: Rng, kind: str) -> bytes:
    drawn = Drawn(rng, kind)
    inputs, outputs = int(rng.integers(1, 40)), int(rng.integers(1, 12))
    deep = bool(rng.integers(2))
    at = drawn.input([1, 3, inputs] if deep else [1, inputs])
    more, scale = drawn.weights([outputs, inputs], 0, at, inputs)
    keep = deep and bool(rng.integers(2))
    shape = [1, 3, outputs] if keep else [3 if deep else 1, outputs]
    result = drawn.tensor(shape, (scale, drawn.affine()[1]) if scale else None)
    fields: Fields = {0: ("b", int(rng.choice(ACTIVATIONS))), 2: ("B", int(keep))}
    if len(more) == 1:
        more.append(-1)
    return drawn.finish("FULLY_CONNECTED", [at, *more], result, 6 if kind != "uint8" else 5, fields)


def binary(rng: Rng, kind: str, *, name: str) -> bytes:
    drawn = Drawn(rng, kind)
    shape = [1, int(rng.integers(1, 5)), int(rng.integers(1, 5)), int(rng.integers(1, 9))]
    at = drawn.input(shape)
    form = int(rng.integers(4))
    other = at if form == 0 else drawn.constant([shape, [1, 1, 1, shape[3]], [shape[3]], [1, 1, 1, 1]][form])
    pair = [at, other] if rng.integers(2) else [other, at]
    scale = drawn.affine()
    if name == "MUL" and kind != "float32":
        steps = [drawn.net.tensors[each][4][1][2][1][0] for each in (at, other)]
        scale = ([float(np.float32(steps[0] * steps[1] * rng.uniform(20, 200)))], scale[1])
    result = drawn.tensor(shape, scale)
    fields: Fields = {0: ("b", int(rng.choice(ACTIVATIONS)))}
    return drawn.finish(name, pair, result, 2 if kind == "int8" else 1, fields)


def pool(rng: Rng, kind: str, *, name: str) -> bytes:
    drawn = Drawn(rng, kind)
    shape, window, step, padding = image(rng, most=4)
    scale = drawn.affine()
    at = drawn.input(shape, scale)
    if rng.integers(4) == 0:
        window, step, padding = (shape[1], shape[2]), (1, 1), 1
    reach = [(valid if padding else same)(*each, 1) for each in zip(shape[1:3], window, step, strict=True)]
    result = drawn.tensor([1, *reach, shape[3]], scale)
    fields: Fields = {0: ("b", padding), 1: ("i", step[1]), 2: ("i", step[0]), 3: ("i", window[1])}
    fields |= {4: ("i", window[0]), 5: ("b", int(rng.choice(ACTIVATIONS)))}
    return drawn.finish(name, [at], result, 2 if kind == "int8" else 1, fields)


def mean(rng: Rng, kind: str) -> bytes:
    drawn = Drawn(rng, kind)
    shape = [1, *(int(each) for each in rng.integers(1, 9, 3))]
    axes = [[1, 2], [2, 1], [1], [2], [3], [-1], [1, 2, 3], [1, 3]][int(rng.integers(8))]
    keep = bool(rng.integers(2))
    over = {axis % 4 for axis in axes}
    left = [1 if axis in over else side for axis, side in enumerate(shape) if keep or axis not in over]
    scale = drawn.affine()
    at = drawn.input(shape, scale)
    after = (
        scale
        if kind == "float32" or rng.integers(3) == 0
        else ([scale[0][0] * float(rng.uniform(0.3, 1.5))], drawn.affine()[1])
    )
    fields: Fields = {0: ("B", int(keep))}
    return drawn.finish(
        "MEAN", [at, drawn.integers(axes)], drawn.tensor(left, after), 2 if kind == "int8" else 1, fields
    )


def unary(rng: Rng, kind: str, *, name: str) -> bytes:
    drawn = Drawn(rng, kind)
    shape = [1, int(rng.integers(1, 4)), 256]
    at = drawn.input(shape)
    scale = drawn.affine()
    if kind != "float32" and name == "LOGISTIC":
        scale = ([1 / 256], [drawn.low])
    if kind != "float32" and name == "TANH":
        scale = ([1 / 128], [drawn.low + 128])
    if kind != "float32" and name == "HARD_SWISH":
        before = drawn.net.tensors[at][4][1][2][1][0]
        scale = ([float(np.float32(before * rng.uniform(0.5, 1.2)))], scale[1])
    version = {"int8": 2, "uint8": 1, "float32": 1}[kind] if name not in ("HARD_SWISH", "RELU_N1_TO_1") else 1
    return drawn.finish(name, [at], drawn.tensor(shape, scale), version)


def softmax(rng: Rng, kind: str) -> bytes:
    drawn = Drawn(rng, kind)
    shape = [1, int(rng.integers(2, 30))] if rng.integers(2) else [1, 3, int(rng.integers(2, 12))]
    at = drawn.input(shape)
    scale = ([], []) if kind == "float32" else ([1 / 256], [drawn.low])
    fields: Fields = {0: ("f", float(rng.choice([1.0, 0.5])))}
    return drawn.finish("SOFTMAX", [at], drawn.tensor(shape, scale), 2 if kind == "int8" else 1, fields)


def requantise(rng: Rng, kind: str) -> bytes:
    drawn, other = Drawn(rng, kind), Drawn(rng, str(rng.choice(["int8", "uint8"])))
    other.net = drawn.net
    at = drawn.input([1, 2, 256])
    scale = other.affine()
    if kind != "float32":
        before = drawn.net.tensors[at][4][1][2][1][0]
        scale = ([float(np.float32(before * rng.choice([1, rng.uniform(0.3, 3)])))], scale[1])
    return drawn.finish("QUANTIZE", [at], other.tensor([1, 2, 256], scale), 1)


def dequantise(rng: Rng, kind: str) -> bytes:
    drawn = Drawn(rng, kind)
    at = drawn.input([1, 2, 256])
    return drawn.finish("DEQUANTIZE", [at], drawn.net.tensor([1, 2, 256], "float32"), 2)


def pad(rng: Rng, kind: str) -> bytes:
    drawn = Drawn(rng, kind)
    shape = [1, *(int(each) for each in rng.integers(1, 5, 3))]
    sides = [0, 0, *(int(each) for each in rng.integers(0, 3, 6))]
    scale = drawn.affine()
    at = drawn.input(shape, scale)
    sizes = [side + sum(sides[2 * axis : 2 * axis + 2]) for axis, side in enumerate(shape)]
    table = drawn.net.tensor([4, 2], "int32", data=np.array(sides, "<i4"))
    return drawn.finish("PAD", [at, table], drawn.tensor(sizes, scale), 2 if kind == "int8" else 1, {})


def concatenation(rng: Rng, kind: str) -> bytes:
    drawn = Drawn(rng, kind)
    shape, axis = [1, *(int(each) for each in rng.integers(1, 5, 3))], int(rng.integers(1, 4))
    scale = drawn.affine()
    at = drawn.input(shape, scale)
    wider = [*shape]
    wider[axis] = int(rng.integers(1, 4))
    parts = [at, drawn.constant(wider, scale), at]
    total = [*shape]
    total[axis] = 2 * shape[axis] + wider[axis]
    fields: Fields = {0: ("i", axis - 4 * int(rng.integers(2))), 1: ("b", 0)}
    return drawn.finish("CONCATENATION", parts, drawn.tensor(total, scale), 2 if kind == "int8" else 1, fields)


def transpose(rng: Rng, kind: str) -> bytes:
    drawn = Drawn(rng, kind)
    shape = [1, *(int(each) for each in rng.integers(1, 6, 3))]
    order = [int(each) for each in rng.permutation(4)] if rng.integers(2) else [0, *(1 + rng.permutation(3)).tolist()]
    scale = drawn.affine()
    at = drawn.input(shape, scale)
    result = drawn.tensor([shape[axis] for axis in order], scale)
    return drawn.finish("TRANSPOSE", [at, drawn.integers(order)], result, 2 if kind == "int8" else 1, {})


def strided_slice(rng: Rng, kind: str) -> bytes:
    drawn = Drawn(rng, kind)
    shape = [1, *(int(each) for each in rng.integers(2, 8, 3))]
    starts, ends, steps, sizes, shrink = [0], [1], [1], [1], 0
    for axis, side in enumerate(shape[1:], 1):
        start, step = int(rng.integers(side)), int(rng.choice([1, 1, 2, -1]))
        end = int(rng.integers(start + 1, side + 1)) if step > 0 else -side - 1
        places = range(side)[slice(start, end, step)]
        if axis == 2 and rng.integers(3) == 0:
            shrink, step, end = 1 << axis, 1, start + 1
        else:
            sizes.append(len(places))
        starts.append(start - (side if rng.integers(3) == 0 else 0))
        ends.append(end)
        steps.append(step)
    scale = drawn.affine()
    at = drawn.input(shape, scale)
    places = [drawn.integers(each) for each in (starts, ends, steps)]
    fields: Fields = {0: ("i", 1), 1: ("i", 1), 4: ("i", shrink)}
    return drawn.finish("STRIDED_SLICE", [at, *places], drawn.tensor(sizes, scale), 2 if kind == "int8" else 1, fields)


def resize(rng: Rng, kind: str) -> bytes:
    drawn = Drawn(rng, kind)
    shape = [1, *(int(each) for each in rng.integers(1, 8, 3))]
    size = [int(each) for each in rng.integers(1, 12, 2)]
    scale = drawn.affine()
    at = drawn.input(shape, scale)
    how = int(rng.integers(3))
    fields: Fields = {0: ("B", int(how == 1)), 1: ("B", int(how == 2))}
    result = drawn.tensor([1, *size, shape[3]], scale)
    return drawn.finish("RESIZE_NEAREST_NEIGHBOR", [at, drawn.integers(size)], result, 3 if how else 2, fields)


def reshape(rng: Rng, kind: str) -> bytes:
    drawn = Drawn(rng, kind)
    scale = drawn.affine()
    at = drawn.input([1, 4, 3, 2], scale)
    shape = [[1, 24], [2, 12], [24], [1, 2, 1, 12], [4, 6]][int(rng.integers(5))]
    return drawn.finish("RESHAPE", [at, drawn.integers(shape)], drawn.tensor(shape, scale), 1, {0: ("vi", shape)})


BOTH, ALL = ("int8", "uint8"), ("int8", "uint8", "float32")
NETS: dict[str, tuple[tuple[str, ...], Callable[..., bytes], dict[str, Any]]] = {
    "CONV_2D": (ALL, conv, {"depthwise": False}),
    "DEPTHWISE_CONV_2D": (ALL, conv, {"depthwise": True}),
    "FULLY_CONNECTED": (ALL, dense, {}),
    **{name: (ALL, binary, {"name": name}) for name in ("ADD", "SUB", "MUL")},
    **{name: (ALL, pool, {"name": name}) for name in ("AVERAGE_POOL_2D", "MAX_POOL_2D")},
    "MEAN": (ALL, mean, {}),
    **{name: (ALL, unary, {"name": name}) for name in ("LOGISTIC", "TANH", "HARD_SWISH", "RELU", "RELU6")},
    "RELU_N1_TO_1": (("float32",), unary, {"name": "RELU_N1_TO_1"}),
    "SOFTMAX": (ALL, softmax, {}),
    "QUANTIZE": (ALL, requantise, {}),
    "DEQUANTIZE": (BOTH, dequantise, {}),
    "PAD": (ALL, pad, {}),
    "CONCATENATION": (ALL, concatenation, {}),
    "TRANSPOSE": (ALL, transpose, {}),
    "STRIDED_SLICE": (ALL, strided_slice, {}),
    "RESIZE_NEAREST_NEIGHBOR": (ALL, resize, {}),
    "RESHAPE": (ALL, reshape, {}),
}
