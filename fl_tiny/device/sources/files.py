# SPDX-License-Identifier: Apache-2.0
"""Samples from files that people have: arrays, folders of pictures or of recordings, a table; all read alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device import audio, images, sound
from fl_tiny.device.dataset import Expected, open_dataset
from fl_tiny.device.faults import Faults
from fl_tiny.device.folder import Classes, Files, all_files, class_numbers, labelled_files
from fl_tiny.device.series import MAX_SAMPLES, Table, windows
from fl_tiny.errors import ConfigError, DataError
from fl_tiny.learn.inputs import Seen, input_range
from fl_tiny.learn.loss import Targets
from fl_tiny.learn.tflite import Model
from fl_tiny.protocol.prepare import settled
from fl_tiny.protocol.preprocess import Audio, Images, Preprocess, Series

T = TypeVar("T", Images, Audio, Series)


class Samples(Protocol):
    """Samples that are read a batch at a time; ``seen`` knows after that whether they can be right.

    stretches: a number a sample, equal for those that came in one piece; None: each may stand for itself.
    """

    @property
    def samples(self) -> int: ...
    @property
    def labels(self) -> Targets | None: ...
    @property
    def names(self) -> Sequence[str] | None: ...
    @property
    def stretches(self) -> Sequence[int] | None: ...
    @property
    def seen(self) -> Seen: ...
    @property
    def faults(self) -> Faults: ...
    def batches(self) -> Iterator[NDArray[Any]]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """Where samples are: kind "data" (.npz), "images", "wav" or "csv"."""

    kind: str
    path: Path


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the samples are for. expected: the labels that fit, None: no labels.   names: of the classes, if known.

    table: how inputs are made; None: as the model's input says.
    """

    model: Model
    expected: Expected | None
    names: Sequence[str] | None = None
    table: Preprocess | None = None


def open_samples(source: Source, wanted: Wanted, *, skip_bad: bool = False) -> tuple[Samples, str]:
    """The samples, and what was guessed of their classes, as a line to show.

    skip_bad: files and rows that cannot be used are passed over; else all of them end it in one message, here or after
    the last batch.
    Raises: DataError for samples that do not fit; ConfigError for a table that does not fit the model.
    """
    seen = Seen(input_range(wanted.model))
    if source.kind == "data":
        return open_dataset(source.path, wanted.model.input, expected=wanted.expected, seen=seen), ""
    faults = Faults(source.path, skip=skip_bad, unit="rows" if source.kind == "csv" else "files")
    if source.kind == "csv":
        return _table(source.path, wanted, seen, faults)
    if source.kind == "images":
        how = _how(Images(), wanted)
        files = _files(source.path, images.SUFFIXES, wanted, faults)
        labels, classes = _numbers(files.labels, wanted, source.path)
        return images.pictures(files.paths, labels, wanted.model.input, how, seen, faults), classes.note
    return _recordings(source.path, wanted, seen, faults)


def _recordings(path: Path, wanted: Wanted, seen: Seen, faults: Faults) -> tuple[Samples, str]:
    how = _how(Audio(), wanted)
    files = _files(path, sound.SUFFIXES, wanted, faults)
    clips: list[audio.Clip] = []
    labels: list[str] = []
    for number, file in enumerate(files.paths):
        try:
            made = audio.clips_of(file, how)
        except DataError as fault:
            faults.add(file, fault)
            continue
        clips += made
        labels += [files.labels[number]] * len(made) if files.labels is not None else []
        if len(clips) > audio.MAX_CLIPS:
            raise DataError(f"{path} gives more than {audio.MAX_CLIPS} clips", hint="add it in parts")
    if not clips:
        faults.check(0)
    numbers, classes = _numbers(tuple(labels) if files.labels is not None else None, wanted, path)
    return audio.recordings(clips, numbers, wanted.model.input, how, seen, faults), classes.note


def _table(path: Path, wanted: Wanted, seen: Seen, faults: Faults) -> tuple[Samples, str]:
    how = _how(Series(), wanted)
    labels: list[str | None] = []
    runs: list[int] = []
    for window in windows(path, how, wanted.model.input, faults, labelled=wanted.expected is not None):
        labels.append(window.label)
        runs.append(window.run)
        if len(labels) > MAX_SAMPLES:
            raise DataError(f"{path} gives more than {MAX_SAMPLES} samples", hint="add it in parts")
    faults.check(len(labels))
    if not labels:
        raise DataError(f"{path} has no {how.window} consecutive rows of one label", hint="is the window too long?")
    texts = None if wanted.expected is None else tuple(str(label) for label in labels)
    numbers, classes = _numbers(texts, wanted, path)
    return Table(path, len(labels), numbers, wanted.model.input, how, seen, faults, tuple(runs)), classes.note


def _files(path: Path, suffixes: frozenset[str], wanted: Wanted, faults: Faults) -> Files:
    return (all_files if wanted.expected is None else labelled_files)(path, suffixes, faults)


def _numbers(labels: tuple[str, ...] | None, wanted: Wanted, where: Path) -> tuple[NDArray[np.int64] | None, Classes]:
    if labels is None or wanted.expected is None:
        return None, Classes({})
    classes = class_numbers(labels, wanted.names, wanted.expected.classes, where)
    return np.array([classes.numbers[label] for label in labels], np.int64), classes


def _how(default: T, wanted: Wanted) -> T:
    """The table, or the default of this kind, settled for the model."""
    table = default if wanted.table is None else wanted.table
    if not isinstance(table, type(default)):
        raise DataError(
            f"the preprocessing is of kind {table.kind}, the samples are of kind {default.kind}",
            hint="a fleet's preprocessing is what `gateway init` signed; elsewhere give --preprocess",
        )
    how, faults = settled(table, wanted.model)
    if faults:
        raise _refused(faults, given=wanted.table is not None)
    assert isinstance(how, type(default))
    return how


def _refused(faults: list[str], *, given: bool) -> ConfigError | DataError:
    """What to raise for a table with faults, or for a model that needs one."""
    if given:
        return ConfigError("preprocess: " + "; ".join(faults), hint="docs/config.md lists the keys")
    hint = "give the table [preprocess]: docs/config.md"
    if any(fault.startswith("range is needed") for fault in faults):
        hint = '--preprocess P.toml with kind = "image" and range = [0, 1], [-1, 1] or [0, 255]: as it was trained'
    return DataError("the model's input does not say how samples become numbers: " + "; ".join(faults), hint=hint)
