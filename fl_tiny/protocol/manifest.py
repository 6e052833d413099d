# SPDX-License-Identifier: Apache-2.0
"""A manifest and the head it names: what is signed of a head's description, and the description read back."""

from __future__ import annotations

import hashlib

from fl_tiny.learn.head import HeadSpec, head_spec
from fl_tiny.learn.loss import Task
from fl_tiny.learn.tflite import Model
from fl_tiny.protocol import wire
from fl_tiny.protocol.preprocess import Preprocess

TASKS = (Task.CLASSES, Task.LABELS, Task.VALUES)  # by the number that a manifest carries


def manifest_of(
    name: str, data: bytes, spec: HeadSpec, labels: tuple[str, ...] | None, table: Preprocess | None = None
) -> wire.Manifest:
    """The first manifest of a fleet that trains ``spec`` of the model file ``data``."""
    return wire.Manifest(
        name,
        1,
        1,
        hashlib.sha256(data).digest(),
        len(data),
        len(spec.layers),
        spec.tensors,
        labels,
        table,
        TASKS.index(spec.task) or None,
        1 if spec.biases_only else None,
    )


def spec_of(model: Model, manifest: wire.Manifest) -> HeadSpec:
    """The head of ``model`` that the fleet trains. Raises: ModelError when the model has no such head."""
    task = TASKS[manifest.task or 0]
    return head_spec(model, manifest.layers, task=task, biases_only=bool(manifest.biases_only))
