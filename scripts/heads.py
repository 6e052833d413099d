# SPDX-License-Identifier: Apache-2.0
"""What the make_*.py scripts share: convert a Keras model, run a .tflite or cut it at its features, train a head.

The trainer here is a yardstick that says whether a fixture is fit for its purpose; it is not fl_tiny.learn and
imports nothing of it, so that a fault there cannot shape the data it is tested on.
TensorFlow and tflite-runtime in one process may share kernels, so what 2.14 alone loads is for the tests to say.
Needs: tensorflow-cpu 2.15.1, tflite-runtime 2.14.0, numpy < 2.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read by TensorFlow when it is imported, so set before

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.lite.tools import flatbuffer_utils
from tflite_runtime.interpreter import Interpreter

Array = NDArray[Any]
Head = list[Array]  # [(f, h), (h,), (h, k), (k,)]: features -> hidden, relu -> classes

MOMENTUM = 0.9
BATCH = 16


def to_int8(model: tf.keras.Model, samples: Array, io: Any = tf.int8) -> bytes:
    """A fully int8 .tflite of ``model``; ``samples``: (n, ...) float32 set the activations' ranges."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = io
    return bytes(converter.convert())


def operators(data: bytes) -> list[str]:
    """The names of the first subgraph's operators, in order."""
    model = _parsed(data)
    return [_name(model, op) for op in model.subgraphs[0].operators]


def cut_at_features(data: bytes, dense: int = 2) -> bytes:
    """A copy of the model whose output is the input of the last ``dense`` FULLY_CONNECTED operators."""
    model = _parsed(data)
    graph = model.subgraphs[0]
    tail = [op for op in graph.operators if _name(model, op) == "FULLY_CONNECTED"][-dense]
    graph.outputs = [tail.inputs[0]]
    model.signatureDefs = []
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def quantise(data: bytes, x: Array) -> Array:
    """``x``: (n, ...) real, as the model's integer input by its scale and zero point."""
    detail = Interpreter(model_content=data).get_input_details()[0]
    scale, zero = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.round(x / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def run(data: bytes, q: Array, batch: int = 200) -> Array:
    """The model's real-valued output (n, k) for inputs ``q`` of its own dtype, by tflite-runtime."""
    interpreter = Interpreter(model_content=data)
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for at in range(0, len(q), batch):
        part = q[at : at + batch]
        interpreter.resize_tensor_input(source["index"], part.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], part)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(sink["index"]).reshape(len(part), -1))
    scale, zero = sink["quantization"]
    return (np.concatenate(outputs).astype(np.float64) - zero) * (scale or 1.0)


def head_of(model: tf.keras.Model, features: Array) -> tuple[Head, Array]:
    """The model's last two dense layers and ``features``, rescaled so that the features' RMS is one."""
    rms = float(np.sqrt(np.mean(features**2)))
    first, *rest = (np.asarray(w, np.float64) for w in model.get_weights()[-4:])
    return [first * rms, *rest], features / rms


def accuracy(head: Head, x: Array, y: Array) -> float:
    """The share of rows of ``x`` whose largest logit is their label."""
    hidden = np.maximum(x @ head[0] + head[1], 0)
    return float(np.mean((hidden @ head[2] + head[3]).argmax(axis=1) == y))


def train(
    head: Head, x: Array, y: Array, *, epochs: int, rate: float, rng: np.random.Generator, layers: int = 2
) -> Head:
    """A copy of ``head`` after SGD with momentum on softmax cross-entropy; ``layers``: 1 (last only) or 2."""
    head = [w.copy() for w in head]
    speed = [np.zeros_like(w) for w in head]
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for at in range(0, len(x), BATCH):
            rows = order[at : at + BATCH]
            grads = _gradients(head, x[rows], y[rows])
            for i in range(4 - 2 * layers, 4):
                speed[i] = MOMENTUM * speed[i] - rate * grads[i]
                head[i] += speed[i]
    return head


def fedavg(
    head: Head,
    shards: Sequence[tuple[Array, Array]],
    *,
    rounds: int,
    epochs: int,
    rate: float,
    rng: np.random.Generator,
) -> Head:
    """``head`` after ``rounds`` of federated averaging, clients weighted by their samples.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks (AISTATS 2017), algorithm 1.
    """
    shares = np.array([len(y) for _, y in shards], np.float64)
    shares /= shares.sum()
    for _ in range(rounds):
        trained = [train(head, x, y, epochs=epochs, rate=rate, rng=rng) for x, y in shards]
        head = [sum(s * h[i] for s, h in zip(shares, trained, strict=True)) for i in range(4)]
    return head


def _gradients(head: Head, x: Array, y: Array) -> Head:
    hidden = np.maximum(x @ head[0] + head[1], 0)
    z = hidden @ head[2] + head[3]
    z = np.exp(z - z.max(axis=1, keepdims=True))
    grad = z / z.sum(axis=1, keepdims=True)
    grad[np.arange(len(y)), y] -= 1
    grad /= len(y)
    back = (grad @ head[2].T) * (hidden > 0)
    return [x.T @ back, back.sum(axis=0), hidden.T @ grad, grad.sum(axis=0)]


def _parsed(data: bytes) -> Any:
    return flatbuffer_utils.convert_bytearray_to_object(bytearray(data))


def _name(model: Any, op: Any) -> str:
    code = model.operatorCodes[op.opcodeIndex]
    number = max(code.builtinCode, code.deprecatedBuiltinCode)  # schema v3a: the larger of the two is meant
    return next(name for name, value in vars(schema.BuiltinOperator).items() if value == number)
