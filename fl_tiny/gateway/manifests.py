# SPDX-License-Identifier: Apache-2.0
"""A manifest from what an operator says of a model: one way for ``gateway init`` and for ``fleet sign``."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from fl_tiny import config
from fl_tiny.errors import ConfigError, DataError, EnvironmentFault, ModelError
from fl_tiny.files import read_bounded, read_private, write_atomic
from fl_tiny.labels import labels_of, read_labels
from fl_tiny.learn.head import HeadSpec, default_layers, head_spec
from fl_tiny.learn.loss import Task
from fl_tiny.learn.tflite import Model, read_model
from fl_tiny.protocol import cbor, signed, wire
from fl_tiny.protocol.fields import cut_text, is_shown, to_map
from fl_tiny.protocol.manifest import ManifestFile, manifest_of, spec_of
from fl_tiny.protocol.prepare import settled
from fl_tiny.protocol.preprocess import LIMIT, Preprocess

MODEL_LIMIT = 64 << 20  # bytes of a .tflite that a fleet carries
MODEL_KEY = "model.key"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a model a fleet is to train, and on what. layers, task: None takes what suits the model.

    table_file: the preprocessing; None: [preprocess] of DIR/fl-tiny.toml, if it is there.
    """

    layers: int | None = None
    task: Task | None = None
    biases_only: bool = False
    table_file: Path | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """A model as a fleet is to train it."""

    manifest: wire.Manifest
    data: bytes
    spec: HeadSpec


def settle(
    model_file: Path, labels_file: Path | None, wanted: Wanted, *, settings: Path | None = None, counter: int = 1
) -> Settled:
    """Read a model and leave nothing of its manifest open. settings: a gateway's, for its [preprocess].

    Raises: ConfigError for a table that does not fit; ModelError, DataError.
    """
    data = read_bounded(model_file, MODEL_LIMIT)
    model = read_model(data)
    layers = wanted.layers if wanted.layers is not None else default_layers(model)
    spec = head_spec(model, layers, task=wanted.task, biases_only=wanted.biases_only)
    labels = _labels(labels_file, data, spec)
    table = _read_table(wanted.table_file, settings, model)
    check_size(spec)
    return Settled(manifest_of(_name(model_file), data, spec, labels, table, counter), data, spec)


def check_size(spec: HeadSpec) -> None:
    """Raises: ModelError for a head that no update can carry."""
    if spec.parameters > wire.MAX_CODES:
        which = "last layer has" if len(spec.layers) == 1 else f"last {len(spec.layers)} layers have"
        fewer = "" if len(spec.layers) == 1 else f"train fewer layers: --layers {len(spec.layers) - 1}; or "
        raise ModelError(
            f"the {which} {spec.parameters} parameters, an update carries at most {wire.MAX_CODES}",
            hint=f"{fewer}give the model a head of your own classes: fl-tiny model rehead FILE --classes N --out NEW",
        )


def make_keys(keys: Path) -> bytes:
    """Make the folder of a fleet's model-signing key, which stays off the gateway; its public key.

    Raises: ConfigError when there is one already; EnvironmentFault.
    """
    file = keys / MODEL_KEY
    if file.exists():
        raise ConfigError(f"{file} exists already", hint="a fleet's key is never overwritten")
    try:
        keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as cause:
        raise EnvironmentFault(f"cannot make {keys}: {cause.strerror}") from cause
    seed = os.urandom(signed.SEED_BYTES)
    write_atomic(file, seed, 0o600)
    return signed.public_key(seed)


def read_key(keys: Path) -> bytes:
    """The model-signing seed in a folder. Raises: ConfigError when others may read it; EnvironmentFault."""
    return read_private(keys / MODEL_KEY)


def sign(
    seed: bytes,
    made: Settled,
    canary: tuple[bytes, float] | None = None,
    successor: bytes | None = None,
) -> bytes:
    """The bytes of a manifest file. canary: a .npz and the least share to be right of it. successor: the next key.

    Raises: DataError when it is too long.
    """
    manifest = replace(made.manifest, successor=successor)
    if canary is not None:
        if len(canary[0]) > wire.MAX_CANARY:
            raise DataError(f"a canary of {len(canary[0])} B, at most {wire.MAX_CANARY}", hint="take fewer samples")
        manifest = replace(manifest, canary=wire.Canary(signed.digest(canary[0]), len(canary[0]), float(canary[1])))
    payload = wire.encode(manifest)
    message = signed.sign(payload, seed)
    if len(message) > cbor.CONTROL_LIMIT:
        raise DataError(f"the manifest takes {len(message)} B, at most {cbor.CONTROL_LIMIT}", hint="shorter labels")
    return wire.encode(ManifestFile(signed.public_key(seed), message, canary[0] if canary else None))


def read_manifest(file: Path) -> ManifestFile:
    """A manifest file, its signature and its canary checked. Raises: DataError, RemoteError."""
    found = wire.decode(ManifestFile, read_bounded(file, ManifestFile.LIMIT, DataError), limit=ManifestFile.LIMIT)
    found.manifest()
    return found


def fitting(model_file: Path, file: ManifestFile) -> Settled:
    """The model file that a signed manifest is about. Raises: DataError for another one; ModelError."""
    manifest = file.manifest()
    data = read_bounded(model_file, MODEL_LIMIT)
    if signed.digest(data) != manifest.digest:
        raise DataError(f"{model_file} is not the model that was signed", hint="give the file of fleet sign --model")
    spec = spec_of(read_model(data), manifest)
    if spec.tensors != manifest.shapes:
        raise DataError(f"the manifest's shapes are not those of {model_file}", hint="sign it again")
    check_size(spec)
    return Settled(manifest, data, spec)


def _name(file: Path) -> str:
    """A model's name as a manifest can carry it."""
    return cut_text("".join(c for c in file.stem if is_shown(f"-{c}-")), 32).strip() or "model"


def _read_table(file: Path | None, settings: Path | None, model: Model) -> Preprocess | None:
    """The fleet's preprocessing with nothing left open, so that every device does the same."""
    if file is not None:
        table: Preprocess | None = config.load_preprocess(file)
    else:
        table = config.load(settings, config.GatewaySettings).preprocess if settings else None
    if table is None:
        return None
    table, faults = settled(table, model)
    size = len(cbor.encode(to_map(table)))
    if size > LIMIT:
        faults.append(f"it takes {size} B, at most {LIMIT} fit the manifest")
    if faults:
        raise ConfigError(f"{file or settings}: preprocess: " + "; ".join(faults), hint="docs/config.md lists the keys")
    return table


def _labels(file: Path | None, data: bytes, spec: HeadSpec) -> tuple[str, ...] | None:
    """The outputs' names: from the operator's file, else from the model's own metadata."""
    outputs = spec.classes if spec.task is Task.CLASSES else spec.outputs
    labels = read_labels(file, outputs) if file else labels_of(data, outputs)
    size = sum(len(label.encode()) for label in labels or ())
    if (
        size > wire.LABELS_LIMIT
        or len(labels or ()) > wire.MAX_LABELS
        or any(len(x.encode()) > 48 for x in labels or ())
    ):
        raise DataError(
            f"{len(labels or ())} labels of {size} B; at most {wire.MAX_LABELS} of 48 B, {wire.LABELS_LIMIT} B in all"
        )
    unseen = next((label for label in labels or () if not is_shown(label)), None)
    if unseen is not None:
        raise DataError(f"the label {unseen!r} holds what cannot be seen", hint="one name a line, of printable text")
    return labels
