# SPDX-License-Identifier: Apache-2.0
"""A CSV table as codes of a model's input: windows of consecutive rows, read twice and never held."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.dataset import BATCH, codes_of
from fl_tiny.device.faults import Faults
from fl_tiny.errors import DataError, named
from fl_tiny.files import open_plain
from fl_tiny.learn.inputs import Seen
from fl_tiny.learn.tflite import Tensor
from fl_tiny.protocol.preprocess import Series

MAX_FILE_BYTES = 1 << 30  # guess: read twice, never held
MAX_LINE = 65_536  # characters
MAX_SAMPLES = 1_000_000
RUN = 10  # windows in a row that are held out together, or not at all (guess: a few seconds)
DELIMITERS = ",;\t"
ENCODINGS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
DECIMAL_COMMA = re.compile(r"[+-]?([0-9]+,[0-9]*|,[0-9]+)([eE][+-]?[0-9]+)?")
GROUPED = re.compile(r"[+-]?[0-9]{1,3}([., '\u00a0\u2009\u202f][0-9]{3})+([.,][0-9]+)?")  # 1.234,5 or 1 234
HINT = "a header, then one row of numbers a line"
COMMAS = "save it with semicolons, or with points in its numbers"
AS_UTF8 = "save it as CSV in UTF-8, or iconv -f WINDOWS-1252 -t UTF-8 IN > OUT.csv"


class Window(NamedTuple):
    """``window`` consecutive rows of one label and group, (window, columns). run: windows in a row have one number."""

    values: NDArray[np.float64]
    label: str | None
    run: int


@dataclass(frozen=True, slots=True)
class Table:
    """A checked table, read again when asked for. labels: (samples,) int64, or None.   how: settled for this model.

    stretches: the run of each sample.
    """

    path: Path
    samples: int
    labels: NDArray[np.int64] | None
    source: Tensor
    how: Series
    seen: Seen
    faults: Faults
    stretches: tuple[int, ...]

    @property
    def names(self) -> None:
        """The file of each sample: there is none."""
        return None

    def batches(self) -> Iterator[NDArray[Any]]:
        """Samples as codes of the model's input, (n, *shape without batch), at most ``BATCH`` at a time."""
        part: list[NDArray[np.float64]] = []
        done = 0
        again = Faults(skip=True)  # the same as were told of when the table was opened
        for window in windows(self.path, self.how, self.source, again, labelled=self.labels is not None):
            part.append(window.values)
            if len(part) == BATCH or done + len(part) == self.samples:
                done += len(part)
                yield self._codes(np.stack(part))
                part = []
        if part or done != self.samples:
            raise DataError(f"{self.path} changed while it was read")

    def _codes(self, rows: NDArray[np.float64]) -> NDArray[Any]:
        if self.how.mean is not None:
            rows = rows - np.array(self.how.mean)
        if self.how.std is not None:
            rows = rows / np.array(self.how.std)
        self.seen.add(rows)
        return codes_of(rows.reshape(len(rows), *self.source.shape[1:]), self.source, "the preprocessing")


def windows(path: Path, how: Series, source: Tensor, faults: Faults, *, labelled: bool) -> Iterator[Window]:
    """The samples of a table, in the order of its rows.

    faults: is told of rows that cannot be used; each ends a window.   Raises: DataError for the table as a whole.
    """
    try:
        with open_plain(path, MAX_FILE_BYTES) as raw:
            start = raw.read(4)
            raw.seek(0)
            encoding = next((name for mark, name in ENCODINGS if start.startswith(mark)), "utf-8")
            if b"\0" in start and encoding == "utf-8":
                raise DataError(f"{path} is no text in UTF-8", hint=AS_UTF8)
            with io.TextIOWrapper(raw, encoding=encoding, newline="") as file:
                yield from _windows(path, _Lines(path, file), how, math.prod(source.shape[1:]), faults, labelled)
    except (OSError, csv.Error) as fault:
        why = getattr(fault, "strerror", None) or fault
        raise DataError(f"{path} is no table that can be read: {str(why)[:200]}", hint=HINT) from fault
    except UnicodeError as fault:
        raise DataError(f"{path} is no text in UTF-8", hint=AS_UTF8) from fault


class _Lines:
    """The lines of a table, each bounded, counted, comments left out. Raises: DataError."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path, self._file, self.number = path, file, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        while line := self._file.readline(MAX_LINE):
            self.number += 1
            if len(line) == MAX_LINE:
                raise DataError(f"{self._path} has a line of more than {MAX_LINE} characters", hint=HINT)
            if not line.startswith("#"):
                return line
        raise StopIteration


def _windows(path: Path, lines: _Lines, how: Series, size: int, faults: Faults, labelled: bool) -> Iterator[Window]:
    delimiter, header = _header(path, lines)
    assert how.window is not None
    assert how.hop is not None
    columns, label_at, group_at = _columns(path, header, how, size // how.window, labelled)
    numbers = _Numbers(delimiter)
    rows: list[list[float]] = []
    last: tuple[str | None, str | None] = (None, None)
    labels: dict[str, str] = {}  # each once in memory
    skip = run = length = 0
    for cells in csv.reader(lines, delimiter=delimiter):
        if not any(cell.strip() for cell in cells):
            continue
        where = f"row {lines.number}"
        faults.total += 1
        try:
            _check_width(path, where, cells, header, delimiter)
            label = cells[label_at].strip() if label_at is not None else None
            here = label, cells[group_at] if group_at is not None else None
            if here != last:
                rows, last, skip = [], here, 0
                run, length = run + 1, 0
            if skip:
                skip -= 1
                continue
            rows.append([numbers.of(path, where, header[at], cells[at]) for at in columns])
        except DataError as fault:
            faults.add(where, fault)
            rows, skip = [], 0
            continue
        if len(rows) == how.window:
            if length == (RUN if how.window > 1 else 1):  # single rows are measurements, not pieces of a stream
                run, length = run + 1, 0
            yield Window(np.array(rows), None if label is None else labels.setdefault(label, label), run)
            length += 1
            rows, skip = rows[how.hop :], max(0, how.hop - how.window)


def _header(path: Path, lines: _Lines) -> tuple[str, list[str]]:
    """What divides the cells, and the names of the columns; empty ones at the end are left out. Raises: DataError."""
    first = next(lines, "")
    said = re.fullmatch(r'"?sep=(.)"?\s*', first)  # for Excel
    if said:
        first = next(lines, "")
    cells = {
        delimiter: [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
        for delimiter in ([said.group(1)] if said and said.group(1) in DELIMITERS else DELIMITERS)
    }
    delimiter, header = max(cells.items(), key=lambda item: len(item[1]))
    while header and not header[-1]:
        header.pop()
    if len(set(header)) != len(header) or header == []:
        raise DataError(f"{path}: its first line is no header of different names", hint=HINT)
    if all(NUMBER.fullmatch(name) or DECIMAL_COMMA.fullmatch(name) for name in header):
        raise DataError(f"{path}: its first line holds numbers and no names of columns", hint=HINT)
    return delimiter, header


def _check_width(path: Path, where: str, cells: list[str], header: list[str], delimiter: str) -> None:
    if len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
        hint = COMMAS if delimiter == "," and len(cells) > len(header) else HINT
        raise DataError(f"{path}: {where} has {len(cells)} cells, the header {len(header)}", hint=hint)


def _columns(
    path: Path, header: list[str], how: Series, wanted: int, labelled: bool
) -> tuple[list[int], int | None, int | None]:
    """Places of the numbers, the label and the group in a row."""
    needed = [*(how.columns or ()), *([how.label] if labelled else []), *([how.group] if how.group else [])]
    for name in needed:
        if name not in header:
            raise DataError(f"{path} has no column {name}", hint=f"it has {named(header)}")
    others = [name for name in header if name not in (how.label, how.group)]
    columns = [header.index(name) for name in how.columns or others]
    if len(columns) != wanted:
        names = named([header[at] for at in columns])
        raise DataError(f"{path} has {len(columns)} columns of numbers ({names}), the model takes {wanted}")
    return columns, header.index(how.label) if labelled else None, header.index(how.group) if how.group else None


class _Numbers:
    """Cells as numbers. Where semicolons or tabs divide, the decimal mark is a comma or a point, one for the table."""

    def __init__(self, delimiter: str) -> None:
        self._commas_fit = delimiter != ","
        self._mark = ""

    def of(self, path: Path, where: str, column: str, cell: str) -> float:
        """The number in a cell. Raises: DataError."""
        text = cell.strip()
        mark = "," if "," in text else "." if "." in text else ""
        shown = f"{path}: {where}, {column[:48]}: {text[:48]!r}"
        if mark == "," and not self._commas_fit and DECIMAL_COMMA.fullmatch(text):
            raise DataError(f"{shown} may be a decimal comma or thousands, as commas divide the cells", hint=COMMAS)
        if NUMBER.fullmatch(text) or DECIMAL_COMMA.fullmatch(text):
            if mark and self._mark and mark != self._mark:
                raise DataError(f"{shown}: other numbers have {self._mark!r}, this one {mark!r}", hint="use one mark")
            self._mark = self._mark or mark
            value = float(text.replace(",", "."))
            if math.isfinite(value):
                return value
        if GROUPED.fullmatch(text):
            raise DataError(f"{shown} groups thousands", hint="save its numbers without separators of thousands")
        raise DataError(f"{shown} is no number" if text else f"{path}: {where}, {column[:48]} is empty", hint=HINT)
