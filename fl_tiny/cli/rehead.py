# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny model rehead``: a new head on a model's backbone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_tiny.cli.common import command, positive, progress, show

if TYPE_CHECKING:
    from fl_tiny.learn.tflite import Model


def add(commands: Any) -> None:
    """Declare the command in the group ``model``."""
    example = "fl-tiny model rehead backbone.tflite --classes 5 --labels mine.txt --imprint mine.npz --out mine.tflite"
    parser = command(commands, "rehead", rehead, example)
    parser.add_argument("file", metavar="FILE", type=Path, help="an int8 .tflite file; it is not changed")
    parser.add_argument(
        "--classes", metavar="N", type=positive, required=True, help="classes of the new head, 2 to 256"
    )
    parser.add_argument("--hidden", metavar="H", type=positive, help="a hidden layer of H units (default: none)")
    parser.add_argument("--cut", metavar="K", type=positive, help="layers to cut off (default: the last 2 dense, or 1)")
    parser.add_argument(
        "--labels", metavar="L.txt", type=Path, help="names of the classes, one a line; go into the file"
    )
    parser.add_argument(
        "--imprint", metavar="D.npz", type=Path, help="samples x and labels y whose means the head takes"
    )
    parser.add_argument("--out", metavar="OUT.tflite", type=Path, required=True, help="where the result is written")


def rehead(args: argparse.Namespace) -> None:
    """Put a new int8 head on a model's backbone: cut at its features, dense layers for other classes appended."""
    from fl_tiny.errors import ConfigError
    from fl_tiny.files import check_writable, read_bounded, write_atomic
    from fl_tiny.lab.rehead import NewHead
    from fl_tiny.lab.rehead import rehead as with_new_head
    from fl_tiny.labels import read_labels
    from fl_tiny.learn.head import head_spec
    from fl_tiny.learn.tflite import MAX_FILE_BYTES, read_model

    if not 2 <= args.classes <= 256:
        raise ConfigError(f"--classes {args.classes} is not from 2 to 256")
    model = read_model(read_bounded(args.file, MAX_FILE_BYTES))
    check_writable(args.out)
    labels = read_labels(args.labels, args.classes) if args.labels else None
    made = read_model(with_new_head(model, NewHead(args.classes, args.hidden, labels, args.cut)))
    spec = head_spec(made, 1 if args.hidden is None else 2)
    data = made.data if args.imprint is None else _imprinted(made, args.imprint, len(spec.layers))
    write_atomic(args.out, data)
    if args.imprint is None:
        progress("the head is at random until it is trained: --imprint D.npz gives it a start")
    result = {
        "out": str(args.out),
        "classes": args.classes,
        "layers": len(spec.layers),
        "parameters": spec.parameters,
        "feature_shape": list(spec.feature_shape),
        "labels": None if labels is None else list(labels),
        "imprinted": args.imprint is not None,
    }
    text = f"{args.out}: {args.classes} classes on {spec.feature_size} features, {spec.parameters} parameters"
    show(args, result, text)


def _imprinted(model: Model, path: Path, layers: int) -> bytes:
    from fl_tiny.device.dataset import open_dataset
    from fl_tiny.device.evaluation import expected_of, features_of
    from fl_tiny.device.isolated import isolated_backbone
    from fl_tiny.lab.rehead import imprinted
    from fl_tiny.learn.head import head_spec
    from fl_tiny.learn.loss import Task

    spec = head_spec(model, layers, task=Task.CLASSES)
    data = open_dataset(path, model.input, expected=expected_of(model))
    features, labels = features_of(model, spec, data, isolated_backbone)
    return imprinted(model, spec, features, labels)
