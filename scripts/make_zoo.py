# SPDX-License-Identifier: Apache-2.0
"""Make tests/models/zoo/*.tflite, one small model a kind of tail, and tests/models/bench/*.tflite, heads by size.

Run as ``python scripts/make_zoo.py [OUTDIR]`` in an environment made by
``pip install tensorflow-cpu==2.15.1 tflite-runtime==2.14.0 "numpy<2"``. About two minutes on two cores.
Weights are random with fixed seeds, nothing is trained and no data goes in; biases are random too, since the converter
drops a bias of zeros. What each file is stands in tests/models/zoo/zoo.json, written from ZOO and BENCH below.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from heads import Array, operators, to_int8
from tflite_runtime.interpreter import Interpreter

L = tf.keras.layers
Build = Callable[[str], bytes]


def main(out: Path) -> None:
    """Write every model and the index; print size, operators and what tflite-runtime 2.14 says of each."""
    index: dict[str, dict[str, Any]] = {}
    for folder, models in (("zoo", ZOO), ("bench", BENCH)):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for name, (what, build) in models.items():
            data = build(name)
            (out / folder / f"{name}.tflite").write_bytes(data)
            index[f"{folder}/{name}.tflite"] = {"what": what, "operators": operators(data), **interface(data)}
            print(f"{folder}/{name}\t{len(data)} bytes\t{' '.join(operators(data))}\t{varies(data)}")
    (out / "zoo" / "zoo.json").write_text(json.dumps(index, indent=1) + "\n")


def interface(data: bytes) -> dict[str, list[Any]]:
    """Shapes and dtypes of the model's inputs and outputs."""
    interpreter = Interpreter(model_content=data)
    ends = {"inputs": interpreter.get_input_details(), "outputs": interpreter.get_output_details()}
    return {end: [[d["shape"].tolist(), d["dtype"].__name__] for d in details] for end, details in ends.items()}


def varies(data: bytes) -> str:
    """Whether the first output answers to the input: how many different rows eight random inputs give."""
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rng, rows = np.random.default_rng(1), set()
    for _ in range(8):
        x = rng.normal(size=source["shape"])
        if source["dtype"] is not np.float32:
            limits = np.iinfo(source["dtype"])
            scale, zero = source["quantization"]
            x = np.clip(np.round(x / scale) + zero, limits.min, limits.max)
        interpreter.set_tensor(source["index"], x.astype(source["dtype"]))
        interpreter.invoke()
        rows.add(interpreter.get_tensor(sink["index"]).tobytes())
    return f"{len(rows)} of 8 outputs differ"


# ---- how a model is put together --------------------------------------------------------------


def rng_of(name: str) -> np.random.Generator:
    """A generator seeded by the model's name, so that one model more leaves the others as they are."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def samples(name: str, model: tf.keras.Model, n: int = 200) -> Array:
    """Standard normal inputs: (n, *input shape) float32."""
    return rng_of(name).normal(size=(n, *model.inputs[0].shape[1:])).astype(np.float32)


def randomise(name: str, model: tf.keras.Model) -> None:
    """Give every weight a He-scaled value and every bias a small one, from the model's name.

    Source: He et al., Delving Deep into Rectifiers (ICCV 2015), equation 10.
    """
    rng = rng_of(name)
    weights = []
    for w in model.get_weights():
        fan_in = int(np.prod(w.shape[:-1])) if w.ndim > 1 else 0
        weights.append(rng.normal(size=w.shape) * (np.sqrt(2 / fan_in) if fan_in else 0.1))
    model.set_weights(weights)


def features(flatten: bool, channels: int = 16) -> tuple[Any, Any]:
    """The zoo's backbone: 8 x 8 x 1 -> 3 x 3 convolution, stride 2 -> features, averaged or flattened."""
    start = tf.keras.Input((8, 8, 1))
    at = L.Conv2D(channels, 3, strides=2, padding="same", activation="relu")(start)
    return start, (L.Flatten() if flatten else L.GlobalAveragePooling2D())(at)


def dense(
    *widths: int, act: str | Callable[..., Any] | None = "relu", last: str | None = "softmax",
    flatten: bool = False, bias: bool = True, channels: int = 16, io: Any = tf.int8,
) -> Build:  # fmt: skip
    """Builds backbone -> dense layers of ``widths``, ``act`` between them and ``last`` at the end."""

    def build(name: str) -> bytes:
        start, at = features(flatten, channels)
        for width in widths[:-1]:
            at = L.Dense(width, act, use_bias=bias)(at)
        model = tf.keras.Model(start, L.Dense(widths[-1], last, use_bias=bias)(at))
        randomise(name, model)
        return to_int8(model, samples(name, model), io)

    return build


def ending(end: Callable[[Any], Any], io: Any = tf.int8) -> Build:
    """Builds 8 x 8 x 1 -> 3 x 3 convolution, stride 2 -> 4 x 4 x 16 -> ``end``."""

    def build(name: str) -> bytes:
        start = tf.keras.Input((8, 8, 1))
        model = tf.keras.Model(start, end(L.Conv2D(16, 3, strides=2, padding="same", activation="relu")(start)))
        randomise(name, model)
        return to_int8(model, samples(name, model), io)

    return build


def pooled(*widths: int, last: str | None = None, average: bool = False, first: bool = False) -> Build:
    """Builds 1 x 1 convolutions of ``widths``, RELU between and ``last`` behind them, pooled, softmax.

    average: by AVERAGE_POOL_2D instead of MEAN.   first: pooled before the convolutions instead of behind.
    """

    def end(at: Any) -> Any:
        at = L.GlobalAveragePooling2D(keepdims=True)(at) if first else at
        for width in widths[:-1]:
            at = L.Conv2D(width, 1, activation="relu")(at)
        at = L.Conv2D(widths[-1], 1, activation=last)(at)
        if not first:
            at = L.AveragePooling2D(4)(at) if average else L.GlobalAveragePooling2D()(at)
        return L.Softmax()(L.Flatten()(at))

    return ending(end)


def flattened(at: Any) -> Any:
    """1 x 1 convolution with RELU, flattened into a dense layer."""
    return L.Dense(4, "softmax")(L.Flatten()(L.Conv2D(3, 1, activation="relu")(at)))


def autoencoder(name: str) -> bytes:
    """64 values through 16 and back to 64."""
    start = tf.keras.Input((64,))
    model = tf.keras.Model(start, L.Dense(64)(L.Dense(16, "relu")(L.Dense(48, "relu")(start))))
    randomise(name, model)
    return to_int8(model, samples(name, model), tf.float32)


def two_heads(name: str) -> bytes:
    """One backbone, two dense softmax heads, two outputs."""
    start, at = features(flatten=False)
    model = tf.keras.Model(start, [L.Dense(4, "softmax")(at), L.Dense(3, "softmax")(at)])
    randomise(name, model)
    return to_int8(model, samples(name, model))


def plain(optimise: bool) -> Build:
    """Builds a float32 model, or with ``optimise`` one with int8 weights and float32 activations (dynamic range)."""

    def build(name: str) -> bytes:
        start, at = features(flatten=True)
        model = tf.keras.Model(start, L.Dense(4, "softmax")(L.Dense(16, "relu")(at)))
        randomise(name, model)
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT] if optimise else []
        return bytes(converter.convert())

    return build


def fixed_batch(name: str) -> bytes:
    """A model whose input batch is 4 and whose RESHAPE holds that 4 as a constant."""
    start = tf.keras.Input((8, 8, 1), batch_size=4)
    at = L.Conv2D(16, 3, strides=2, padding="same", activation="relu")(start)
    at = tf.reshape(at, (4, 256))
    model = tf.keras.Model(start, L.Dense(4, "softmax")(at))
    randomise(name, model)
    x = samples(name, model, 4 * 50).reshape(50, 4, 8, 8, 1)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([batch] for batch in x)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


class Stream(tf.Module):  # type: ignore[misc]
    """Keeps the last three frames of 8 values in a variable and classifies them, as streaming keyword models do."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        self.frames = tf.Variable(tf.zeros((1, 24)), trainable=False)
        self.weights = tf.constant(rng.normal(size=(24, 4)) / 3, tf.float32)
        self.bias = tf.constant(rng.normal(size=4) / 10, tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((1, 8), tf.float32)])  # type: ignore[untyped-decorator]
    def step(self, frame: Any) -> Any:
        kept = tf.concat([self.frames[:, 8:], frame], axis=1)
        self.frames.assign(kept)
        return tf.nn.softmax(tf.matmul(kept, self.weights) + self.bias)


def streaming(name: str) -> bytes:
    """A float32 model with VAR_HANDLE, READ_VARIABLE and ASSIGN_VARIABLE and a second subgraph that initialises it."""
    module = Stream(rng_of(name))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.step.get_concrete_function()], module)
    converter.experimental_enable_resource_variables = True
    return bytes(converter.convert())


def bench(inputs: int, *widths: int, repeat: bool = False) -> Build:
    """Builds 8 x 8 x 1 -> a 2 x 2 convolution to ``inputs`` channels, averaged over its four positions -> the head.

    A stride of four leaves four positions only, so the mean keeps something of the image and a head can learn on it.
    ``repeat`` gives every output the same weights: a large file that only has to be refused then costs git little.
    """

    def build(name: str) -> bytes:
        start = tf.keras.Input((8, 8, 1))
        at = L.Conv2D(inputs, 2, strides=4, padding="same", activation="relu")(start)
        at = L.GlobalAveragePooling2D()(at)
        for width in widths[:-1]:
            at = L.Dense(width, "relu")(at)
        model = tf.keras.Model(start, L.Dense(widths[-1], "softmax")(at))
        randomise(name, model)
        if repeat:
            *before, kernel, bias = model.get_weights()
            model.set_weights([*before, np.repeat(kernel[:, :1], widths[-1], axis=1), bias])
        return to_int8(model, samples(name, model))

    return build


ZOO: dict[str, tuple[str, Build]] = {
    "mean_fc": ("MEAN -> FC -> SOFTMAX, one dense layer", dense(4)),
    "reshape_fc": ("RESHAPE -> FC -> SOFTMAX, one dense layer on 256 features", dense(4, flatten=True)),
    "hidden_none": ("two dense layers, no activation between them", dense(12, 4, act=None)),
    "hidden_relu": ("two dense layers, fused RELU", dense(12, 4)),
    "hidden_relu6": ("two dense layers, fused RELU6", dense(12, 4, act=tf.nn.relu6)),
    "three_layers": ("three dense layers, fused RELU", dense(16, 12, 4)),
    "hidden_tanh": ("two dense layers with TANH between", dense(12, 4, act="tanh")),
    "logistic_one": ("FC -> LOGISTIC, one output: two classes", dense(12, 1, last="sigmoid")),
    "logistic_three": ("FC -> LOGISTIC, three independent outputs", dense(12, 3, last="sigmoid")),
    "logits": ("FC is the output: its quantisation is public", dense(12, 4, last=None)),
    "float_io": ("float32 ends: QUANTIZE first, DEQUANTIZE last", dense(12, 4, io=tf.float32)),
    "uint8_io": ("uint8 ends: QUANTIZE first and last", dense(12, 4, io=tf.uint8)),
    "no_bias": ("two dense layers without a bias", dense(12, 4, bias=False)),
    "conv_head": ("1 x 1 CONV_2D -> MEAN -> SOFTMAX", pooled(4)),
    "conv_relu": ("1 x 1 CONV_2D with RELU -> MEAN -> SOFTMAX, as SqueezeNet", pooled(4, last="relu")),
    "conv_average": ("1 x 1 CONV_2D -> AVERAGE_POOL_2D -> SOFTMAX", pooled(4, average=True)),
    "conv_two": ("two 1 x 1 CONV_2D -> MEAN -> SOFTMAX", pooled(12, 4)),
    "conv_late": ("MEAN -> 1 x 1 CONV_2D -> SOFTMAX, as MobileNet v1", pooled(4, first=True)),
    "conv_dense": ("1 x 1 CONV_2D with RELU, flattened -> FC -> SOFTMAX", ending(flattened)),
    "value": ("two dense layers, one output without LOGISTIC: a value", dense(12, 1, last=None)),
    "values": ("two dense layers, two real outputs", dense(12, 2, last=None, io=tf.float32)),
    "autoencoder": ("dense layers from 64 values to 16 and back", autoencoder),
    "two_heads": ("two dense softmax heads, two outputs: refused", two_heads),
    "float_model": ("float32 throughout: refused", plain(optimise=False)),
    "dynamic_range": ("int8 weights, float32 activations: refused", plain(optimise=True)),
    "streaming": ("float32 with variables and two subgraphs: refused", streaming),
    "fixed_batch": ("batch of 4, fixed by a constant of RESHAPE", fixed_batch),
}

BENCH: dict[str, tuple[str, Build]] = {
    "head_64x10": ("64 features -> 10: 650 parameters", bench(64, 10)),
    "head_1280x10": ("1280 features -> 10: 12,810 parameters", bench(1280, 10)),
    "head_224-16-4": ("224 features -> 16 -> 4: 3,668 parameters", bench(224, 16, 4)),
    "head_1280x205": (
        "1280 features -> 205: 262,605 parameters, above the wire's 262,144",
        bench(1280, 205, repeat=True),
    ),
}


if __name__ == "__main__":
    default = Path(__file__).resolve().parent.parent / "tests" / "models"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
