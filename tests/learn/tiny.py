# SPDX-License-Identifier: Apache-2.0
"""Small .tflite files written by hand, so that a test can say what its model looks like; interpreters run them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_tiny.learn.schema import OPERATORS, TYPES
from fl_tiny.learn.tflite import Model, Quantisation, read_model

SILABS = Path(__file__).parent.parent / "models" / "silabs"
NUMBERS = "bBhHiIqQf"
Fields = dict[int, tuple[str, Any]]  # slot -> (kind, value); kind a letter of NUMBERS, or one of the names below


class Writer:
    """A flatbuffer written front to back: each table, then what it points to."""

    def __init__(self) -> None:
        self.out = bytearray(b"\0\0\0\0TFL3")
        self.late: list[tuple[int, Fields]] = []  # tables that several point to, written behind all else

    def table(self, fields: Fields) -> int:
        sizes = {slot: struct.calcsize(kind) if kind in NUMBERS else 4 for slot, (kind, _) in fields.items()}
        offsets, size = {}, 4
        for slot in sorted(fields, key=lambda each: -sizes[each]):
            size += -(size + 4) % 8 % sizes[slot]
            offsets[slot] = size
            size += sizes[slot]
        slots = max(fields, default=-1) + 1
        self.pad(8, 4 + 2 * slots + 4)  # the table's fields of eight bytes lie 4 past a multiple of 8
        vtable = len(self.out)
        self.out += struct.pack(f"<HH{slots}H", 4 + 2 * slots, size, *(offsets.get(slot, 0) for slot in range(slots)))
        at = len(self.out)
        self.out += struct.pack("<i", at - vtable) + bytes(size - 4)
        for slot, (kind, value) in fields.items():
            if kind in NUMBERS:
                struct.pack_into(f"<{kind}", self.out, at + offsets[slot], value)
        for slot, (kind, value) in fields.items():
            if kind == "late":
                self.late.append((at + offsets[slot], value))
            elif kind not in NUMBERS:
                self.point(at + offsets[slot], self.place(kind, value))
        return at

    def place(self, kind: str, value: Any) -> int:
        if kind == "table":
            return self.table(value)
        self.pad(16, 4)
        at = len(self.out)
        if kind == "tables":
            self.out += struct.pack("<I", len(value)) + bytes(4 * len(value))
            for number, each in enumerate(value):
                self.point(at + 4 + 4 * number, self.table(each))
        elif kind == "bytes":
            self.out += struct.pack("<I", len(value)) + value
        else:  # "v" and a letter
            self.out += struct.pack(f"<I{len(value)}{kind[1:]}", len(value), *value)
        return at

    def pad(self, to: int, after: int) -> None:
        self.out += bytes(-(len(self.out) + after) % to)

    def point(self, at: int, target: int) -> None:
        assert target > at, "flatbuffers point forwards"
        struct.pack_into("<I", self.out, at, target - at)


def write(root: Fields) -> bytes:
    writer = Writer()
    writer.point(0, writer.table(root))
    places: dict[int, int] = {}
    for at, fields in writer.late:
        if id(fields) not in places:
            places[id(fields)] = writer.table(fields)
        writer.point(at, places[id(fields)])
    return bytes(writer.out)


@dataclass
class Net:
    """A graph in the making: tensors, buffers and operators as tables of the schema."""

    tensors: list[Fields] = field(default_factory=list)
    buffers: list[Fields] = field(default_factory=lambda: [{}])
    codes: list[Fields] = field(default_factory=list)
    operators: list[Fields] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def tensor(
        self,
        shape: Sequence[int],
        dtype: str = "int8",
        scale: Sequence[float] = (),
        zero: Sequence[int] = (),
        data: np.ndarray | None = None,
        **more: tuple[str, Any],
    ) -> int:
        buffer = 0
        if data is not None:
            self.buffers.append({0: ("bytes", data.tobytes())})
            buffer = len(self.buffers) - 1
        table: Fields = {0: ("vi", list(shape)), 1: ("B", TYPES.index(dtype)), 2: ("I", buffer), 3: ("bytes", b"t")}
        if scale:
            table[4] = ("table", {2: ("vf", list(scale)), 3: ("vq", list(zero or [0] * len(scale)))})
        table |= {int(slot[1:]): value for slot, value in more.items()}
        self.tensors.append(table)
        return len(self.tensors) - 1

    def operator(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], version: int = 1, options: Any = None
    ) -> None:
        code = OPERATORS.index(name)
        self.codes.append({0: ("b", min(code, 127)), 2: ("i", version), 3: ("i", code)})
        table: Fields = {0: ("I", len(self.codes) - 1), 1: ("vi", list(inputs)), 2: ("vi", list(outputs))}
        if options is not None:
            table |= {3: ("B", options[0]), 4: ("table", options[1])}
        self.operators.append(table)

    def graph(self) -> Fields:
        return {
            0: ("tables", self.tensors),
            1: ("vi", self.inputs),
            2: ("vi", self.outputs),
            3: ("tables", self.operators),
        }

    def model(self, *more_graphs: Fields) -> bytes:
        return write(
            {
                0: ("I", 3),
                1: ("tables", self.codes),
                2: ("tables", [self.graph(), *more_graphs]),
                3: ("bytes", b"tiny"),
                4: ("tables", self.buffers),
            }
        )


FULLY_CONNECTED, SOFTMAX, RESHAPE = 8, 9, 17  # BuiltinOptions
RELU = {"dense": 0, "dense relu": 1, "dense relu6": 3, "dense tanh": 4}


def dense(
    net: Net,
    source: int,
    sizes: tuple[int, int],
    kind: str = "dense",
    *,
    rng: np.random.Generator,
    bias: bool = True,
    per_channel: bool = False,
    version: int = 4,
    step: float = 0.1,
    output: tuple[float, int] | None = None,
    options: Fields | None = None,
) -> int:
    """Add an int8 dense layer of (inputs, outputs) and return its output tensor."""
    inputs, outputs = sizes
    scale = list(rng.uniform(0.005, 0.02, outputs if per_channel else 1))
    weights = net.tensor([outputs, inputs], "int8", scale, data=rng.integers(-127, 128, (outputs, inputs), np.int8))
    operands = [source, weights]
    if bias:
        numbers = rng.integers(-500, 500, outputs).astype("<i4")
        operands.append(net.tensor([outputs], "int32", [step * each for each in scale], data=numbers))
    result = net.tensor([1, outputs], "int8", [output[0] if output else 0.1], [output[1] if output else 3])
    table: Fields = {0: ("b", RELU[kind])} | (options or {})
    net.operator("FULLY_CONNECTED", operands, [result], version, (FULLY_CONNECTED, table))
    return result


def classifier(
    kinds: Sequence[str] = ("dense",), sizes: Sequence[int] = (12, 5), tail: str = "softmax", seed: int = 1, **more: Any
) -> bytes:
    """An int8 model: input, dense layers, tail. ``tail``: softmax, logits, float, logistic or uint8."""
    rng, net = np.random.default_rng(seed), Net()
    at = net.tensor([1, sizes[0]], "int8", [0.1], [-3])
    net.inputs = [at]
    for kind, *pair in zip(kinds, sizes, sizes[1:], strict=False):
        at = dense(net, at, (pair[0], pair[1]), kind, rng=rng, **more)
    shape = [1, sizes[-1]]
    if tail == "softmax":
        at = _then(net, "SOFTMAX", at, net.tensor(shape, "int8", [1 / 256], [-128]), (SOFTMAX, {0: ("f", 1.0)}))
    elif tail == "float":
        at = _then(net, "DEQUANTIZE", at, net.tensor(shape, "float32"))
    elif tail in ("logistic", "uint8"):
        at = _then(net, "LOGISTIC", at, net.tensor(shape, "int8", [1 / 256], [-128]))
        if tail == "uint8":
            at = _then(net, "QUANTIZE", at, net.tensor(shape, "uint8", [1 / 256], [0]))
    net.outputs = [at]
    return net.model()


def _then(net: Net, name: str, at: int, result: int, options: Any = None) -> int:
    net.operator(name, [at], [result], 2 if name in ("DEQUANTIZE", "SOFTMAX", "LOGISTIC") else 1, options)
    return result


def zoo(name: str) -> bytes:
    return (SILABS.parent / "zoo" / f"{name}.tflite").read_bytes()


def silabs(name: str) -> bytes:
    return (SILABS / f"{name}.tflite").read_bytes()


def taking(shape: Sequence[int], dtype: str = "int8", scale: float = 1 / 255, zero_point: int = -128) -> Model:
    """A model of which only the input is of use: [1, *shape]; float32 has no scale."""
    model = read_model(classifier())
    quantisation = None if dtype == "float32" else Quantisation((scale,), (zero_point,), 0, 0, None)
    source = replace(model.input, shape=(1, *shape), dtype=dtype, quantisation=quantisation)
    tensors = tuple(source if each.index == source.index else each for each in model.main.tensors)
    return Model(model.data, (replace(model.main, tensors=tensors),))
