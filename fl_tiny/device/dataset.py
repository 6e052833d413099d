# SPDX-License-Identifier: Apache-2.0
"""Samples and labels from a .npz file, bounded before anything is unpacked and read a batch at a time."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fl_tiny.device.faults import Faults
from fl_tiny.errors import DataError
from fl_tiny.files import open_plain
from fl_tiny.learn.inputs import Seen
from fl_tiny.learn.loss import Targets
from fl_tiny.learn.quant import Affine
from fl_tiny.learn.tflite import Tensor

MAX_X_BYTES = 1 << 30  # guess: 5,000 pictures of 224 x 224 x 3 bytes; read a batch at a time, never held
MAX_TURNED_BYTES = 32 << 20  # an array in Fortran order is held as a whole, twice for a moment
MAX_Y_BYTES = 64 << 20  # guess: a million labels of eight bytes, or 20,000 samples of 800 values
MAX_MEMBERS = 64
MAX_DIRECTORY_BYTES = 65_536  # of the archive's list of members, which zipfile reads as a whole
MAX_FILE_BYTES = 4 << 30
BATCH = 32  # samples that are real numbers at a time
HINT = "numpy.savez(FILE, x=samples, y=labels) writes one"
DAMAGED = (  # RuntimeError: a member that is said to be encrypted; TokenError: numpy's second try at a header
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, TypeError, SyntaxError, KeyError, RuntimeError, TokenError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Dataset:
    """A checked archive; samples are read from it when asked for.

    labels: (samples,) int64 of classes, or (samples, outputs) float32 of labels or values, or None.
    """

    path: Path
    samples: int
    labels: Targets | None
    source: Tensor
    dtype: np.dtype[Any]
    fortran: bool = False
    seen: Seen = field(default_factory=lambda: Seen(None))
    faults: Faults = field(default_factory=Faults)  # an archive is whole or refused

    @property
    def names(self) -> None:
        """The file of each sample: there is none."""
        return None

    @property
    def stretches(self) -> None:
        """Nobody says which samples came in one piece."""
        return None

    def batches(self) -> Iterator[NDArray[Any]]:
        """Samples as codes of the model's input, (n, *shape without batch), at most ``BATCH`` at a time.

        Raises: DataError when the archive is damaged or holds a number that is not finite.
        """
        shape = self.source.shape[1:]
        row = math.prod(shape) * self.dtype.itemsize
        try:
            with _archive(self.path) as archive, archive.open("x.npy") as member:
                _header(member, "x")
                whole = None
                if self.fortran:  # the samples lie interleaved: this one case is read as a whole
                    whole = np.frombuffer(_exactly(member, self.samples * row), self.dtype)
                    whole = whole.reshape(self.samples, *shape, order="F")
                for start in range(0, self.samples, BATCH):
                    count = min(BATCH, self.samples - start)
                    if whole is None:
                        part = np.frombuffer(_exactly(member, count * row), self.dtype).reshape(count, *shape)
                    else:
                        part = np.ascontiguousarray(whole[start : start + count])
                    self._look(part)
                    yield _codes(part, self.source, start)
                member.read(1)  # reaching the end is what compares the checksum
        except DAMAGED as fault:
            raise _damaged(self.path, fault) from fault

    def _look(self, part: NDArray[Any]) -> None:
        if part.dtype.kind == "f":
            self.seen.add(part)
        elif (scale := self.source.quantisation) is not None and len(scale.scale) == 1:
            ends = np.array([part.min(), part.max()])  # codes are within the range; only their span can be wrong
            self.seen.add(Affine(scale.scale[0], scale.zero_point[0]).to_real(ends))


@dataclass(frozen=True, slots=True)
class Expected:
    """Which y fits: classes below ``classes``; or, where ``outputs`` is given, that many numbers a sample.

    optional: an archive without y fits too.
    """

    classes: int
    outputs: int | None = None
    optional: bool = False


def open_dataset(path: Path, source: Tensor, *, expected: Expected | None, seen: Seen | None = None) -> Dataset:
    """The samples in ``path`` for a model's input ``source``, with the labels ``expected``, or without for None.

    x: (n, *input shape without batch): floats are real units, the input's own integers are its codes.   y: (n,)
    integers, or (n, outputs) numbers.   seen: is told the numbers that go by.
    Raises: DataError naming what is missing, of another shape or type, or out of range.
    """
    try:
        with _archive(path) as archive:
            _bound(archive, path)
            with archive.open("x.npy") as member:
                shape, fortran, dtype = _header(member, "x")
            labels = None if expected is None else _labels(archive, path, expected)
            size = archive.getinfo("x.npy").file_size
    except OSError as fault:
        raise DataError(f"{path}: {fault.strerror or fault}", hint=HINT) from fault
    except DAMAGED as fault:
        raise _damaged(path, fault) from fault
    fitting = source.shape[1:]
    if len(shape) == 0 or shape[1:] != fitting:
        raise DataError(f"{path}: x has shape {list(shape)}; the model takes [n, {', '.join(map(str, fitting))}]")
    if dtype.kind != "f" and dtype.name != source.dtype:
        raise DataError(
            f"{path}: x is {dtype.name}; the model takes {source.dtype} codes or real numbers",
            hint="give float32 in the units the model was trained with",
        )
    if dtype.kind == "f" and dtype.itemsize not in (2, 4, 8):
        raise DataError(f"{path}: x is {dtype.name}; give float16, float32 or float64")
    if shape[0] == 0:
        raise DataError(f"{path}: x has no samples")
    if size < math.prod(shape) * dtype.itemsize:
        raise DataError(f"{path}: x ends before its {shape[0]} samples do", hint="copy the file again")
    if fortran and size > MAX_TURNED_BYTES:
        raise DataError(
            f"{path}: x is in Fortran order and takes {size} bytes", hint="numpy.ascontiguousarray(x) turns it round"
        )
    if labels is not None and len(labels) != shape[0]:
        raise DataError(f"{path}: x has {shape[0]} samples and y {len(labels)} labels")
    return Dataset(path, shape[0], labels, source, dtype, fortran, seen or Seen(None))


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive ``path``, its list of members within our bounds. Raises: DataError; one of DAMAGED.

    Source: PKWARE's APPNOTE.TXT 4.3.16: the end's record, at most 65,557 bytes before the file's end.
    """
    with open_plain(path, MAX_FILE_BYTES) as file:
        file.seek(-min(file.seek(0, 2), 65_557), 2)
        tail = file.read()
        at = tail.find(b"PK\5\6")
        while at >= 0:  # zipfile takes one of them; which is its affair
            size = int.from_bytes(tail[at + 12 : at + 16], "little")
            if size > MAX_DIRECTORY_BYTES or b"PK\6\7" in tail[max(0, at - 20) : at]:  # the latter: 64 bits
                raise DataError(f"{path}: it has more than {MAX_MEMBERS} members", hint=HINT)
            at = tail.find(b"PK\5\6", at + 1)
        with zipfile.ZipFile(file) as archive:
            yield archive


def _bound(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises: DataError for an archive that lacks a member, has too many, or would unpack to too much."""
    members = {info.filename: info for info in archive.infolist()}
    if len(archive.infolist()) > MAX_MEMBERS:
        raise DataError(f"{path}: it has {len(archive.infolist())} members, more than {MAX_MEMBERS}", hint=HINT)
    if "x.npy" not in members:
        raise DataError(f"{path}: it has no array x", hint=HINT)
    for name in ("x.npy", "y.npy"):
        if name in members and members[name].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path}: {name} is packed by a method that numpy does not write", hint=HINT)
    for name, limit in (("x.npy", MAX_X_BYTES), ("y.npy", MAX_Y_BYTES)):
        if name in members and members[name].file_size > limit:
            raise DataError(f"{path}: {name} unpacks to {members[name].file_size} bytes, more than {limit}")


def _header(member: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of the array whose bytes follow. Raises: DataError, ValueError."""
    version = npy.read_magic(member)  # type: ignore[no-untyped-call]  # numpy leaves it without types
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} has array format {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(member)  # type: ignore[no-untyped-call]
    if dtype.hasobject or dtype.kind not in "iuf" or dtype.shape:
        raise DataError(f"{name} holds {dtype} values instead of numbers", hint=HINT)
    return tuple(shape), bool(fortran) and len(shape) > 1, dtype


def _labels(archive: zipfile.ZipFile, path: Path, wanted: Expected) -> Targets | None:
    if "y.npy" not in archive.namelist():
        if wanted.optional:
            return None
        raise DataError(f"{path}: it has no array y with the labels", hint=HINT)
    with archive.open("y.npy") as member:
        shape, fortran, dtype = _header(member, "y")
        vectors = wanted.outputs is not None and (len(shape) == 2 or dtype.kind == "f")
        if len(shape) != 1 + (vectors and len(shape) == 2) or (dtype.kind not in "iu" and not vectors):
            raise DataError(f"{path}: y is {dtype.name} of shape {list(shape)}; give one integer a sample")
        if math.prod(shape) * dtype.itemsize > MAX_Y_BYTES:
            raise DataError(f"{path}: y of shape {list(shape)} takes more than {MAX_Y_BYTES} bytes")
        labels = np.frombuffer(_exactly(member, math.prod(shape) * dtype.itemsize), dtype)
        member.read(1)
    if vectors:
        return _vectors(labels.reshape(shape, order="F" if fortran else "C"), path, wanted)
    wrong = (labels < 0) | (labels >= wanted.classes)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise DataError(f"{path}: y[{first}] is {labels[first]}; the model has classes 0 to {wanted.classes - 1}")
    return labels.astype(np.int64)


def _vectors(labels: NDArray[Any], path: Path, wanted: Expected) -> NDArray[np.float32]:
    labels = labels.reshape(len(labels), -1)
    if labels.shape[1] != wanted.outputs:
        raise DataError(f"{path}: y has {labels.shape[1]} numbers a sample; the model has {wanted.outputs} outputs")
    finite = np.isfinite(labels).all(axis=1)
    if not finite.all():
        raise DataError(f"{path}: y[{int(np.flatnonzero(~finite)[0])}] holds a number that is not finite")
    return labels.astype(np.float32)


def _codes(part: NDArray[Any], source: Tensor, start: int) -> NDArray[Any]:
    if part.dtype.kind != "f":
        return part.astype(source.dtype)
    finite = np.isfinite(part)
    if not finite.all():
        row = start + int(np.argwhere(~finite)[0][0])
        raise DataError(f"x[{row}] holds a number that is not finite")
    return codes_of(part, source, "x")


def codes_of(real: NDArray[np.floating[Any]], source: Tensor, what: str) -> NDArray[Any]:
    """Finite real numbers of any shape as codes of a model's input. Raises: DataError for an input without a scale."""
    if source.dtype == "float32":
        return real.astype(np.float32)
    scale = source.quantisation
    if scale is None or scale.scale[0] <= 0 or source.dtype not in ("int8", "uint8", "int16"):
        raise DataError(f"{what}: the model's input is {source.dtype} without a scale", hint="give its own codes")
    return Affine(scale.scale[0], scale.zero_point[0]).to_codes(real, source.dtype)


def _exactly(member: IO[bytes], size: int) -> bytes:
    data = member.read(size)
    if len(data) < size:
        raise EOFError("it ends too early")
    return data


def _damaged(path: Path, fault: Exception) -> DataError:
    return DataError(f"{path} is no .npz file that can be read: {str(fault)[:200]}", hint=HINT)


def input_codes(x: NDArray[Any], source: Tensor) -> NDArray[Any]:
    """An array of samples as codes of a model's input. Raises: DataError as ``open_dataset`` and ``batches``."""
    if x.ndim == 0 or x.shape[1:] != tuple(source.shape[1:]):
        raise DataError(f"x has shape {list(x.shape)}; the model takes [n, {', '.join(map(str, source.shape[1:]))}]")
    if x.dtype.kind != "f" and x.dtype.name != source.dtype:
        raise DataError(f"x is {x.dtype}; the model takes {source.dtype} codes or real numbers")
    return _codes(x, source, 0)
