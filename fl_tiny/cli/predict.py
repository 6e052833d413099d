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
    """Name the class of each sample by the board's current model."""
    from fl_tiny import statedir
    from fl_tiny.device.api import Device
    from fl_tiny.device.dataset import open_dataset

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    device = Device.open(args.dir, runtime=args.runtime)
    data = open_dataset(args.data, device.model.input, classes=None)
    found = [int(label) for batch in data.batches() for label in device.predict(batch)]
    names = device.labels
    show(args, {"labels": found}, "\n".join(names[i] if names else str(i) for i in found))
