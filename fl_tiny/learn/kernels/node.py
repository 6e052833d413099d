# SPDX-License-Identifier: Apache-2.0
"""One operator of a model as its kernel is made: tensors, constants and options, each checked when asked for.

An array has the file's shape but for its first axis, which is as many times longer as there are batches at once.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import ModelError
from fl_tiny.learn.flatbuffer import I8
from fl_tiny.learn.kernels.rounding import Rule
from fl_tiny.learn.quant import Affine
from fl_tiny.learn.tflite import Operator, Tensor

Array = NDArray[Any]

CODES = ("int8", "uint8")
MAX_VALUES = 16 << 20  # of one array, float32 at times: 64 MB; guess, an eighth of a small board's memory
MIN_SCALE, MAX_SCALE = 2.0**-32, 2.0**32  # guess; products of three stay far within float32
MAX_PRODUCTS = 1 << 34  # of one operator; guess: ten seconds, what runs on a board has a thousandth
ACTIVATIONS: dict[int, tuple[float, float]] = {  # schema.fbs, ActivationFunctionType
    0: (-math.inf, math.inf),
    1: (0.0, math.inf),
    2: (-1.0, 1.0),
    3: (0.0, 6.0),
}


@dataclass(frozen=True, slots=True)
class Kernel:
    """What runs one operator: from arrays of the tensors ``inputs`` to the output's array.

    ``single``: it tells the first axis from others, so it takes one batch of the file's size at a time.
    """

    run: Callable[..., Array]
    inputs: tuple[int, ...]
    single: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """One operator with its tensors; ``constants`` are by the tensor's index."""

    operator: Operator
    tensors: tuple[Tensor, ...]
    constants: Mapping[int, Array]
    rule: Rule

    def refuse(self, why: str) -> ModelError:
        """The error to raise for what this operator asks and no kernel does."""
        return ModelError(f"numpy cannot run {self.operator.name} (tensor {self.output.index}): {why}", HINT)

    @property
    def output(self) -> Tensor:
        return self.tensors[self.operator.outputs[0]]

    def has(self, place: int) -> bool:
        """Whether the optional input at ``place`` is there."""
        return place < len(self.operator.inputs) and self.operator.inputs[place] >= 0

    def tensor(self, place: int) -> Tensor:
        """The input at ``place``. Raises: ModelError when it is left out."""
        if not self.has(place):
            raise self.refuse(f"input {place} is missing")
        return self.tensors[self.operator.inputs[place]]

    def constant(self, place: int) -> Array:
        """The values of the input at ``place``. Raises: ModelError when they are computed."""
        tensor = self.tensor(place)
        if tensor.index not in self.constants:
            raise self.refuse(f"input {place} is not a constant")
        return self.constants[tensor.index]

    def is_constant(self, place: int) -> bool:
        return self.tensor(place).index in self.constants

    def integers(self, place: int) -> list[int]:
        """A short constant vector of whole numbers."""
        values = self.constant(place)
        if values.dtype.kind not in "iu" or values.size > 64:
            raise self.refuse(f"input {place} is {values.dtype} of {values.size} values, not a short list of numbers")
        return [int(each) for each in values.reshape(-1)]

    def number(self, slot: int, form: struct.Struct, default: int = 0) -> int:
        options = self.operator.options
        return default if options is None else options.number(slot, form, default)

    def kinds(self, *allowed: str, inputs: int = 1) -> str:
        """The one type of the first ``inputs`` inputs and the output. Raises: ModelError for any other."""
        kinds = [self.tensor(place).dtype for place in range(inputs)] + [self.output.dtype]
        if len(set(kinds)) > 1 or kinds[0] not in allowed:
            raise self.refuse(f"it works on {', '.join(kinds)}")
        return kinds[0]

    def affine(self, tensor: Tensor) -> Affine:
        """Scale and zero point of codes. Raises: ModelError when there are none, or none that codes can have."""
        scale = tensor.quantisation
        low, high = limits(tensor.dtype)
        single = scale is not None and len(scale.scale) == 1
        if scale is None or not single or not MIN_SCALE <= scale.scale[0] <= MAX_SCALE:
            raise self.refuse(f"tensor {tensor.index} has no scale, several, or one that float32 cannot compute with")
        if not low <= scale.zero_point[0] <= high:
            raise self.refuse(f"tensor {tensor.index} has zero point {scale.zero_point[0]} for {tensor.dtype}")
        return Affine(scale.scale[0], scale.zero_point[0])

    def shape(self, expected: tuple[int, ...]) -> None:
        """Raises: ModelError unless the output has the shape that the inputs make."""
        if self.output.shape != expected:
            raise self.refuse(f"the file says {list(self.output.shape)}, the inputs make {list(expected)}")

    def activation(self, slot: int) -> tuple[float, float]:
        """The range that the fused activation keeps, in real units."""
        code = self.number(slot, I8)
        if code not in ACTIVATIONS:
            raise self.refuse(f"activation {code}")
        return ACTIVATIONS[code]

    def work(self, products: int) -> None:
        """Raises: ModelError for more products than a board should be asked for."""
        if products > MAX_PRODUCTS:
            raise self.refuse(f"{products} products")


HINT = "pip install 'fl-tiny[tflite]' brings a runtime that may"


def limits(dtype: str) -> tuple[int, int]:
    """The least and the largest code of a type of codes."""
    info = np.iinfo(np.dtype(dtype))
    return int(info.min), int(info.max)


def clip_range(affine: Affine, dtype: str, kept: tuple[float, float]) -> tuple[int, int]:
    """The codes that a fused activation keeps.

    Source: tensorflow/lite/kernels/kernel_util.cc, CalculateActivationRangeQuantized.
    """
    low, high = limits(dtype)
    for bound in kept:
        if math.isinf(bound):
            continue
        steps = float(np.float32(bound) / np.float32(affine.scale))
        code = affine.zero_point + math.floor(abs(steps) + 0.5) * (-1 if steps < 0 else 1)
        if bound == kept[0]:
            low = max(low, code)
        else:
            high = min(high, code)
    if low > high:
        low = high = min(max(low, limits(dtype)[0]), limits(dtype)[1])
    return low, high
