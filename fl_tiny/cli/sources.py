# SPDX-License-Identifier: Apache-2.0
"""The options that say where samples are, shared by every command that reads some."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fl_tiny.cli.common import progress

if TYPE_CHECKING:
    from fl_tiny.device.sources.files import Samples, Wanted
    from fl_tiny.learn.tflite import Model
    from fl_tiny.protocol.preprocess import Preprocess


def add_sources(parser: argparse.ArgumentParser, *, labels: bool = True, own_table: bool = False) -> None:
    """Declare --data, --images, --wav and --csv, one of which is needed; ``own_table``: --preprocess and --labels."""
    below = "DIR2/LABEL/FILE" if labels else "files, or one file"
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--data", type=Path, metavar="D.npz", help="arrays x and y" if labels else "array x")
    which.add_argument("--images", type=Path, metavar="DIR2", help=f"pictures: {below}")
    which.add_argument("--wav", type=Path, metavar="DIR2", help=f"recordings: {below}")
    column = ", one of them the label" if labels else ""
    which.add_argument("--csv", type=Path, metavar="D.csv", help=f"a table with a header, columns of numbers{column}")
    parser.add_argument(
        "--skip-bad", action="store_true", help="go on without the files and rows that cannot be used, and count them"
    )
    if own_table:
        parser.add_argument("--preprocess", type=Path, metavar="P.toml", help="how files become the model's input")
        parser.add_argument("--labels", type=Path, metavar="L.txt", help="names of the classes, one a line")


def opened(args: argparse.Namespace, wanted: Wanted) -> Samples:
    """The samples that the command line names; what was guessed of their classes goes to stderr."""
    from fl_tiny.device.sources.files import Source, open_samples

    kind = next(kind for kind in ("data", "images", "wav", "csv") if getattr(args, kind) is not None)
    samples, note = open_samples(Source(kind, getattr(args, kind)), wanted, skip_bad=args.skip_bad)
    if note:
        progress(note)
    return samples


def own_table(args: argparse.Namespace) -> Preprocess | None:
    """The table of --preprocess. Raises: ConfigError with all its faults."""
    from fl_tiny import config

    return None if args.preprocess is None else config.load_preprocess(args.preprocess)


def own_names(args: argparse.Namespace, model: Model) -> tuple[str, ...] | None:
    """The names of --labels, else those in the model's metadata. Raises: DataError, ModelError."""
    from fl_tiny.device.evaluation import expected_of
    from fl_tiny.labels import labels_of, read_labels

    classes = expected_of(model).classes
    return labels_of(model.data, classes) if args.labels is None else read_labels(args.labels, classes)


def warn(samples: Samples) -> None:
    """Say on stderr what was passed over, and when the samples that went by cannot be what the model expects."""
    if samples.faults:
        progress(f"passed over: {samples.faults.summary()}")
    doubt = samples.seen.doubt()
    if doubt:
        progress(f"warning: {doubt}")
