# SPDX-License-Identifier: Apache-2.0
"""Files of samples in folders named by their labels, which class each label is, and what cannot be used of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.dataset import BATCH
from fl_tiny.device.faults import Faults
from fl_tiny.errors import DataError, named
from fl_tiny.files import is_leftover
from fl_tiny.learn.inputs import Seen

MAX_FILES = 100_000  # guess: more are a mistaken path
CONVERTERS = {  # what phones and cameras write, and what makes a file of it that is read
    **dict.fromkeys((".m4a", ".mp4", ".aac", ".amr", ".3gp", ".wma", ".webm", ".mov"), "ffmpeg -i IN OUT.wav"),
    **dict.fromkeys((".heic", ".heif"), "heif-convert IN.heic OUT.jpg; or let the phone take JPEGs"),
    **dict.fromkeys((".avif", ".gif", ".tif", ".tiff"), "convert IN OUT.png"),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "save the sheet as CSV in UTF-8"),
}
LAYOUT = "give DIR2 with one folder a label: DIR2/LABEL/FILE"


@dataclass(frozen=True, slots=True)
class Classes:
    """Which class each label is.   guessed: by the alphabet alone, so that a person should look at it."""

    numbers: dict[str, int]
    guessed: bool = False

    @property
    def note(self) -> str:
        """What was guessed, as one line; empty when nothing was."""
        pairs = " ".join(f"{label}={number}" for label, number in self.numbers.items())
        return f"classes by the alphabet: {pairs}" if self.guessed else ""


@dataclass(frozen=True, slots=True)
class Files:
    """Files in the order of their paths; labels: one a file, None when nobody asked."""

    paths: tuple[Path, ...]
    labels: tuple[str, ...] | None


class FileSamples:
    """Samples that are read from files one at a time; those that cannot be read are left out and told of."""

    def __init__(
        self,
        paths: Sequence[Path],
        labels: NDArray[np.int64] | None,
        read: Callable[[int], NDArray[Any]],
        seen: Seen,
        faults: Faults,
        *,
        stretched: bool = False,
    ) -> None:
        """paths: the file of each sample.   read: a sample by its number as codes. Raises DataError.

        stretched: samples of one file came in one piece.
        """
        self._paths, self._labels, self._read, self._stretched = paths, labels, read, stretched
        self.seen, self.faults = seen, faults
        self._bad: set[int] = set()

    @property
    def samples(self) -> int:
        """How many there are, as far as anybody knows."""
        return len(self._paths) - len(self._bad)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The class of each sample, or None."""
        return None if self._labels is None else np.delete(self._labels, sorted(self._bad))

    @property
    def names(self) -> tuple[str, ...]:
        """The file of each sample."""
        return tuple(str(path) for number, path in enumerate(self._paths) if number not in self._bad)

    @property
    def stretches(self) -> tuple[int, ...] | None:
        """A number for each sample, the same for those that came in one piece; None where nobody says."""
        numbers: dict[str, int] = {}
        return tuple(numbers.setdefault(name, len(numbers)) for name in self.names) if self._stretched else None

    def batches(self) -> Iterator[NDArray[Any]]:
        """Samples as codes of the model's input, (n, *shape without batch), at most ``BATCH`` at a time.

        Raises: DataError after the last with all that cannot be read, unless that is passed over; EnvironmentFault.
        """
        part: list[NDArray[Any]] = []
        for number, path in enumerate(self._paths):
            try:
                part.append(self._read(number))
            except DataError as fault:
                self._bad.add(number)
                self.faults.add(path, fault)
            if self.faults.end_it:
                part = []  # the rest is only looked through for more of them
            if len(part) == BATCH:
                yield np.stack(part)
                part = []
        self.faults.check(self.samples)
        if part:
            yield np.stack(part)


def labelled_files(root: Path, suffixes: Collection[str], faults: Faults) -> Files:
    """Every file below the folders of ``root``, with its folder's name; hidden ones and leftovers are passed over.

    faults: is told of what is no such file.   Raises: DataError when there is none at all.
    """
    paths: list[Path] = []
    labels: list[str] = []
    if not root.is_dir():
        raise DataError(f"{root} is no directory", hint=LAYOUT)
    for entry in _listed(root):
        if not entry.is_dir():
            faults.add(entry, DataError(f"{entry} stands in no folder of a label", hint=LAYOUT))
            continue
        for path in _below(entry, suffixes, faults):
            paths.append(path)
            labels.append(entry.name)
            _bound(root, paths)
    faults.total = len(paths) + len(faults)
    if not paths:
        faults.check(0)
        raise DataError(f"{root} has no files", hint=LAYOUT)
    return Files(tuple(paths), tuple(labels))


def all_files(root: Path, suffixes: Collection[str], faults: Faults) -> Files:
    """``root`` itself when it is a file, else every file below it, in the order of paths.

    faults: is told of what is no such file.   Raises: DataError when there is none at all.
    """
    if not root.is_dir():
        return Files((root,), None)
    paths: list[Path] = []
    for path in _below(root, suffixes, faults):
        paths.append(path)
        _bound(root, paths)
    faults.total = len(paths) + len(faults)
    if not paths:
        faults.check(0)
        raise DataError(f"{root} has no files", hint=f"give files that end in {', '.join(sorted(suffixes))}")
    return Files(tuple(paths), None)


def class_numbers(found: Iterable[str], names: Sequence[str] | None, classes: int, where: Path) -> Classes:
    """The class of each label: by the model's names, else as the number it is, else by the alphabet if all are there.

    Raises: DataError naming a label that is no class, and those that are.
    """
    labels = sorted(set(found))
    if names is not None:
        if len(names) != classes:
            raise DataError(f"{len(names)} names of labels for {classes} classes", hint="give one name a class")
        known = {name: number for number, name in enumerate(names)}
        if unknown := [label for label in labels if label not in known]:
            are = "is no class" if len(unknown) == 1 else "are no classes"
            raise DataError(f"{where}: {named(unknown)} {are} of the model", hint=f"it has {named(names)}")
        return Classes({label: known[label] for label in labels})
    if all(label.isascii() and label.isdecimal() for label in labels):
        if beyond := [label for label in labels if len(label) > 9 or int(label) >= classes]:
            raise DataError(f"{where}: class {named(beyond)}; the model has classes 0 to {classes - 1}")
        return Classes({label: int(label) for label in labels})
    if len(labels) != classes:
        raise DataError(
            f"{where}: {len(labels)} labels ({named(labels)}) for {classes} classes without names",
            hint=f"give {classes} names with --labels, or call the labels by their numbers, 0 to {classes - 1}",
        )
    return Classes({label: number for number, label in enumerate(labels)}, guessed=True)


def _below(folder: Path, suffixes: Collection[str], faults: Faults) -> Iterable[Path]:
    try:
        entries = _listed(folder)
    except DataError as fault:
        faults.add(folder, fault)
        return
    for path in entries:
        suffix = path.suffix.lower()
        if path.is_dir() and not path.is_symlink():  # a link may lead round in a circle
            yield from _below(path, suffixes, faults)
        elif suffix in suffixes:
            yield path
        else:
            way_out = CONVERTERS.get(suffix, f"files end in {named(sorted(suffixes))}")
            faults.add(path, DataError(f"{path} is no file of this kind", hint=way_out))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder / entry.name for entry in os.scandir(folder) if not is_leftover(entry.name))
    except OSError as fault:
        raise DataError(f"{folder}: {fault.strerror or fault}", hint="may you read it?") from fault


def _bound(root: Path, paths: list[Path]) -> None:
    if len(paths) > MAX_FILES:
        raise DataError(f"{root} has more than {MAX_FILES} files", hint="add them in parts")
