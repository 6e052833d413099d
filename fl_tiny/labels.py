# SPDX-License-Identifier: Apache-2.0
"""The names of a model's outputs: from a text file, or from the metadata that a .tflite carries."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

from fl_tiny.errors import DataError, ModelError
from fl_tiny.files import read_bounded
from fl_tiny.learn.flatbuffer import I8, U32, Table, root
from fl_tiny.learn.tflite import IDENTIFIER

TEXT_LIMIT = 65_536  # bytes of a file of labels
METADATA_NAME, METADATA_MARK = "TFLITE_METADATA", b"M001"
TENSOR_AXIS_LABELS = 2  # metadata_schema.fbs, AssociatedFileType


def read_labels(path: Path, outputs: int) -> tuple[str, ...]:
    """The labels in a text file, one a line, empty ones left out.

    Raises: DataError unless there are as many as ``outputs``.
    """
    labels = _lines(read_bounded(path, TEXT_LIMIT, DataError), str(path))
    if len(labels) != outputs:
        raise DataError(f"{path} has {len(labels)} labels, the model has {outputs} outputs", hint="one a line")
    return labels


def labels_of(data: bytes, outputs: int) -> tuple[str, ...] | None:
    """The labels that a model file carries for its only output; None without any, or with others than ``outputs``.

    Raises: ModelError, DataError when its metadata is damaged.
    Source: tensorflow_lite_support/metadata/metadata_schema.fbs; associated files are a zip behind the flatbuffer.
    """
    metadata = _metadata(data)
    name = None if metadata is None else _labels_file(root(metadata, METADATA_MARK))
    if name is None:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if archive.getinfo(name).file_size > TEXT_LIMIT:
                raise ModelError(f"the model's labels take more than {TEXT_LIMIT} bytes")
            labels = _lines(archive.read(name), f"the model's {name[:64]}")
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as cause:
        raise ModelError(f"the model names a file of labels that cannot be read: {str(cause)[:100]}") from cause
    return labels if len(labels) == outputs else None


def _lines(raw: bytes, where: str) -> tuple[str, ...]:
    try:
        return tuple(line.strip() for line in raw.decode().split("\n") if line.strip())
    except UnicodeDecodeError as cause:
        raise DataError(f"{where} is not UTF-8 text") from cause


def _metadata(data: bytes) -> bytes | None:
    top = root(data, IDENTIFIER)
    buffers = top.tables(4)
    for entry in top.tables(6):
        place = entry.number(1, U32)
        if entry.text(0) == METADATA_NAME and place < len(buffers):
            vector = buffers[place].vector(0, 1)
            return data[vector.at : vector.at + vector.count] if vector is not None else None
    return None


def _labels_file(top: Table) -> str | None:
    """The name of the first file of axis labels of the first output."""
    for graph in top.tables(3)[:1]:
        for tensor in graph.tables(3)[:1]:
            for file in tensor.tables(6):
                if file.number(2, I8) == TENSOR_AXIS_LABELS:
                    return file.text(0)
    return None
