# SPDX-License-Identifier: Apache-2.0
"""What the kernels are held against: the interpreters of TFLite, and inputs for any model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fl_tiny.learn.kernels.rounding import Rule
from fl_tiny.learn.tflite import Model

MODULES = {Rule.TFLITE: "tflite_runtime.interpreter", Rule.LITERT: "ai_edge_litert.interpreter"}
rules = pytest.mark.parametrize("rule", list(Rule), ids=[rule.value for rule in Rule])


def interpreter(data: bytes, rule: Rule) -> Any:
    """The interpreter whose arithmetic ``rule`` names; the test is skipped where it is not installed."""
    runtime = pytest.importorskip(MODULES[rule], reason=f"{MODULES[rule]} is not installed: its rule is not compared")
    opened = runtime.Interpreter(model_content=data, num_threads=1)
    opened.allocate_tensors()
    return opened


def interpreted(data: bytes, x: np.ndarray, rule: Rule) -> np.ndarray:
    """(n, outputs) by the interpreter, one batch of the file's size at a time."""
    opened = interpreter(data, rule)
    source, result = opened.get_input_details()[0], opened.get_output_details()[0]
    batch, rows = source["shape"][0], []
    for start in range(0, len(x), batch):
        opened.set_tensor(source["index"], x[start : start + batch])
        opened.invoke()
        rows.append(opened.get_tensor(result["index"]).reshape(batch, -1).copy())
    return np.concatenate(rows)


def inputs(model: Model, n: int, seed: int = 0) -> np.ndarray:
    """(n, *shape) inputs: one half noise over all codes, one half smooth as images and sounds are."""
    rng, source = np.random.default_rng(seed), model.input
    shape = (n, *source.shape[1:])
    noise = rng.integers(-128, 128, shape).astype(np.float64)
    smooth = np.cumsum(rng.normal(size=shape), axis=1) * 12 + rng.normal(size=(n, *[1] * (len(shape) - 1))) * 40
    codes = np.where(np.arange(n).reshape(-1, *[1] * (len(shape) - 1)) % 2, np.clip(np.rint(smooth), -128, 127), noise)
    if source.dtype == "float32":
        first = next(each for each in model.main.operators if source.index in each.inputs)
        scale = model.main.tensors[first.outputs[0]].quantisation
        step, zero = (scale.scale[0], scale.zero_point[0]) if scale else (1 / 40, 0)
        return ((codes - zero + rng.uniform(-0.5, 0.5, shape)) * step).astype(np.float32)
    return (codes + (128 if source.dtype == "uint8" else 0)).astype(source.dtype)
