# SPDX-License-Identifier: Apache-2.0
"""A .tflite file as tensors and operators with the places of what can be patched, and its backbone cut out.

Source: tensorflow/compiler/mlir/lite/schema/schema.fbs; the numbers of fields are their order there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import isfinite, prod

from fl_tiny.errors import ModelError
from fl_tiny.learn.flatbuffer import I8, I32, U8, U32, U64, Table, Vector, damaged, root
from fl_tiny.learn.schema import BITS, operator_name, type_name

IDENTIFIER = b"TFL3"
MAX_FILE_BYTES = 64 << 20  # guess: ten times the largest model for a board of this class
MAX_TENSOR_BYTES = 256 << 20  # guess: half a small board's memory; more is a damaged shape
MAX_RANK = 8
MAX_TEXT = 64  # characters of a foreign name that may reach a message


@dataclass(frozen=True, slots=True)
class Quantisation:
    """real = (code - zero_point) * scale, along ``axis`` when there are several. ``*_at`` are places in the file."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]  # as many as ``scale``
    axis: int
    scale_at: int
    zero_point_at: int | None  # None: the file leaves them out, they are zero


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; ``data`` is where a constant's bytes lie, None for what is computed."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    quantisation: Quantisation | None
    data: Vector | None
    variable: bool


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator; an input of -1 is left out."""

    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Table | None


@dataclass(frozen=True, slots=True)
class Graph:
    """One subgraph: operators in the order they run."""

    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    outputs_at: int
    operators: tuple[Operator, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A whole file; the first graph is the one that an interpreter runs."""

    data: bytes
    graphs: tuple[Graph, ...]

    @property
    def main(self) -> Graph:
        return self.graphs[0]

    @property
    def input(self) -> Tensor:
        """The only input. Raises: ModelError when there are several."""
        return _only(self.main, self.main.inputs, "input")

    @property
    def output(self) -> Tensor:
        """The only output. Raises: ModelError when there are several."""
        return _only(self.main, self.main.outputs, "output")


def read_model(data: bytes) -> Model:
    """``data`` as a model. Raises: ModelError when it is no .tflite file, damaged, or of a kind we cannot read."""
    if len(data) > MAX_FILE_BYTES:
        raise ModelError(f"the file has {len(data)} bytes, more than {MAX_FILE_BYTES}")
    top = root(data, IDENTIFIER)
    if (version := top.number(0, U32)) != 3:
        raise ModelError(f"the file has schema version {version}; fl-tiny reads version 3")
    if top.place(8) is not None or top.place(9) is not None:
        raise ModelError("the model keeps weights in other files", hint="convert it into one .tflite file")
    codes = [_operator_code(table) for table in top.tables(1)]
    buffers = [_buffer(table) for table in top.tables(4)]
    graphs = tuple(_graph(table, codes, buffers) for table in top.tables(2))
    if not graphs:
        raise damaged("it has no graph")
    _check_extras(top, len(buffers), len(graphs))
    return Model(data, graphs)


def cut(model: Model, tensor: int) -> bytes:
    """A copy of the file whose only output is ``tensor``; one number differs.

    Reading an inner tensor instead returns wrong values from tflite-runtime 2.14 on most int8 models.
    """
    assert 0 <= tensor < len(model.main.tensors)
    copy = bytearray(model.data)
    struct.pack_into("<i", copy, model.main.outputs_at, tensor)
    return bytes(copy)


def _only(graph: Graph, indices: tuple[int, ...], what: str) -> Tensor:
    if len(indices) != 1:
        raise ModelError(f"the model has {len(indices)} {what}s; fl-tiny takes models with one")
    return graph.tensors[indices[0]]


def _operator_code(table: Table) -> tuple[str, int]:
    # Files before schema 3a have the code in one byte; 127 there means: look at the wider field.
    name = operator_name(max(table.number(0, I8), table.number(3, I32)))
    custom = table.text(1)[:MAX_TEXT]
    return (f"CUSTOM {custom}" if name == "CUSTOM" and custom else name), table.number(2, I32, 1)


def _buffer(table: Table) -> Vector | None:
    if table.number(1, U64) > 1:  # 1 is the placeholder that the writer leaves in small files
        raise ModelError("the model keeps weights behind the flatbuffer", hint="convert it to a file below 2 GB")
    data = table.vector(0, 1)
    return data if data is not None and data.count else None


def _graph(table: Table, codes: list[tuple[str, int]], buffers: list[Vector | None]) -> Graph:
    tensors = tuple(_tensor(index, each, buffers) for index, each in enumerate(table.tables(0)))
    inputs, outputs = table.numbers(1, "i"), table.numbers(2, "i")
    outputs_at = table.vector(2, 4)
    _within(inputs + outputs, 0, len(tensors))
    operators = tuple(_operator(each, codes, len(tensors)) for each in table.tables(3))
    return Graph(tensors, inputs, outputs, outputs_at.at if outputs_at else 0, operators)


def _tensor(index: int, table: Table, buffers: list[Vector | None]) -> Tensor:
    shape, dtype, buffer = table.numbers(0, "i"), type_name(table.number(1, U8)), table.number(2, U32)
    _within((buffer,), 0, len(buffers))
    if table.number(10, U32):
        raise ModelError("the model keeps weights in other files", hint="convert it into one .tflite file")
    if len(shape) > MAX_RANK or any(side < 0 for side in shape):
        raise damaged(f"tensor {index} has shape {list(shape)[: MAX_RANK + 1]}")
    size = prod(shape) * BITS.get(dtype, 0) // 8
    if size > MAX_TENSOR_BYTES:
        raise damaged(f"tensor {index} would take {size} bytes")
    data, sparse = buffers[buffer], table.table(6) is not None
    if data is not None and dtype in BITS and not sparse and data.count < size:
        raise damaged(f"tensor {index} has {data.count} of its {size} bytes")
    table.numbers(7, "i")  # shape_signature: an interpreter follows it
    quantisation = _quantisation(index, table.table(4), shape)
    return Tensor(index, table.text(3)[:MAX_TEXT], shape, dtype, quantisation, data, bool(table.number(5, U8)))


def _quantisation(index: int, table: Table | None, shape: tuple[int, ...]) -> Quantisation | None:
    if table is None:
        return None
    scale, points, axis = table.numbers(2, "f"), table.numbers(3, "q"), table.number(6, I32)
    place, points_place = table.vector(2, 4), table.vector(3, 8)
    if place is None or not scale:
        return None
    if not all(isfinite(each) and each >= 0 for each in scale):
        raise damaged(f"tensor {index} has a scale that is no positive number")
    if points and (len(points) != len(scale) or not all(-(2**31) <= each < 2**31 for each in points)):
        raise damaged(f"tensor {index} has {len(points)} zero points for {len(scale)} scales, or one out of range")
    if len(scale) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scale)):
        raise damaged(f"tensor {index} has {len(scale)} scales along axis {axis} of {list(shape)}")
    points_at = points_place.at if points and points_place else None
    return Quantisation(scale, points or (0,) * len(scale), axis, place.at, points_at)


def _operator(table: Table, codes: list[tuple[str, int]], tensors: int) -> Operator:
    code = table.number(0, U32)
    _within((code,), 0, len(codes))
    inputs, outputs = table.numbers(1, "i"), table.numbers(2, "i")
    _within(inputs, -1, tensors)
    _within(outputs, 0, tensors)
    _within(table.numbers(8, "i"), -1, tensors)  # intermediates
    table.vector(5, 1)  # custom options and mutating inputs: bytes that an interpreter follows
    table.vector(7, 1)
    table.table(12)
    name, version = codes[code]
    options = table.table(4)
    if name in ("RESHAPE", "SQUEEZE") and options is not None:
        options.numbers(0, "i")
    return Operator(name, version, inputs, outputs, options)


def _within(indices: tuple[int, ...], low: int, end: int) -> None:
    for index in indices:
        if not low <= index < end:
            raise damaged(f"index {index} is none of {end}")


def _check_extras(top: Table, buffers: int, graphs: int) -> None:
    """Follow what is not of use to us but of use to an interpreter: description, metadata, signatures."""
    top.text(3)
    _within(top.numbers(5, "i"), 0, buffers)
    for metadata in top.tables(6):
        metadata.text(0)
        _within((metadata.number(1, U32),), 0, buffers)
    for signature in top.tables(7):
        signature.text(2)
        _within((signature.number(4, U32),), 0, graphs)
        for tensor in signature.tables(0) + signature.tables(1):
            tensor.text(0)
