# SPDX-License-Identifier: Apache-2.0
"""The head of a model: its last dense layers, found, checked and described as what can be trained and patched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import ModelError
from fl_tiny.learn.flatbuffer import I8, U8
from fl_tiny.learn.quant import Affine
from fl_tiny.learn.tflite import Model, Operator, Quantisation, Tensor
from fl_tiny.learn.trail import Link, Tail, follow

Array = NDArray[np.float32]


class Activation(str, Enum):
    """What a dense layer applies to its own output; values are the names users see."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"


ACTIVATIONS = {0: Activation.NONE, 1: Activation.RELU, 3: Activation.RELU6}  # schema.fbs ActivationFunctionType


@dataclass(frozen=True, slots=True)
class Places:
    """Byte offsets in the file of all that changes when a layer is patched."""

    weights: int
    weight_scale: int
    bias: int | None
    bias_scale: int | None
    outputs: tuple[tuple[int, int], ...]  # (scale, zero point) of the layer's output and of what only passes it on


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """One dense layer as it stands in the file.

    weights: (out, in) int8.   bias: (out,) int32, real = code * input.scale * weight_scale, or None.
    weight_scale: (1,) or (out,) float32.
    """

    weights: NDArray[np.int8]
    bias: NDArray[np.int32] | None
    weight_scale: NDArray[np.float32]
    activation: Activation
    input: Affine
    output: Affine
    keep_output: bool  # the output's quantisation is public or nowhere in the file: it stays
    places: Places

    @property
    def kind(self) -> str:
        return "dense" if self.activation is Activation.NONE else f"dense {self.activation.value}"


@dataclass(frozen=True, slots=True, eq=False)
class HeadSpec:
    """The trainable end of a model. Parameters are weights (out, in), then bias (out,) if any, first layer first."""

    layers: tuple[Dense, ...]
    feature_tensor: int
    feature_shape: tuple[int, ...]  # with the batch axis
    tail: Tail

    @property
    def feature_size(self) -> int:
        return self.layers[0].weights.shape[1]

    @property
    def features(self) -> Affine:
        return self.layers[0].input

    @property
    def classes(self) -> int:
        outputs = self.layers[-1].weights.shape[0]
        return 2 if outputs == 1 else outputs

    @property
    def tensors(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parameters in their order."""
        shapes: list[tuple[int, ...]] = []
        for layer in self.layers:
            shapes.append(layer.weights.shape)
            if layer.bias is not None:
                shapes.append(layer.bias.shape)
        return tuple(shapes)

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.tensors)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A head that a model offers: what it would be, or why it cannot be trained."""

    layers: int
    parameters: int
    kinds: tuple[str, ...]
    feature_shape: tuple[int, ...] | None
    reason: str | None  # None: trainable

    @property
    def trainable(self) -> bool:
        return self.reason is None


def head_spec(model: Model, layers: int) -> HeadSpec:
    """The last ``layers`` dense layers of ``model``. Raises: ModelError, saying why they cannot be trained."""
    assert layers >= 1
    trail = follow(model)
    if len(trail.links) < layers:
        found = f"the model ends in {len(trail.links)} dense layers: " if trail.links else ""
        raise ModelError(found + trail.end, hint="fl-tiny model inspect lists what can be trained")
    links = trail.links[:layers][::-1]
    dense = tuple(_dense(model, link) for link in links)
    for link, layer, after in zip(links, dense[:-1], dense[1:], strict=False):
        if layer.weights.shape[0] != after.weights.shape[1]:
            raise ModelError(f"tensor {link.operator.outputs[0]} changes its size on the way to the next dense layer")
    if dense[-1].weights.shape[0] == 1 and trail.tail is not Tail.LOGISTIC:
        raise ModelError("the model has one output and no LOGISTIC: it tells no classes apart")
    _check_exclusive(model, dense, links)
    feature = model.main.tensors[links[0].operator.inputs[0]]
    return HeadSpec(dense, feature.index, feature.shape, trail.tail)


def candidates(model: Model) -> tuple[Candidate, ...]:
    """Heads of one, two, … layers, at least one entry; an untrainable one says why and ends the list."""
    found: list[Candidate] = []
    for layers in range(1, max(1, len(follow(model).links)) + 1):
        try:
            spec = head_spec(model, layers)
        except ModelError as fault:
            return (*found, Candidate(layers, 0, (), None, fault.what))
        kinds = tuple(layer.kind for layer in spec.layers)
        found.append(Candidate(layers, spec.parameters, kinds, spec.feature_shape, None))
    return tuple(found)


def default_layers(model: Model) -> int:
    """Two dense layers where two can be trained, else one. Raises: ModelError when none can."""
    offered = candidates(model)
    if not offered[0].trainable:
        raise ModelError(offered[0].reason or "", hint="fl-tiny model inspect lists what can be trained")
    return 2 if len(offered) > 1 and offered[1].trainable else 1


def read_parameters(spec: HeadSpec) -> list[Array]:
    """The parameters as the file has them, in real units, in the order of ``spec.tensors``."""
    parameters: list[Array] = []
    for layer in spec.layers:
        parameters.append(layer.weights * layer.weight_scale[:, None])
        if layer.bias is not None:
            parameters.append(layer.bias.astype(np.float32) * bias_scale(layer.input, layer.weight_scale))
    return parameters


def bias_scale(source: Affine, weight_scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """What one step of a bias is worth: an interpreter adds it to products of input and weight codes."""
    return np.float32(source.scale) * weight_scale


def _dense(model: Model, link: Link) -> Dense:
    operator, tensors = link.operator, model.main.tensors
    activation = _options(operator)
    if len(operator.inputs) < 2 or min(operator.inputs[:2]) < 0 or len(operator.outputs) != 1:
        raise ModelError("a FULLY_CONNECTED has no input, weights or output")
    source, weights, result = tensors[operator.inputs[0]], tensors[operator.inputs[1]], tensors[operator.outputs[0]]
    bias = tensors[operator.inputs[2]] if len(operator.inputs) > 2 and operator.inputs[2] >= 0 else None
    _check_types(operator, source, weights, bias, result)
    outputs = tuple(tensors[index] for index in (result.index, *link.passes))
    inside, outside = _affine(source), _affine(result)
    scale = _weight_quantisation(weights)
    places = tuple(
        (each.quantisation.scale_at, each.quantisation.zero_point_at)
        for each in outputs
        if each.quantisation and each.quantisation.zero_point_at is not None
    )
    kept = link.public or len(places) < len(outputs)
    bias_scale_at = bias.quantisation.scale_at if bias and bias.quantisation else None
    return Dense(
        weights=np.frombuffer(model.data, np.int8, math.prod(weights.shape), _at(weights)).reshape(weights.shape),
        bias=None if bias is None else np.frombuffer(model.data, "<i4", weights.shape[0], _at(bias)),
        weight_scale=np.array(scale.scale, np.float32),
        activation=activation,
        input=inside,
        output=outside,
        keep_output=kept,
        places=Places(
            weights=_at(weights),
            weight_scale=scale.scale_at,
            bias=None if bias is None else _at(bias),
            bias_scale=bias_scale_at,
            outputs=() if kept else places,
        ),
    )


def _options(operator: Operator) -> Activation:
    options = operator.options
    code, layout, keep = (0, 0, 0) if options is None else (options.number(n, I8 if n < 2 else U8) for n in range(3))
    if operator.version >= 12:
        raise ModelError(
            f"FULLY_CONNECTED version {operator.version} is a dynamic-range layer of TensorFlow 2.19 or later",
            hint="convert the model with full int8 quantisation",
        )
    if code not in ACTIVATIONS:
        raise ModelError(f"a FULLY_CONNECTED has activation code {code}; none, RELU and RELU6 can be trained")
    if layout or keep:
        raise ModelError("a FULLY_CONNECTED has shuffled weights or keeps its dimensions")
    return ACTIVATIONS[code]


def _check_types(operator: Operator, source: Tensor, weights: Tensor, bias: Tensor | None, result: Tensor) -> None:
    """Raises: ModelError unless this is an int8 layer over one vector a sample, its numbers in the file."""
    kinds = [source.dtype, weights.dtype, result.dtype] + ([bias.dtype] if bias else [])
    if kinds[:3] != ["int8"] * 3 or kinds[3:] not in ([], ["int32"]):
        raise ModelError(
            f"a FULLY_CONNECTED works on {', '.join(kinds)}; int8 with an int32 bias can be trained",
            hint="convert the model with full int8 quantisation",
        )
    if weights.data is None or (bias is not None and bias.data is None):
        raise ModelError("a FULLY_CONNECTED computes its weights or bias instead of keeping them in the file")
    if len(weights.shape) != 2 or 0 in weights.shape or (bias and math.prod(bias.shape) != weights.shape[0]):
        raise ModelError(f"a FULLY_CONNECTED has weights of shape {list(weights.shape)} and a bias that does not fit")
    outputs, inputs = weights.shape
    batch = source.shape[0] if source.shape else 0
    if math.prod(source.shape) != batch * inputs or math.prod(result.shape) != batch * outputs:
        raise ModelError(f"a FULLY_CONNECTED works on several places of {list(source.shape)}, not on one vector")


def _weight_quantisation(weights: Tensor) -> Quantisation:
    scale = weights.quantisation
    if scale is None or any(scale.zero_point) or min(scale.scale) <= 0:
        raise ModelError("a FULLY_CONNECTED has weights without a scale, or with a zero point other than 0")
    if len(scale.scale) > 1 and scale.axis != 0:
        raise ModelError(f"a FULLY_CONNECTED has weight scales along axis {scale.axis} instead of its outputs")
    return scale


def _affine(tensor: Tensor) -> Affine:
    scale = tensor.quantisation
    if scale is None or len(scale.scale) != 1 or scale.scale[0] <= 0 or not -128 <= scale.zero_point[0] <= 127:
        raise ModelError(f"tensor {tensor.index} has no int8 scale and zero point")
    return Affine(scale.scale[0], scale.zero_point[0])


def _at(tensor: Tensor) -> int:
    assert tensor.data is not None
    return tensor.data.at


def _check_exclusive(model: Model, dense: tuple[Dense, ...], links: tuple[Link, ...]) -> None:
    """Raises: ModelError when a patch of the head would change another tensor as well, or a number twice."""
    own: set[int] = set()
    for link in links:
        own.update(index for index in (*link.operator.inputs[1:], link.operator.outputs[0], *link.passes) if index >= 0)
    spans = sorted(span for layer in dense for span in _spans(layer))
    if any(after[0] < before[1] for before, after in pairwise(spans)):
        raise ModelError("two tensors of the head share their bytes")
    for graph in model.graphs:
        for tensor in graph.tensors:
            if graph is model.main and tensor.index in own:
                continue
            for start, end in _tensor_spans(tensor):
                if any(start < high and low < end for low, high in spans):
                    raise ModelError(f"tensor {tensor.index} shares bytes with the head")
    users = [index for operator in model.main.operators for index in operator.inputs if index in own]
    if len(users) != len(set(users)):
        raise ModelError("a tensor of the head is used twice")


def _spans(layer: Dense) -> list[tuple[int, int]]:
    places, scales = layer.places, 4 * len(layer.weight_scale)
    spans = [(places.weights, places.weights + layer.weights.size)]
    spans.append((places.weight_scale, places.weight_scale + scales))
    if places.bias is not None and layer.bias is not None:
        spans.append((places.bias, places.bias + 4 * layer.bias.size))
    if places.bias_scale is not None:
        spans.append((places.bias_scale, places.bias_scale + scales))
    for scale_at, point_at in places.outputs:
        spans += [(scale_at, scale_at + 4), (point_at, point_at + 8)]
    return spans


def _tensor_spans(tensor: Tensor) -> list[tuple[int, int]]:
    spans = [] if tensor.data is None else [(tensor.data.at, tensor.data.at + tensor.data.size)]
    if (scale := tensor.quantisation) is not None:
        spans.append((scale.scale_at, scale.scale_at + 4 * len(scale.scale)))
        if scale.zero_point_at is not None:
            spans.append((scale.zero_point_at, scale.zero_point_at + 8 * len(scale.scale)))
    return spans
