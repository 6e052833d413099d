# SPDX-License-Identifier: Apache-2.0
"""The demo's fleet: smartwatch exercises of ten arms that learn, and of an eleventh that joins without labels."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = "data"
DEVICES = 10  # arms with labels; ORIGIN.md
EARLIER, LATER = 0, 1  # values of the column ``part``
SIDES = ("left", "right")
SEED = 1  # of the draw of labelled windows


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Some windows of one arm. x: (n, 100, 1, 6) int8, codes of the model's input.   y: (n,) int64."""

    x: NDArray[np.int8]
    y: NDArray[np.int64]

    def rows(self, chosen: NDArray[Any]) -> Part:
        """Only the rows that an index or a mask names."""
        return Part(self.x[chosen], self.y[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One device. name: such as ``w6-left``.   earlier: what it may learn from.   later: what it is tested on."""

    number: int
    name: str
    earlier: Part
    later: Part


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """The whole package data. arms: the fleet.   cold: the device without labels, all of whose windows are later."""

    model: bytes
    classes: tuple[str, ...]
    arms: tuple[Arm, ...]
    cold: Arm


def load() -> Watch:
    """The model and the eleven arms, from the files beside this module (data/ORIGIN.md says how they were made)."""
    folder = resources.files(__package__) / DATA
    with np.load(io.BytesIO((folder / "watch.npz").read_bytes()), allow_pickle=False) as archive:
        table = {key: archive[key] for key in archive.files}
    arms = tuple(_arm(table, number) for number in range(DEVICES + 1))
    classes = tuple(str(name) for name in table["classes"])
    return Watch((folder / "watch.tflite").read_bytes(), classes, arms[:DEVICES], arms[DEVICES])


def labelled(arm: Arm, per_class: int | None, seed: int = SEED) -> Part:
    """``per_class`` windows of each class, drawn from the whole earlier part and in its order; None: all of it."""
    pool = arm.earlier
    if per_class is None:
        return pool
    rng = np.random.default_rng([seed, arm.number])
    taken = [rng.permutation(np.flatnonzero(pool.y == label))[:per_class] for label in np.unique(pool.y)]
    return pool.rows(np.sort(np.concatenate(taken)))


def _arm(table: dict[str, NDArray[Any]], number: int) -> Arm:
    own = table["arm"] == number
    parts = [
        Part(table["x"][own & (table["part"] == part)], table["y"][own & (table["part"] == part)].astype(np.int64))
        for part in (EARLIER, LATER)
    ]
    first = int(np.flatnonzero(own)[0])
    return Arm(number, f"w{table['wearer'][first]}-{SIDES[table['side'][first]]}", *parts)
