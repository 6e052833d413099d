# SPDX-License-Identifier: Apache-2.0
"""What a demo reached: int8 files put to later windows by the stock interpreter, and the figures made of that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.backbone import open_backbone, runtime_name
from fl_tiny.device.evaluation import classes_of_outputs
from fl_tiny.lab.watch import Arm
from fl_tiny.learn.tflite import read_model

Classes = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Files:
    """The .tflite files of one device. alone: its own labels only.   fleet: the last global head.   kept: its own."""

    before: Path
    alone: Path
    fleet: Path
    kept: Path


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One device. before to personal: accuracies on its later windows.   kept: which candidate it holds.

    samples: labelled ones it learned from.   true, first, last: (n,) classes of the later windows, and what the
    model as shipped and the device's own found.
    """

    name: str
    samples: int
    before: float
    alone: float
    fleet: float
    personal: float
    kept: str
    true: Classes
    first: Classes
    last: Classes

    @property
    def gain(self) -> float:
        """What the fleet gave that the device's own labels did not."""
        return self.personal - self.alone


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A whole demo. labels: a class and device; None: all.   rounds: rows of ``gateway rounds``.

    cold: (before, after) of the device without labels.   sweep: rows of lab/sweep.py.   round_bytes: UDP payload up
    and down, a device and round.   raw_bytes: inputs that the devices learned from.
    """

    labels: int | None
    classes: tuple[str, ...]
    devices: tuple[Measured, ...]
    cold_name: str
    cold: tuple[float, float]
    rounds: tuple[dict[str, Any], ...]
    sweep: tuple[dict[str, Any], ...]
    round_bytes: int
    raw_bytes: int
    seconds: float
    runtime: str

    def mean(self, of: Callable[[Measured], float]) -> float:
        """Over the devices."""
        return float(np.mean([of(device) for device in self.devices]))


def measured(arm: Arm, files: Files, samples: int, kept: str) -> Measured:
    """One device's files, run on its later windows."""
    found = [found_in(path.read_bytes(), arm.later.x) for path in (files.before, files.alone, files.fleet, files.kept)]
    before, alone, fleet, personal = (float(np.mean(each == arm.later.y)) for each in found)
    return Measured(arm.name, samples, before, alone, fleet, personal, kept, arm.later.y, found[0], found[3])


def found_in(data: bytes, x: NDArray[np.int8]) -> Classes:
    """The class of each of ``x``, (n,), by the model in ``data``."""
    return classes_of_outputs(read_model(data), open_backbone(data).run(x))


def runtime() -> str:
    """The interpreter that measured."""
    return runtime_name()


def summary(result: Result) -> dict[str, Any]:
    """The figures of a demo as ``fl-tiny demo --json`` prints them."""
    return {
        "devices": len(result.devices),
        "rounds": sum(row["state"] == "published" for row in result.rounds),
        "before": result.mean(lambda d: d.before),
        "alone": result.mean(lambda d: d.alone),
        "global": result.mean(lambda d: d.fleet),
        "personal": result.mean(lambda d: d.personal),
        "gain": result.mean(lambda d: d.gain),
        "worst": min(d.personal - d.before for d in result.devices),
        "cold_start": result.cold[1],
        "cold_start_before": result.cold[0],
        "seconds": round(result.seconds, 1),
        "bytes_per_round": result.round_bytes,
        "raw_bytes_kept": result.raw_bytes,
    }


def device_rows(result: Result) -> list[dict[str, Any]]:
    """A row a device, then their means."""
    names = ("before", "alone", "global", "personal", "gain")
    rows: list[dict[str, Any]] = [
        {
            "device": d.name,
            "labels": d.samples,
            **dict(zip(names, (d.before, d.alone, d.fleet, d.personal, d.gain), strict=True)),
            "kept": d.kept,
        }
        for d in result.devices
    ]
    means = {name: float(np.mean([row[name] for row in rows])) for name in names}
    return [
        *rows,
        {"device": "mean", "labels": sum(d.samples for d in result.devices) // len(rows), **means, "kept": ""},
    ]


def confusion(true: Sequence[Classes], found: Sequence[Classes], classes: int) -> NDArray[np.int64]:
    """(classes, classes) counts of all devices together: rows true, columns found."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (np.concatenate(true), np.concatenate(found)), 1)
    return counts
