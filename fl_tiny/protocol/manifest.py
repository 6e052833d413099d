# SPDX-License-Identifier: Apache-2.0
"""A manifest and the head it names: what is signed of a head's description, and the description read back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, ClassVar

from fl_tiny.errors import RemoteError
from fl_tiny.learn.head import HeadSpec, head_spec
from fl_tiny.learn.loss import Task
from fl_tiny.learn.tflite import Model
from fl_tiny.protocol import cbor, signed, wire
from fl_tiny.protocol.fields import Key, blob
from fl_tiny.protocol.preprocess import Preprocess

TASKS = (Task.CLASSES, Task.LABELS, Task.VALUES)  # by the number that a manifest carries


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """What ``fleet sign`` writes: the signed manifest, the public key that signed it, and the canary's .npz."""

    KIND: ClassVar[int] = 90
    LIMIT: ClassVar[int] = wire.MAX_CANARY + 8192  # bytes
    pk: Annotated[bytes, Key(1, wire.PK)]
    signed: Annotated[bytes, Key(2, blob(1, cbor.CONTROL_LIMIT))]
    canary: Annotated[bytes | None, Key(3, blob(1, wire.MAX_CANARY))] = None

    def manifest(self) -> wire.Manifest:
        """The manifest inside. Raises: RemoteError when signature or canary do not fit."""
        found = wire.decode(wire.Manifest, signed.verify(self.signed, self.pk))
        named = found.canary.digest if found.canary else None
        if named != (hashlib.sha256(self.canary).digest() if self.canary else None):
            raise RemoteError("the canary is not the one that was signed", code=wire.Code.CONFLICT)
        return found


def manifest_of(
    name: str,
    data: bytes,
    spec: HeadSpec,
    labels: tuple[str, ...] | None,
    table: Preprocess | None = None,
    counter: int = 1,
) -> wire.Manifest:
    """The manifest of a fleet that trains ``spec`` of the model file ``data``."""
    return wire.Manifest(
        name,
        counter,
        counter,
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
