# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny predict``: ask the board's current model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import command, runtime_option, show


def add(parent: Any) -> None:
    """Declare the command."""
    p = command(parent, "predict", predict, "fl-tiny predict dev --data D.npz --json")
    p.add_argument("dir", type=Path)
    p.add_argument("--data", type=Path, required=True, metavar="D.npz", help="array x")
    runtime_option(p)


def predict(args: argparse.Namespace) -> None:
    """Say of each sample what the board's current model says: its class, its labels, or its values."""
    from fl_tiny import statedir
    from fl_tiny.device.api import Device
    from fl_tiny.device.dataset import open_dataset
    from fl_tiny.learn.loss import Task

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    device = Device.open(args.dir, runtime=args.runtime)
    data = open_dataset(args.data, device.model.input, wanted=None)
    found = [_plain(each) for batch in data.batches() for each in device.predict(batch)]
    names = device.labels
    key = "values" if device.spec.task is Task.VALUES else "labels"
    show(args, {key: found}, "\n".join(_words(each, names) for each in found))


def _plain(each: Any) -> Any:
    """A class as its number, labels as the numbers of those that hold, values as floats."""
    if each.ndim == 0:
        return int(each)
    return [int(i) for i in each.nonzero()[0]] if each.dtype == bool else [float(v) for v in each]


def _words(each: Any, names: tuple[str, ...] | None) -> str:
    if isinstance(each, list):
        return " ".join(_words(one, names) for one in each)
    return f"{each:.6g}" if isinstance(each, float) else (names[each] if names else str(each))
