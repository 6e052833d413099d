# SPDX-License-Identifier: Apache-2.0
"""What a model's input can hold, and whether the numbers given to it can be meant for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.learn.tflite import Model, Quantisation

Range = tuple[float, float]
USUAL: tuple[Range, ...] = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-128.0, 127.0))
NEAR = 0.03  # of the width; guess: converters calibrate on data that rarely reach both ends
CLIPPED = 0.5  # share of values beyond the range that no sound data have; guess
UNUSED = 0.05  # of the range, that sound data always exceed; guess
BEYOND = 0.01  # of the width: rounding at an end is no clipping


def input_range(model: Model) -> Range | None:
    """Lowest and highest real number that the input can hold; None: a float input that nothing bounds.

    A float input counts as what the QUANTIZE behind it lets through.
    """
    graph, source = model.main, model.input
    if source.dtype != "float32":
        return _held(source.quantisation, source.dtype)
    readers = [op for op in graph.operators if source.index in op.inputs]
    if len(readers) != 1 or readers[0].name != "QUANTIZE" or not readers[0].outputs:
        return None
    behind = graph.tensors[readers[0].outputs[0]]
    return _held(behind.quantisation, behind.dtype)


def usual(held: Range | None) -> Range | None:
    """The customary range that is meant by what an input holds, such as (-1, 1) for -1.008 to 0.999; else None."""
    if held is None:
        return None
    width = held[1] - held[0]
    near = (each for each in USUAL if all(abs(a - b) <= NEAR * width for a, b in zip(each, held, strict=True)))
    return next(near, None)


class Seen:
    """The numbers that went into a model's input, as they went by: their range, and how many did not fit."""

    def __init__(self, held: Range | None) -> None:
        self.held = held
        self.low, self.high = math.inf, -math.inf
        self.values = self.clipped = 0

    def add(self, real: NDArray[Any], counts: NDArray[Any] | None = None) -> None:
        """Count numbers in real units; ``counts``: how often each of them occurs, once when not given."""
        if counts is not None:
            real, counts = real[counts > 0], counts[counts > 0]
        if real.size == 0:
            return
        self.low, self.high = min(self.low, float(real.min())), max(self.high, float(real.max()))
        self.values += real.size if counts is None else int(counts.sum())
        if self.held is None:
            return
        room = BEYOND * (self.held[1] - self.held[0])
        if self.low >= self.held[0] - room and self.high <= self.held[1] + room:
            return
        out = (real < self.held[0] - room) | (real > self.held[1] + room)
        self.clipped += int(out.sum() if counts is None else counts[out].sum())

    def doubt(self) -> str:
        """Why these numbers cannot be what the model was trained with, as a sentence; empty when they may be."""
        if not self.values:
            return ""
        runs = f"the samples run from {self.low:.4g} to {self.high:.4g}"
        if self.low == self.high:
            return f"all numbers of the samples are {self.low:.4g}: there is nothing to tell them apart by"
        if self.held is None:
            return ""
        holds = f"the model's input holds {as_text(self.held)}"
        if self.clipped > CLIPPED * self.values:
            share = 100 * self.clipped / self.values
            return f"{runs}, {holds}: {share:.0f} % of the numbers are cut off; give the units it was trained with"
        if self.high - self.low < UNUSED * (self.held[1] - self.held[0]):
            return f"{runs}, {holds}: they use less than {UNUSED:.0%} of it; give the units it was trained with"
        return ""


def as_text(held: Range) -> str:
    """A range in words, by the customary one where it is near: ``-1 to 1``."""
    low, high = usual(held) or held
    return f"{low:.4g} to {high:.4g}"


def _held(scale: Quantisation | None, dtype: str) -> Range | None:
    if scale is None or len(scale.scale) != 1 or scale.scale[0] <= 0 or dtype not in ("int8", "uint8", "int16"):
        return None
    limits = np.iinfo(dtype)
    low, high = ((int(code) - scale.zero_point[0]) * scale.scale[0] for code in (limits.min, limits.max))
    return low, high
