# SPDX-License-Identifier: Apache-2.0
"""The way back from a model's output through the layers that stand one behind the other, and what is between them."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import Enum

from fl_tiny.errors import ModelError
from fl_tiny.learn.flatbuffer import I8, I32
from fl_tiny.learn.tflite import Graph, Model, Operator, Tensor

LAYERS = ("FULLY_CONNECTED", "CONV_2D")
RESHAPING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "QUANTIZE", "DEQUANTIZE")
ENDING = ("SOFTMAX", "LOGISTIC")


class Tail(str, Enum):
    """What the model does to the last layer's output: decides the loss, and how a class is chosen."""

    LOGITS = "logits"
    SOFTMAX = "softmax"
    LOGISTIC = "logistic"


class Step(str, Enum):
    """What an operator behind a layer does to its output."""

    PASS = "pass"  # noqa: S105 - another shape or type, the same numbers
    RELU = "relu"
    RELU6 = "relu6"
    TANH = "tanh"
    MEAN = "mean"  # over all places, into codes of another scale
    AVERAGE = "average"  # over all places, into codes of the same scale


BENDS = {"RELU": Step.RELU, "RELU6": Step.RELU6, "TANH": Step.TANH}


@dataclass(frozen=True, slots=True)
class Stage:
    """One operator behind a layer, and the tensor it makes."""

    step: Step
    tensor: int


@dataclass(frozen=True, slots=True)
class Link:
    """A layer and the operators between it and the next layer, in the order they run."""

    operator: Operator
    stages: tuple[Stage, ...]
    public: bool  # the last codes are the model's output, or become codes of another type: their meaning must stay

    @property
    def tensors(self) -> tuple[int, ...]:
        """The tensors that carry the layer's output."""
        return (self.operator.outputs[0], *(stage.tensor for stage in self.stages))


@dataclass(frozen=True, slots=True)
class Trail:
    """Layers, last first, and why the way ends before more of them."""

    links: tuple[Link, ...]
    tail: Tail
    end: str


def follow(model: Model) -> Trail:
    """Walk from the output to the front as far as heads can be trained; ``end`` says what stops the walk."""
    links: list[Link] = []
    tail = Tail.LOGITS
    try:
        tensor = _start(model)
        behind: list[Stage] = []
        for _ in range(len(model.main.operators)):
            operator = _producer(model.main, tensor)
            if operator.name in LAYERS:
                links.append(_link(model.main, operator, behind[::-1], final=not links and tail is Tail.LOGITS))
                behind = []
            elif operator.name in ENDING and not links and tail is Tail.LOGITS:
                tail, behind = Tail(operator.name.lower()), []
            else:
                behind.append(Stage(_step(model, operator, first=not links), tensor))
            tensor = operator.inputs[0]
    except ModelError as stop:
        return Trail(tuple(links), tail, stop.what)
    return Trail(tuple(links), tail, "no more operators stand before it")


def tail_of(model: Model) -> list[str]:
    """The operators from the first layer that can be reached on the way back, to the output; none when none can."""
    links, operators = follow(model).links, model.main.operators
    return [operator.name for operator in operators[operators.index(links[-1].operator) :]] if links else []


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


def _step(model: Model, operator: Operator, *, first: bool) -> Step:
    """What ``operator`` does to the numbers it is given. Raises: ModelError when none of ``Step``."""
    source, result = (model.main.tensors[index] for index in (operator.inputs[0], operator.outputs[0]))
    same = math.prod(source.shape) == math.prod(result.shape)
    if operator.name in RESHAPING or (operator.name in ("MEAN", "AVERAGE_POOL_2D") and same):
        if not same:
            raise _untrainable(operator, source, result)
        return Step.PASS
    if operator.name in BENDS:
        return BENDS[operator.name]
    if operator.name == "MEAN" and _means_all_places(model, operator, source, result):
        return Step.MEAN
    if operator.name == "AVERAGE_POOL_2D" and _covers_all_places(operator, source, result):
        return Step.AVERAGE
    if operator.name in ("MEAN", "AVERAGE_POOL_2D"):
        raise _untrainable(operator, source, result)
    raise ModelError(f"{operator.name} stands before {'the output' if first else 'them'}, not a dense layer")


def _untrainable(operator: Operator, source: Tensor, result: Tensor) -> ModelError:
    return ModelError(f"{operator.name} makes {list(result.shape)} of {list(source.shape)}, which cannot be trained")


def _means_all_places(model: Model, operator: Operator, source: Tensor, result: Tensor) -> bool:
    """Does a MEAN keep the batch and the last axis, and nothing else?"""
    axes = model.main.tensors[operator.inputs[1]] if len(operator.inputs) > 1 and operator.inputs[1] >= 0 else None
    rank = len(source.shape)
    if axes is None or axes.data is None or axes.dtype != "int32" or axes.data.size < 4 * math.prod(axes.shape):
        return False
    found = struct.unpack_from(f"<{math.prod(axes.shape)}i", model.data, axes.data.at)
    kept = math.prod(result.shape) == source.shape[0] * source.shape[-1] if rank else False
    return kept and sorted(axis % rank for axis in found) == list(range(1, rank - 1))


def _covers_all_places(operator: Operator, source: Tensor, result: Tensor) -> bool:
    """Does an average pool have a window as large as the image, and so one place of output without padding?"""
    options = operator.options
    if options is None or len(source.shape) != 4 or math.prod(result.shape) != source.shape[0] * source.shape[3]:
        return False
    window = options.number(4, I32), options.number(3, I32)
    return window == source.shape[1:3] and options.number(5, I8) == 0  # no activation of its own


def _link(graph: Graph, operator: Operator, stages: list[Stage], *, final: bool) -> Link:
    for index in (operator.outputs[0], *(stage.tensor for stage in stages)):
        if sum(index in other.inputs for other in graph.operators if other.name != "SHAPE") > 1:
            raise ModelError(f"tensor {index} behind a {operator.name} is used in two places")
    kinds = {graph.tensors[stage.tensor].dtype for stage in stages} - {"int8", "float32"}
    output = graph.tensors[graph.outputs[0]]
    return Link(operator, tuple(stages), bool(kinds) or (final and output.dtype != "float32"))
