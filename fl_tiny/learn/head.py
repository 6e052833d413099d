# SPDX-License-Identifier: Apache-2.0
"""The head of a model: its last layers, found, checked and described as what can be trained and patched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import ModelError
from fl_tiny.learn.layer import Dense, bias_scale, read_layer, spans
from fl_tiny.learn.loss import Loss, Task
from fl_tiny.learn.quant import Affine
from fl_tiny.learn.tflite import Model, Tensor
from fl_tiny.learn.trail import Link, Tail, follow

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class HeadSpec:
    """The trainable end of a model. Parameters are weights (out, in), then bias (out,) if any, first layer first.

    biases_only: the weights stay as they are in the file.
    """

    layers: tuple[Dense, ...]
    feature_tensor: int
    feature_shape: tuple[int, ...]  # with the batch axis
    tail: Tail
    task: Task = Task.CLASSES
    biases_only: bool = False

    @property
    def feature_size(self) -> int:
        """Feature codes a sample."""
        return self.layers[0].inputs

    @property
    def features(self) -> Affine:
        """What the feature codes mean."""
        return self.layers[0].input

    @property
    def outputs(self) -> int:
        """Numbers that the head gives a sample."""
        return self.layers[-1].outputs

    @property
    def classes(self) -> int:
        """Classes that it can tell apart; a single output tells two."""
        return 2 if self.outputs == 1 else self.outputs

    @property
    def loss(self) -> Loss:
        """What training makes small."""
        if self.task is Task.VALUES:
            return Loss.SQUARED
        return Loss.SIGMOID if self.tail is Tail.LOGISTIC or self.task is Task.LABELS else Loss.SOFTMAX

    @property
    def tensors(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the trained parameters in their order."""
        shapes: list[tuple[int, ...]] = []
        for layer in self.layers:
            if not self.biases_only:
                shapes.append(layer.weights.shape)
            if layer.bias is not None:
                shapes.append(layer.bias.shape)
        return tuple(shapes)

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(math.prod(shape) for shape in self.tensors)

    @property
    def ranges(self) -> int:
        """How many ranges of outputs a requantised head is given: one a layer."""
        return len(self.layers)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head that a model offers: what it would be, or why it cannot be trained."""

    layers: int
    parameters: int
    kinds: tuple[str, ...]
    feature_shape: tuple[int, ...] | None
    places: int  # vectors a sample that its first layer works on
    reason: str | None  # None: trainable

    @property
    def trainable(self) -> bool:
        """Can it be trained?"""
        return self.reason is None


def head_spec(model: Model, layers: int, *, task: Task | None = None, biases_only: bool = False) -> HeadSpec:
    """The last ``layers`` layers of ``model``. Raises: ModelError, saying why they cannot be trained.

    task: what its outputs are to be taught; None: classes, or a value where a single output is no probability.
    """
    assert layers >= 1
    trail = follow(model)
    if len(trail.links) < layers:
        found = f"the model ends in {len(trail.links)} dense layers: " if trail.links else ""
        raise ModelError(found + trail.end, hint="fl-tiny model inspect lists what can be trained")
    links = trail.links[:layers][::-1]
    found_layers = tuple(read_layer(model, link) for link in links)
    for link, layer, after in zip(links, found_layers[:-1], found_layers[1:], strict=False):
        if layer.outputs != after.inputs:
            raise ModelError(f"tensor {link.operator.outputs[0]} changes its size on the way to the next layer")
    last = found_layers[-1]
    if last.outputs != last.weights.shape[0]:
        raise ModelError(f"the last layer has outputs at {last.places} places, and nothing pools them")
    _check_exclusive(model, found_layers, links)
    if biases_only and any(layer.bias is None for layer in found_layers):
        raise ModelError("the biases alone cannot be trained: a layer has none")
    feature = model.main.tensors[links[0].operator.inputs[0]]
    single = last.outputs == 1 and trail.tail is not Tail.LOGISTIC
    chosen = task or (Task.VALUES if single else Task.CLASSES)
    _check_task(chosen, trail.tail, single=single)
    return HeadSpec(found_layers, feature.index, feature.shape, trail.tail, chosen, biases_only)


def candidates(model: Model) -> tuple[Candidate, ...]:
    """Heads of one, two, … layers, at least one entry; an untrainable one says why and ends the list."""
    found: list[Candidate] = []
    for layers in range(1, max(1, len(follow(model).links)) + 1):
        try:
            spec = head_spec(model, layers)
        except ModelError as fault:
            return (*found, Candidate(layers, 0, (), None, 0, fault.what))
        kinds = tuple(layer.kind for layer in spec.layers)
        found.append(Candidate(layers, spec.parameters, kinds, spec.feature_shape, spec.layers[0].places, None))
    return tuple(found)


def default_layers(model: Model) -> int:
    """Two layers where two on one vector a sample can be trained, else one. Raises: ModelError when none can."""
    offered = candidates(model)
    if not offered[0].trainable:
        raise ModelError(offered[0].reason or "", hint="fl-tiny model inspect lists what can be trained")
    return 2 if len(offered) > 1 and offered[1].trainable and offered[1].places == 1 else 1


def read_parameters(spec: HeadSpec) -> list[Array]:
    """All parameters as the file has them, in real units: weights, then bias if any, first layer first."""
    parameters: list[Array] = []
    for layer in spec.layers:
        parameters.append(layer.weights * layer.weight_scale[:, None])
        if layer.bias is not None:
            parameters.append(layer.bias.astype(np.float32) * bias_scale(layer.input, layer.weight_scale))
    return parameters


def trained_part(spec: HeadSpec, params: Sequence[Array]) -> list[Array]:
    """Those of all parameters that are trained, in the order of ``spec.tensors``."""
    return [each for each in params if each.ndim == 1 or not spec.biases_only]


def whole(spec: HeadSpec, part: Sequence[Array]) -> list[Array]:
    """All parameters, ``part`` being those that are trained; the others as the file has them."""
    if not spec.biases_only:
        return list(part)
    biases = iter(part)
    return [next(biases) if each.ndim == 1 else each for each in read_parameters(spec)]


def _check_task(task: Task, tail: Tail, *, single: bool) -> None:
    if task is Task.CLASSES and single:
        raise ModelError("the model has one output and no LOGISTIC: it tells no classes apart")
    if task is not Task.CLASSES and tail is Tail.SOFTMAX:
        raise ModelError(f"the model ends in SOFTMAX, which names one class a sample: {task.value} needs another end")
    if task is Task.VALUES and tail is Tail.LOGISTIC:
        raise ModelError("the model ends in LOGISTIC, which gives probabilities: regression needs another end")


def _check_exclusive(model: Model, layers: tuple[Dense, ...], links: tuple[Link, ...]) -> None:
    """Raises: ModelError when a patch of the head would change another tensor as well, or a number twice."""
    own: set[int] = set()
    for link in links:
        own.update(index for index in (*link.operator.inputs[1:], *link.tensors) if index >= 0)
    written = sorted(span for layer in layers for span in spans(layer))
    if any(after[0] < before[1] for before, after in pairwise(written)):
        raise ModelError("two tensors of the head share their bytes")
    for graph in model.graphs:
        for tensor in graph.tensors:
            if graph is model.main and tensor.index in own:
                continue
            for start, end in _tensor_spans(tensor):
                if any(start < high and low < end for low, high in written):
                    raise ModelError(f"tensor {tensor.index} shares bytes with the head")
    using = [operator for operator in model.main.operators if operator.name != "SHAPE"]
    users = [index for operator in using for index in operator.inputs if index in own]
    if len(users) != len(set(users)):
        raise ModelError("a tensor of the head is used twice")


def _tensor_spans(tensor: Tensor) -> list[tuple[int, int]]:
    found = [] if tensor.data is None else [(tensor.data.at, tensor.data.at + tensor.data.size)]
    if (scale := tensor.quantisation) is not None:
        found.append((scale.scale_at, scale.scale_at + 4 * len(scale.scale)))
        if scale.zero_point_at is not None:
            found.append((scale.zero_point_at, scale.zero_point_at + 8 * len(scale.scale)))
    return found
