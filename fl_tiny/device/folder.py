# SPDX-License-Identifier: Apache-2.0
"""Files of samples in folders named by their labels, and which class of the model each label is."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_tiny.errors import DataError

MAX_FILES = 100_000  # guess: more are a mistaken path
SHOWN = 12  # labels in a message
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


def labelled_files(root: Path, suffixes: Collection[str]) -> Files:
    """Every file below the folders of ``root``, with its folder's name; hidden ones are passed over.

    Raises: DataError naming what is no such file, or when there is none.
    """
    paths: list[Path] = []
    labels: list[str] = []
    if not root.is_dir():
        raise DataError(f"{root} is no directory", hint=LAYOUT)
    for entry in _listed(root):
        if not entry.is_dir():
            raise DataError(f"{entry} stands in no folder of a label", hint=LAYOUT)
        for path in _below(entry, suffixes):
            paths.append(path)
            labels.append(entry.name)
            _bound(root, paths)
    if not paths:
        raise DataError(f"{root} has no files", hint=LAYOUT)
    return Files(tuple(paths), tuple(labels))


def all_files(root: Path, suffixes: Collection[str]) -> Files:
    """``root`` itself when it is a file, else every file below it, in the order of paths. Raises: DataError."""
    if not root.is_dir():
        return Files((root,), None)
    paths: list[Path] = []
    for path in _below(root, suffixes):
        paths.append(path)
        _bound(root, paths)
    if not paths:
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
        for label in labels:
            if label not in known:
                raise DataError(f"{where}: {_short([label])} is no class of the model", hint=f"it has {_short(names)}")
        return Classes({label: known[label] for label in labels})
    if all(label.isascii() and label.isdecimal() for label in labels):
        for label in labels:
            if len(label) > 9 or int(label) >= classes:
                raise DataError(f"{where}: class {_short([label])}; the model has classes 0 to {classes - 1}")
        return Classes({label: int(label) for label in labels})
    if len(labels) != classes:
        raise DataError(
            f"{where}: {len(labels)} labels ({_short(labels)}) for {classes} classes without names",
            hint=f"give the names with --labels, or call the labels 0 to {classes - 1}",
        )
    return Classes({label: number for number, label in enumerate(labels)}, guessed=True)


def _below(folder: Path, suffixes: Collection[str]) -> Iterable[Path]:
    for path in _listed(folder):
        if path.is_dir() and not path.is_symlink():  # a link may lead round in a circle
            yield from _below(path, suffixes)
        elif path.suffix.lower() not in suffixes:
            raise DataError(f"{path} is no file of this kind", hint=f"files end in {', '.join(sorted(suffixes))}")
        else:
            yield path


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder / entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))
    except OSError as fault:
        raise DataError(f"{folder}: {fault.strerror or fault}") from fault


def _bound(root: Path, paths: list[Path]) -> None:
    if len(paths) > MAX_FILES:
        raise DataError(f"{root} has more than {MAX_FILES} files", hint="add them in parts")


def _short(labels: Sequence[str]) -> str:
    more = "" if len(labels) <= SHOWN else f" and {len(labels) - SHOWN} more"
    return ", ".join(label[:48] for label in labels[:SHOWN]) + more
