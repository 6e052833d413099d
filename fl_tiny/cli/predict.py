# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny predict``: ask the board's current model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fl_tiny.cli.common import command, show
from fl_tiny.cli.sources import add_sources, opened, warn


def add(parent: Any) -> None:
    """Declare the command."""
    p = command(parent, "predict", predict, "fl-tiny predict dev --data D.npz --json")
    p.add_argument("dir", type=Path)
    add_sources(p, labels=False)


def predict(args: argparse.Namespace) -> None:
    """Name the class of each sample by the board's current model."""
    from fl_tiny import statedir
    from fl_tiny.device.api import Device
    from fl_tiny.device.sources import Wanted

    if args.dir.exists():
        statedir.act_as_owner(args.dir)
    device = Device.open(args.dir)
    data = opened(args, Wanted(device.model, None, None, device.preprocess))
    found = [int(label) for batch in data.batches() for label in device.predict(batch)]
    warn(data)
    names = device.labels
    lines = [names[label] if names else str(label) for label in found]
    files = data.names
    if files is None:
        show(args, {"labels": found}, "\n".join(lines))
        return
    text = "\n".join(f"{line}\t{file}" for line, file in zip(lines, files, strict=True))
    show(args, {"labels": found, "files": list(files)}, text)
