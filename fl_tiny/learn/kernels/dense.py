# SPDX-License-Identifier: Apache-2.0
"""FULLY_CONNECTED: rows of codes times weights."""

from __future__ import annotations

import math

import numpy as np

from fl_tiny.learn.flatbuffer import I8, U8
from fl_tiny.learn.kernels.node import Array, Kernel, Node
from fl_tiny.learn.kernels.products import finish, read_weights


def fully_connected(node: Node) -> Kernel:
    """A kernel of FULLY_CONNECTED; all axes but the last are rows, unless a row is longer than the last axis."""
    source, weights = node.tensor(0), node.tensor(1)
    if len(weights.shape) != 2 or 0 in weights.shape:
        raise node.refuse(f"weights of shape {list(weights.shape)}")
    if node.number(1, I8):
        raise node.refuse("shuffled weights")
    outputs, inputs = weights.shape
    rows, rest = divmod(math.prod(source.shape), inputs)
    if rest or rows < 1:
        raise node.refuse(f"rows of {inputs} values from an input of {list(source.shape)}")
    kept = (*source.shape[:-1], outputs) if node.number(2, U8) else (rows, outputs)
    node.shape(kept)
    node.work(rows * inputs * outputs)
    read = read_weights(node, 0)
    matrix = np.ascontiguousarray(read.values.T)
    last = finish(node, read, matrix, 0, rows, away=source.dtype == "uint8")
    matrix = matrix.astype(last.kind)

    def run(x: Array) -> Array:
        products = x.reshape(-1, inputs).astype(last.kind) @ matrix
        return last.codes(products).reshape(-1, *kept[1:])

    return Kernel(run, (source.index,))
