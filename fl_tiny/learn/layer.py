# SPDX-License-Identifier: Apache-2.0
"""One layer of a head as it stands in the file: its numbers, the places they lie at, and what is done to its output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import ModelError
from fl_tiny.learn.flatbuffer import I8, I32, U8
from fl_tiny.learn.quant import Affine
from fl_tiny.learn.tflite import Model, Operator, Quantisation, Tensor
from fl_tiny.learn.trail import Link, Stage, Step


class Activation(str, Enum):
    """What a layer applies to its own output; values are the names users see."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"
    TANH = "tanh"


FUSED = {0: Activation.NONE, 1: Activation.RELU, 3: Activation.RELU6}  # schema.fbs ActivationFunctionType
Places = tuple[tuple[int, int], ...]  # byte offsets of (scale, zero point) of tensors that share them


@dataclass(frozen=True, slots=True)
class Patches:
    """Byte offsets in the file of all that changes when a layer is patched."""

    weights: int
    weight_scale: int
    bias: int | None
    bias_scale: int | None
    outputs: Places  # of the layer's output and of what only passes it on; empty: it keeps its codes
    pooled: Places  # the same behind a MEAN


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """One dense layer, or 1x1 convolution, as it stands in the file.

    weights: (out, in) int8.   bias: (out,) int32, real = code * input.scale * weight_scale, or None.
    weight_scale: (1,) or (out,) float32.   places: vectors a sample that the layer works on, one by one.
    output: codes of the product.   bent: codes behind a TANH; they keep their meaning.   pooled: codes behind a MEAN
    over all places; behind an AVERAGE they are those before it.
    """

    weights: NDArray[np.int8]
    bias: NDArray[np.int32] | None
    weight_scale: NDArray[np.float32]
    activation: Activation
    input: Affine
    output: Affine
    bent: Affine | None
    pool: Step | None
    pooled: Affine | None
    places: int
    convolution: bool
    patches: Patches

    @property
    def kind(self) -> str:
        """The layer as users read it, such as ``dense relu`` or ``conv pooled``."""
        words = ["conv" if self.convolution else "dense"]
        words += [] if self.activation is Activation.NONE else [self.activation.value]
        return " ".join(words + ([] if self.pool is None else ["pooled"]))

    @property
    def result(self) -> Affine:
        """The codes that leave the layer."""
        return self.pooled or self.bent or self.output

    @property
    def inputs(self) -> int:
        """Numbers a sample that go into it."""
        return self.places * self.weights.shape[1]

    @property
    def outputs(self) -> int:
        """Numbers a sample that leave it."""
        return (1 if self.pool else self.places) * self.weights.shape[0]

    @property
    def keeps_output(self) -> bool:
        """Is the output's quantisation public, or nowhere in the file? Then it stays as it is."""
        return not self.patches.outputs


def read_layer(model: Model, link: Link) -> Dense:
    """The layer of ``link``. Raises: ModelError, saying why it cannot be trained."""
    operator, tensors = link.operator, model.main.tensors
    if len(operator.inputs) < 2 or min(operator.inputs[:2]) < 0 or len(operator.outputs) != 1:
        raise ModelError(f"a {operator.name} has no input, weights or output")
    source, weights, result = tensors[operator.inputs[0]], tensors[operator.inputs[1]], tensors[operator.outputs[0]]
    bias = tensors[operator.inputs[2]] if len(operator.inputs) > 2 and operator.inputs[2] >= 0 else None
    activation = _fused(operator)
    _check_types(operator, source, weights, bias, result)
    inside, outside, scale = _affine(source), _affine(result), _weight_quantisation(operator, weights)
    behind = _behind(model, link, activation)
    outputs, inputs = weights.shape[0], weights.shape[-1]
    return Dense(
        weights=np.frombuffer(model.data, np.int8, outputs * inputs, _at(weights)).reshape(outputs, inputs),
        bias=None if bias is None else np.frombuffer(model.data, "<i4", outputs, _at(bias)),
        weight_scale=np.array(scale.scale, np.float32),
        activation=behind.activation,
        input=inside,
        output=outside,
        bent=behind.bent,
        pool=behind.pool,
        pooled=behind.pooled,
        places=math.prod(source.shape) // (source.shape[0] * inputs),
        convolution=operator.name == "CONV_2D",
        patches=Patches(
            weights=_at(weights),
            weight_scale=scale.scale_at,
            bias=None if bias is None else _at(bias),
            bias_scale=bias.quantisation.scale_at if bias and bias.quantisation else None,
            outputs=behind.output_places,
            pooled=behind.pooled_places,
        ),
    )


def bias_scale(source: Affine, weight_scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """What one step of a bias is worth: an interpreter adds it to products of input and weight codes."""
    return np.float32(source.scale) * weight_scale


def spans(layer: Dense) -> list[tuple[int, int]]:
    """Where in the file a patch of ``layer`` writes: start and end of each run of bytes."""
    patches, scales = layer.patches, 4 * len(layer.weight_scale)
    found = [(patches.weights, patches.weights + layer.weights.size)]
    found.append((patches.weight_scale, patches.weight_scale + scales))
    if patches.bias is not None and layer.bias is not None:
        found.append((patches.bias, patches.bias + 4 * layer.bias.size))
    if patches.bias_scale is not None:
        found.append((patches.bias_scale, patches.bias_scale + scales))
    for scale_at, point_at in patches.outputs + patches.pooled:
        found += [(scale_at, scale_at + 4), (point_at, point_at + 8)]
    return found


@dataclass(frozen=True, slots=True)
class _Behind:
    """What the operators behind a layer come to."""

    activation: Activation
    bent: Affine | None
    pool: Step | None
    pooled: Affine | None
    output_places: Places
    pooled_places: Places


def _behind(model: Model, link: Link, activation: Activation) -> _Behind:
    """Read the stages behind a layer in order. Raises: ModelError for an order that cannot be trained."""
    tensors, own = model.main.tensors, [link.operator.outputs[0]]
    groups: list[list[int]] = [own]  # tensors of one quantisation; the last group is what leaves the layer
    bent = pooled = pool = None
    for stage in link.stages:
        tensor = tensors[stage.tensor]
        if stage.step is Step.TANH:
            bent, activation = _bent(tensor, activation, pool), Activation.TANH
            groups.append([stage.tensor])
        elif stage.step in (Step.MEAN, Step.AVERAGE):
            if pool is not None or tensor.dtype != "int8":
                raise ModelError(f"tensor {stage.tensor} is pooled twice, or not as int8")
            pool = stage.step
            if pool is Step.MEAN:
                pooled = _affine(tensor)
                groups.append([])
            groups[-1].append(stage.tensor)
        else:
            activation = _bend(stage, activation, late=pool is not None or bent is not None)
            if tensor.dtype == "int8":
                groups[-1].append(stage.tensor)
    public = link.public and bent is None
    places = [_places(tensors, group) for group in groups]
    fixed = [False] * (len(groups) - 1) + [public]
    moving = [() if kept else each for kept, each in zip(fixed, places, strict=True)]
    own_scale = pooled is not None and bent is None
    return _Behind(activation, bent, pool, pooled, moving[0], moving[-1] if own_scale else ())


def _bent(tensor: Tensor, activation: Activation, pool: Step | None) -> Affine:
    if activation is not Activation.NONE or pool is not None or tensor.dtype != "int8":
        raise ModelError("a TANH stands behind another activation or a pool, or is not int8")
    return _affine(tensor)


def _bend(stage: Stage, activation: Activation, *, late: bool) -> Activation:
    """The activation with a RELU or RELU6 behind it; what only passes the numbers on leaves it."""
    if stage.step is Step.PASS:
        return activation
    wanted = Activation(stage.step.value)
    if late or activation not in (Activation.NONE, wanted):
        raise ModelError(f"a {wanted.value.upper()} stands behind another activation or a pool")
    return wanted


def _places(tensors: tuple[Tensor, ...], group: list[int]) -> Places:
    """Where the group's scales and zero points lie; none when one of them is nowhere, so that all stay."""
    scales = [tensors[index].quantisation for index in group]
    found = [(each.scale_at, each.zero_point_at) for each in scales if each and each.zero_point_at is not None]
    return tuple((scale, point) for scale, point in found if point is not None) if len(found) == len(group) else ()


def _fused(operator: Operator) -> Activation:
    """The activation that the operator itself applies. Raises: ModelError for options that cannot be trained."""
    options = operator.options
    if operator.name == "CONV_2D":
        steps = (1, 1) if options is None else (options.number(1, I32), options.number(2, I32))
        if steps != (1, 1):
            raise ModelError(f"a CONV_2D has strides of {list(steps)}; 1x1 convolutions of every place can be trained")
        code = 0 if options is None else options.number(3, I8)
    else:
        code, layout = (0, 0) if options is None else (options.number(n, I8) for n in range(2))
        if operator.version >= 12:
            raise ModelError(
                f"FULLY_CONNECTED version {operator.version} is a dynamic-range layer of TensorFlow 2.19 or later",
                hint="convert the model with full int8 quantisation",
            )
        if layout or (options is not None and options.number(2, U8) > 1):
            raise ModelError("a FULLY_CONNECTED has shuffled weights")
    if code not in FUSED:
        raise ModelError(f"a {operator.name} has activation code {code}; none, RELU and RELU6 can be trained")
    return FUSED[code]


def _check_types(operator: Operator, source: Tensor, weights: Tensor, bias: Tensor | None, result: Tensor) -> None:
    """Raises: ModelError unless this is an int8 layer over whole vectors, its numbers in the file."""
    name, kinds = operator.name, [source.dtype, weights.dtype, result.dtype] + ([bias.dtype] if bias else [])
    if kinds[:3] != ["int8"] * 3 or kinds[3:] not in ([], ["int32"]):
        raise ModelError(
            f"a {name} works on {', '.join(kinds)}; int8 with an int32 bias can be trained",
            hint="convert the model with full int8 quantisation",
        )
    if weights.data is None or (bias is not None and bias.data is None):
        raise ModelError(f"a {name} computes its weights or bias instead of keeping them in the file")
    shape = list(weights.shape)
    rank = 4 if name == "CONV_2D" else 2
    if len(shape) != rank or 0 in shape or (bias and math.prod(bias.shape) != shape[0]):
        raise ModelError(f"a {name} has weights of shape {shape} and a bias that does not fit")
    if name == "CONV_2D" and shape[1:3] != [1, 1]:
        raise ModelError(f"a CONV_2D has a {shape[1]}x{shape[2]} filter; 1x1 convolutions can be trained")
    batch = source.shape[0] if source.shape else 0
    vectors = math.prod(source.shape) // shape[-1]
    whole = batch > 0 and vectors % batch == 0 and vectors * shape[-1] == math.prod(source.shape)
    if not whole or math.prod(result.shape) != vectors * shape[0] or (rank == 4 and source.shape[-1] != shape[-1]):
        raise ModelError(f"a {name} works on {list(source.shape)}, which its weights {shape} do not fit")


def _weight_quantisation(operator: Operator, weights: Tensor) -> Quantisation:
    scale = weights.quantisation
    if scale is None or any(scale.zero_point) or min(scale.scale) <= 0:
        raise ModelError(f"a {operator.name} has weights without a scale, or with a zero point other than 0")
    if len(scale.scale) > 1 and scale.axis != 0:
        raise ModelError(f"a {operator.name} has weight scales along axis {scale.axis} instead of its outputs")
    return scale


def _affine(tensor: Tensor) -> Affine:
    scale = tensor.quantisation
    if scale is None or len(scale.scale) != 1 or scale.scale[0] <= 0 or not -128 <= scale.zero_point[0] <= 127:
        raise ModelError(f"tensor {tensor.index} has no int8 scale and zero point")
    return Affine(scale.scale[0], scale.zero_point[0])


def _at(tensor: Tensor) -> int:
    assert tensor.data is not None
    return tensor.data.at
