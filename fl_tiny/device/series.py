# SPDX-License-Identifier: Apache-2.0
"""A CSV table as codes of a model's input: windows of consecutive rows, read twice and never held."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.dataset import BATCH, codes_of
from fl_tiny.errors import DataError
from fl_tiny.files import open_plain
from fl_tiny.learn.inputs import Seen
from fl_tiny.learn.tflite import Tensor
from fl_tiny.protocol.preprocess import Series

MAX_FILE_BYTES = 1 << 30  # guess: read twice, never held
MAX_LINE = 65_536  # characters
MAX_SAMPLES = 1_000_000
RUN = 10  # windows in a row that are held out together, or not at all (guess: a few seconds)
DELIMITERS = ",;\t"
HINT = "a header, then one row of numbers a line"


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
    stretches: tuple[int, ...]

    @property
    def names(self) -> None:
        """The file of each sample: there is none."""
        return None

    def batches(self) -> Iterator[NDArray[Any]]:
        """Samples as codes of the model's input, (n, *shape without batch), at most ``BATCH`` at a time."""
        part: list[NDArray[np.float64]] = []
        done = 0
        for window in windows(self.path, self.how, self.source, labelled=self.labels is not None):
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


def windows(path: Path, how: Series, source: Tensor, *, labelled: bool) -> Iterator[Window]:
    """The samples of a table, in the order of its rows. Raises: DataError naming the line that is wrong."""
    try:
        with io.TextIOWrapper(open_plain(path, MAX_FILE_BYTES), encoding="utf-8-sig", newline="") as file:
            yield from _windows(path, file, how, math.prod(source.shape[1:]), labelled)
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        why = getattr(fault, "strerror", None) or fault
        raise DataError(f"{path} is no table that can be read: {str(why)[:200]}", hint=HINT) from fault


def _windows(path: Path, file: IO[str], how: Series, size: int, labelled: bool) -> Iterator[Window]:
    first = file.readline(MAX_LINE)
    delimiter = max(DELIMITERS, key=first.count)
    header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    assert how.window is not None
    assert how.hop is not None
    columns, label_at, group_at = _columns(path, header, how, size // how.window, labelled)
    rows: list[list[float]] = []
    last: tuple[str | None, str | None] = (None, None)
    skip = run = length = 0
    for number, cells in enumerate(csv.reader(_lines(path, file), delimiter=delimiter), 2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise DataError(f"{path}: row {number} has {len(cells)} cells, the header {len(header)}", hint=HINT)
        label = cells[label_at].strip() if label_at is not None else None
        here = label, cells[group_at] if group_at is not None else None
        if here != last:
            rows, last, skip = [], here, 0
            run, length = run + 1, 0
        if skip:
            skip -= 1
            continue
        rows.append([_number(path, number, header[at], cells[at]) for at in columns])
        if len(rows) == how.window:
            if length == (RUN if how.window > 1 else 1):  # single rows are measurements, not pieces of a stream
                run, length = run + 1, 0
            yield Window(np.array(rows), label, run)
            length += 1
            rows, skip = rows[how.hop :], max(0, how.hop - how.window)


def _columns(
    path: Path, header: list[str], how: Series, wanted: int, labelled: bool
) -> tuple[list[int], int | None, int | None]:
    """Places of the numbers, the label and the group in a row."""
    if len(set(header)) != len(header) or header == []:
        raise DataError(f"{path}: its first line is no header of different names", hint=HINT)
    needed = [*(how.columns or ()), *([how.label] if labelled else []), *([how.group] if how.group else [])]
    for name in needed:
        if name not in header:
            raise DataError(f"{path} has no column {name}", hint=f"it has {', '.join(header)[:200]}")
    others = [name for name in header if name not in (how.label, how.group)]
    columns = [header.index(name) for name in how.columns or others]
    if len(columns) != wanted:
        names = ", ".join(header[at] for at in columns)[:200]
        raise DataError(f"{path} has {len(columns)} columns of numbers ({names}), the model takes {wanted}")
    return columns, header.index(how.label) if labelled else None, header.index(how.group) if how.group else None


def _lines(path: Path, file: IO[str]) -> Iterator[str]:
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise DataError(f"{path} has a line of more than {MAX_LINE} characters", hint=HINT)
        yield line


def _number(path: Path, row: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: row {row}, {column[:48]}: {cell[:48]!r} is no number", hint=HINT)
    return value
