# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny predict``: ask the board's current model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import command, runtime_option, show
from fl_tiny.cli.sources import add_sources, opened, warn


def add(parent: Any) -> None:
    """Declare the command."""
    p = command(parent, "predict", predict, "fl-tiny predict dev --data D.npz --json")
    p.add_argument("dir", type=Path)
    add_sources(p, labels=False)
    runtime_option(p)


def predict(args: argparse.Namespace) -> None:
    """Say of each sample what the board's current model says: its class, its labels, or its values."""
    from fl_tiny import statedir
    from fl_tiny.device.api import Device
    from fl_tiny.device.sources.files import Wanted
    from fl_tiny.learn.loss import Task

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    device = Device.open(args.dir, runtime=args.runtime, reading=True)
    data = opened(args, Wanted(device.model, None, None, device.preprocess))
    found = [_plain(each) for batch in data.batches() for each in device.predict(batch)]
    warn(data)
    lines = [_words(each, device.labels) for each in found]
    key = "values" if device.spec.task is Task.VALUES else "labels"
    result: dict[str, Any] = {key: found, "skipped": len(data.faults)}
    if data.names is not None:
        result["files"] = list(data.names)
        lines = [f"{line}\t{file}" for line, file in zip(lines, data.names, strict=True)]
    show(args, result, "\n".join(lines))


def _plain(each: Any) -> Any:
    """A class as its number, labels as the numbers of those that hold, values as floats."""
    if each.ndim == 0:
        return int(each)
    return [int(i) for i in each.nonzero()[0]] if each.dtype == bool else [float(v) for v in each]


def _words(each: Any, names: tuple[str, ...] | None) -> str:
    if isinstance(each, list):
        return " ".join(_words(one, names) for one in each)
    return f"{each:.6g}" if isinstance(each, float) else (names[each] if names else str(each))
