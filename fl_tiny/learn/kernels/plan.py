# SPDX-License-Identifier: Apache-2.0
"""A model as a list of kernels in the order they run; what none can run is refused here, by name.

Operators that the output does not depend on are left out: a model cut at its features runs no head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fl_tiny.errors import ModelError
from fl_tiny.learn.kernels.activation import dequantize, quantize, relu, softmax, unary
from fl_tiny.learn.kernels.arithmetic import binary
from fl_tiny.learn.kernels.conv import conv_2d, depthwise_conv_2d
from fl_tiny.learn.kernels.dense import fully_connected
from fl_tiny.learn.kernels.node import HINT, MAX_VALUES, Array, Kernel, Node
from fl_tiny.learn.kernels.pool import mean, pool_2d
from fl_tiny.learn.kernels.rounding import Rule
from fl_tiny.learn.kernels.shape import (
    concatenation,
    pad,
    reshape,
    resize_nearest,
    strided_slice,
    transpose,
)
from fl_tiny.learn.tflite import Graph, Model, Operator, Tensor

ENDS = ("int8", "uint8", "float32")  # what goes in and comes out
STORED = {"float32": "<f4", "float16": "<f2", "int32": "<i4", "int64": "<i8", "uint8": "u1", "int8": "i1"}
MAX_LIVE = 4 * MAX_VALUES  # values held at once; guess
AT_ONCE = 1 << 18  # values of the largest array that samples share a run for, measured: more does not fit a cache
NEEDED = {"RESHAPE": 1, "SQUEEZE": 1, "EXPAND_DIMS": 1}  # inputs that count: the file says what shape comes out

BUILDERS: dict[str, tuple[Callable[[Node], Kernel], int]] = {  # and the newest version that means the same
    "ADD": (binary, 5),
    "AVERAGE_POOL_2D": (pool_2d, 3),
    "CONCATENATION": (concatenation, 4),
    "CONV_2D": (conv_2d, 8),
    "DEPTHWISE_CONV_2D": (depthwise_conv_2d, 7),
    "DEQUANTIZE": (dequantize, 6),
    "EXPAND_DIMS": (reshape, 1),
    "FULLY_CONNECTED": (fully_connected, 13),
    "HARD_SWISH": (unary, 1),
    "LOGISTIC": (unary, 3),
    "MAX_POOL_2D": (pool_2d, 3),
    "MEAN": (mean, 3),
    "MUL": (binary, 7),
    "PAD": (pad, 4),
    "PADV2": (pad, 4),
    "QUANTIZE": (quantize, 3),
    "RELU": (relu, 3),
    "RELU6": (relu, 3),
    "RELU_N1_TO_1": (relu, 1),
    "RESHAPE": (reshape, 1),
    "RESIZE_NEAREST_NEIGHBOR": (resize_nearest, 4),
    "SOFTMAX": (softmax, 3),
    "SQUEEZE": (reshape, 2),
    "STRIDED_SLICE": (strided_slice, 8),
    "SUB": (binary, 5),
    "TANH": (unary, 3),
    "TRANSPOSE": (transpose, 6),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel, the tensor it makes, and the tensors that nobody needs after it."""

    kernel: Kernel
    output: int
    frees: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole model, ready to run. ``at_once``: samples of one run, a multiple of the batch in the file."""

    steps: tuple[Step, ...]
    input: Tensor
    output: Tensor
    at_once: int

    def run(self, x: Array) -> Array:
        """x: (n, *input shape without batch) of the input's type.   Returns (n, outputs) of the output's type."""
        assert x.dtype == np.dtype(self.input.dtype), f"{x.dtype} for an input of {self.input.dtype}"
        batch = self.input.shape[0]
        values = math.prod(self.output.shape) // batch
        y = np.empty((len(x), values), self.output.dtype)
        for start in range(0, len(x), self.at_once):
            part = x[start : start + self.at_once].reshape(-1, *self.input.shape[1:])
            rows = len(part)
            if rows % batch:
                part = np.concatenate([part, np.zeros((batch - rows % batch, *part.shape[1:]), part.dtype)])
            with np.errstate(all="ignore"):  # real numbers may overflow or be none, as in any runtime
                y[start : start + rows] = self._once(part).reshape(-1, values)[:rows]
        return y

    def _once(self, x: Array) -> Array:
        arrays = {self.input.index: np.ascontiguousarray(x)}
        for step in self.steps:
            arrays[step.output] = step.kernel.run(*(arrays[index] for index in step.kernel.inputs))
            for index in step.frees:
                del arrays[index]
        return arrays[self.output.index]


def prepare(model: Model, rule: Rule) -> Plan:
    """The plan of ``model``. Raises: ModelError for what no kernel can run, naming the operator, and why."""
    graph = model.main
    if len(model.graphs) > 1 or any(tensor.variable for each in model.graphs for tensor in each.tensors):
        raise ModelError("numpy cannot run a model with several graphs or variables, a streaming one", HINT)
    source, result = model.input, model.output
    for end in (source, result):
        _check_end(end)
    constants: dict[int, Array] = {}
    kernels: list[tuple[Kernel, int]] = []
    known = {source.index}
    for operator in needed(graph, result.index):
        kernel = _kernel(model, operator, constants, rule)
        output = operator.outputs[0]
        if output in known or output in constants:
            raise ModelError(f"{operator.name} writes tensor {output}, which is there already")
        if not kernel.inputs or all(index in constants for index in kernel.inputs):
            constants[output] = kernel.run(*(constants[index] for index in kernel.inputs))
            continue
        if lost := [index for index in kernel.inputs if index not in known]:
            raise ModelError(f"{operator.name} reads tensor {lost[0]}, which nothing makes")
        known.add(output)
        kernels.append((kernel, output))
    if result.index not in known:
        raise ModelError("the model's output does not depend on its input")
    steps = _steps(kernels, result.index)
    _check_memory(graph, steps, source.index)
    return Plan(steps, source, result, _at_once(graph, kernels, source))


def needed(graph: Graph, output: int) -> list[Operator]:
    """The operators that ``output`` depends on, in the order they run. Raises: ModelError for one without output."""
    wanted, found = {output}, []
    for operator in reversed(graph.operators):
        if wanted.isdisjoint(operator.outputs):
            continue
        if len(operator.outputs) != 1 or not operator.inputs:
            raise ModelError(f"numpy cannot run {operator.name} with {len(operator.outputs)} outputs", HINT)
        wanted.update(operator.inputs[: NEEDED.get(operator.name, len(operator.inputs))])
        found.append(operator)
    return found[::-1]


def _kernel(model: Model, operator: Operator, constants: dict[int, Array], rule: Rule) -> Kernel:
    build, newest = BUILDERS.get(operator.name, (None, 0))
    if build is None:
        raise ModelError(f"numpy cannot run {operator.name}", HINT)
    if operator.version > newest:
        raise ModelError(f"numpy cannot run {operator.name} version {operator.version}", HINT)
    tensors = model.main.tensors
    for index in (*operator.inputs, operator.outputs[0]):
        if index >= 0:
            _check_shape(operator, tensors[index])
            if index not in constants and tensors[index].data is not None:
                constants[index] = _constant(model, operator, tensors[index])
    return build(Node(operator, tensors, constants, rule))


def _constant(model: Model, operator: Operator, tensor: Tensor) -> Array:
    data, stored = tensor.data, STORED.get(tensor.dtype)
    assert data is not None
    if stored is None or data.count != math.prod(tensor.shape) * np.dtype(stored).itemsize:
        raise ModelError(f"numpy cannot run {operator.name}: tensor {tensor.index} is sparse or {tensor.dtype}", HINT)
    values = np.frombuffer(model.data, stored, math.prod(tensor.shape), data.at).reshape(tensor.shape)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ModelError(f"numpy cannot run {operator.name}: tensor {tensor.index} holds what is no finite number")
    return values.astype(values.dtype.newbyteorder("="))


def _check_shape(operator: Operator, tensor: Tensor) -> None:
    if 0 in tensor.shape or math.prod(tensor.shape) > MAX_VALUES:
        raise ModelError(f"numpy cannot run {operator.name}: tensor {tensor.index} has shape {list(tensor.shape)}")


def _check_end(end: Tensor) -> None:
    if end.dtype not in ENDS or end.data is not None:
        raise ModelError(f"numpy cannot run a model with an end of {end.dtype}, or a constant one", HINT)
    if not end.shape or 0 in end.shape or math.prod(end.shape) > MAX_VALUES:
        raise ModelError(f"numpy cannot run a model with an end of shape {list(end.shape)}")


def _steps(kernels: list[tuple[Kernel, int]], output: int) -> tuple[Step, ...]:
    """Kernels with what can be freed after each."""
    last: dict[int, int] = {}
    for place, (kernel, made) in enumerate(kernels):
        last.setdefault(made, place)
        last.update(dict.fromkeys(kernel.inputs, place))
    last[output] = len(kernels)
    frees: list[list[int]] = [[] for _ in range(len(kernels) + 1)]
    for index, place in last.items():
        frees[place].append(index)
    return tuple(Step(kernel, made, tuple(frees[place])) for place, (kernel, made) in enumerate(kernels))


def _check_memory(graph: Graph, steps: tuple[Step, ...], source: int) -> None:
    sizes = [math.prod(tensor.shape) for tensor in graph.tensors]
    live = sizes[source]
    for step in steps:
        live += sizes[step.output]
        if live > MAX_LIVE:
            raise ModelError(f"numpy cannot run the model: it holds {live} values at once", HINT)
        live -= sum(sizes[index] for index in step.frees)


def _at_once(graph: Graph, kernels: list[tuple[Kernel, int]], source: Tensor) -> int:
    batch = source.shape[0]
    if any(kernel.single for kernel, _ in kernels):
        return batch
    sizes = [math.prod(graph.tensors[made].shape) for _, made in kernels]
    return batch * max(1, AT_ONCE // max(math.prod(source.shape), *sizes, 1))
