# SPDX-License-Identifier: Apache-2.0
"""The way back from a model's output through the dense layers that stand one behind the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from fl_tiny.errors import ModelError
from fl_tiny.learn.tflite import Graph, Model, Operator

PASSING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "MEAN", "QUANTIZE", "DEQUANTIZE")
ENDING = ("SOFTMAX", "LOGISTIC")


class Tail(str, Enum):
    """What the model does to the last dense layer's output: decides the loss, and how a class is chosen."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    LOGISTIC = "logistic"


@dataclass(frozen=True, slots=True)
class Link:
    """A dense layer and the int8 tensors that its output goes through unchanged before something else is done to it."""

    operator: Operator
    passes: tuple[int, ...]
    public: bool  # its codes are the model's output, or become codes of another type: their meaning must stay


@dataclass(frozen=True, slots=True)
class Trail:
    """Dense layers, last first, and why the way ends before more of them."""

    links: tuple[Link, ...]
    tail: Tail
    end: str


def follow(model: Model) -> Trail:
    """Walk from the output to the front as far as heads can be trained; ``end`` says what stops the walk."""
    links: list[Link] = []
    tail = Tail.LOGITS
    try:
        tensor = _start(model)
        passed: list[int] = []
        for _ in range(len(model.main.operators)):
            operator = _producer(model.main, tensor)
            source = operator.inputs[0]
            if operator.name == "FULLY_CONNECTED":
                links.append(_link(model.main, operator, passed, final=not links and tail is Tail.LOGITS))
                passed = []
            elif operator.name in ENDING and not links and tail is Tail.LOGITS:
                tail, passed = Tail(operator.name.lower()), []
            elif operator.name in PASSING:
                _check_size(model.main, operator)
                passed.append(tensor)
            else:
                raise ModelError(
                    f"{operator.name} stands before {'them' if links else 'the output'}, not a dense layer"
                )
            tensor = source
    except ModelError as stop:
        return Trail(tuple(links), tail, stop.what)
    return Trail(tuple(links), tail, "no more operators stand before it")


def _start(model: Model) -> int:
    if len(model.graphs) > 1 or any(tensor.variable for graph in model.graphs for tensor in graph.tensors):
        raise ModelError(
            f"the model is a streaming one ({len(model.graphs)} graphs, or variables): its head cannot be trained"
        )
    return model.output.index


def _producer(graph: Graph, tensor: int) -> Operator:
    for operator in graph.operators:
        if tensor in operator.outputs:
            if not operator.inputs or operator.inputs[0] < 0:
                raise ModelError(f"{operator.name} has no input")
            return operator
    raise ModelError("no more operators stand before it")


def _link(graph: Graph, operator: Operator, passed: list[int], *, final: bool) -> Link:
    result = operator.outputs[0]
    for index in (result, *passed):
        if sum(index in other.inputs for other in graph.operators) > 1:
            raise ModelError(f"tensor {index} behind a FULLY_CONNECTED is used in two places")
    kinds = {graph.tensors[index].dtype for index in passed} - {"int8", "float32"}
    output = graph.tensors[graph.outputs[0]]
    public = bool(kinds) or (final and output.dtype != "float32")
    return Link(operator, tuple(index for index in passed if graph.tensors[index].dtype == "int8"), public)


def _check_size(graph: Graph, operator: Operator) -> None:
    before, after = (graph.tensors[index].shape for index in (operator.inputs[0], operator.outputs[0]))
    if math.prod(before) != math.prod(after):
        raise ModelError(f"{operator.name} makes {list(after)} of {list(before)}, which cannot be trained through")
