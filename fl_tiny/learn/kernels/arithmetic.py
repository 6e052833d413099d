# SPDX-License-Identifier: Apache-2.0
"""ADD, SUB and MUL of two tensors: of 8-bit codes, the result is looked up in a table of all 65,536 pairs.

The table is made once by plain integer arithmetic, so no trick can be wrong; at run time a pair is one look-up.
"""

from __future__ import annotations

import math

import numpy as np

from fl_tiny.learn.kernels.activation import all_codes, to_codes
from fl_tiny.learn.kernels.node import CODES, Array, Kernel, Node, clip_range
from fl_tiny.learn.kernels.rounding import Rule, fixed_product
from fl_tiny.learn.quant import Affine

F32 = np.float32
FINE = 20  # bits that sums are shifted left before they are scaled; tensorflow/lite/kernels/add.cc
SLOT = {"ADD": 0, "SUB": 0, "MUL": 0}  # the options' field of the activation
FLOAT: dict[str, np.ufunc] = {"ADD": np.add, "SUB": np.subtract, "MUL": np.multiply}


def binary(node: Node) -> Kernel:
    """A kernel of ADD, SUB and MUL; a smaller tensor is repeated along its axes of one."""
    kind = node.kinds(*CODES, "float32", inputs=2)
    name, kept = node.operator.name, node.activation(SLOT[node.operator.name])
    first, second = node.tensor(0), node.tensor(1)
    try:
        node.shape(np.broadcast_shapes(first.shape, second.shape))
    except ValueError as clash:
        raise node.refuse(f"shapes {list(first.shape)} and {list(second.shape)}") from clash
    given = [node.constants.get(each.index) for each in (first, second)]
    inputs = tuple(each.index for each, values in zip((first, second), given, strict=True) if values is None)
    if kind == "float32":
        low, high = F32(kept[0]), F32(kept[1])

        def run(*arrays: Array) -> Array:
            a, b = _both(given, arrays)
            values: Array = FLOAT[name](a, b)
            return values if kept[0] == -math.inf else np.clip(values, low, high)

        return Kernel(run, inputs, _single(node))
    scales = node.affine(first), node.affine(second), node.affine(node.output)
    pairs = _sums(node, *scales, kind) if name != "MUL" else _products(node, *scales, kind)
    low_code, high_code = clip_range(scales[2], kind, kept)
    table = to_codes(np.clip(pairs + scales[2].zero_point, low_code, high_code), kind).reshape(-1)

    def run_codes(*arrays: Array) -> Array:
        a, b = _both(given, arrays)
        places = a.view(np.uint8).astype(np.intp)
        places <<= 8
        found: Array = table[places | b.view(np.uint8)]
        return found

    return Kernel(run_codes, inputs, _single(node))


def _both(given: list[Array | None], arrays: tuple[Array, ...]) -> list[Array]:
    """Constants in their places, arrays that are computed in the others."""
    computed = iter(arrays)
    return [next(computed) if values is None else values for values in given]


def _single(node: Node) -> bool:
    """Whether the first axes do not line up, so that only one batch at a time can be right."""
    rank = len(node.output.shape)
    for place in (0, 1):
        shape = node.tensor(place).shape
        if node.is_constant(place):
            if len(shape) == rank and rank and shape[0] != 1:
                return True
        elif len(shape) != rank or shape[:1] != node.output.shape[:1]:
            return True
    return rank == 0


def _pairs(kind: str, first: Affine, second: Affine) -> tuple[Array, Array]:
    """All codes less their zero points: (256, 1) of the first tensor, (1, 256) of the second."""
    codes = all_codes(kind)
    return (codes - first.zero_point)[:, None], (codes - second.zero_point)[None]


def _sums(node: Node, first: Affine, second: Affine, result: Affine, kind: str) -> Array:
    """(256, 256) sums or differences in steps of the output.

    Source: tensorflow/lite/kernels/add.cc and sub.cc; XNNPACK src/microparams-init.c, xnn_init_qs8_add_minmax_params.
    """
    a, b = _pairs(kind, first, second)
    sign = -1 if node.operator.name == "SUB" else 1
    if node.rule is Rule.LITERT:
        left, right = (F32(each.scale) / F32(result.scale) for each in (first, second))
        shift = FINE - (math.frexp(float(max(left, right)))[1] - 1)
        if not 0 < shift < 31:
            raise node.refuse("its scales are too far apart")
        weights = [int(np.rint(np.float64(each) * 2.0**shift)) for each in (left, right)]
        return (a * weights[0] + sign * b * weights[1] + (1 << (shift - 1))) >> shift
    twice = 2 * max(first.scale, second.scale)
    parts = [fixed_product(codes << FINE, each.scale / twice, away=True) for codes, each in ((a, first), (b, second))]
    return fixed_product(parts[0] + sign * parts[1], twice / (2**FINE * result.scale), away=True)


def _products(node: Node, first: Affine, second: Affine, result: Affine, kind: str) -> Array:
    """(256, 256) products in steps of the output. Source: tensorflow/lite/kernels/mul.cc; XNNPACK's qs8-vmul."""
    a, b = _pairs(kind, first, second)
    scale = F32(first.scale) * F32(second.scale) / F32(result.scale)
    if node.rule is Rule.LITERT:
        rounded: Array = np.rint((a * b).astype(F32) * scale).astype(np.int64)
        return rounded
    return fixed_product(a * b, float(scale), away=True)
