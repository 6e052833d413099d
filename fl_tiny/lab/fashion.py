# SPDX-License-Identifier: Apache-2.0
"""Fifteen devices that see few kinds of clothes each, upside down: alone, federated, and all samples in one place.

Needs Debian's package dataset-fashion-mnist and tests/models/fashion.tflite of a checkout; for scripts/bench and tests.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_tiny.config import GatewaySettings
from fl_tiny.device.backbone import open_backbone
from fl_tiny.device.evaluation import classes_of_outputs
from fl_tiny.errors import EnvironmentFault
from fl_tiny.lab import encodings
from fl_tiny.lab.simulate import client_of, simulate
from fl_tiny.learn import judge
from fl_tiny.learn.head import HeadSpec, head_spec, read_parameters
from fl_tiny.learn.quant import Affine
from fl_tiny.learn.requant import patch
from fl_tiny.learn.tflite import Model, cut, read_model
from fl_tiny.learn.train import Settings
from fl_tiny.protocol import wire

IMAGES = Path("/usr/share/datasets/fashion-mnist")  # where the Debian package puts its files
CONTRAST = 0.4  # as scripts/make_fashion.py
LAYERS = 2
SEED = 1
CLIENTS, SAMPLES = 15, 2000  # samples of all clients together, the first of the test images; the model saw neither
SUMMED = 5000  # the same in an exact start, whose floors shut out clients with few samples (protocol/consent.py)
TESTED_FROM = 5000


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Of int8 files on the test images. before: the model as it is.   alone: mean over clients, by own samples only."""

    before: float
    alone: float
    fedavg: float
    central: float


@dataclass(frozen=True, slots=True)
class Solved:
    """Of int8 files on the test images. exact: the head solved in one round.   fedavg: after training from it."""

    exact: float
    fedavg: float


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """features: (n, in) int8.   labels: (n,).   x, y: test images as input codes, and their labels."""

    model: Model
    spec: HeadSpec
    features: NDArray[np.int8]
    labels: NDArray[np.int64]
    x: NDArray[np.int8]
    y: NDArray[np.int64]


def run(
    model: bytes,
    alpha: float,
    *,
    rounds: int = 60,
    train: wire.Train | None = None,
    seed: int = SEED,
    tested: int = 5000,
) -> Accuracies:
    """Accuracies with labels spread over the clients by Dirichlet(``alpha``); smaller is more lopsided.

    model: tests/models/fashion.tflite.   train: None takes the gateway's default.   tested: how many test images.
    Raises: EnvironmentFault without the images.
    """
    task = _task(model, tested)
    parts = dirichlet(task.labels, CLIENTS, alpha, np.random.default_rng(seed))
    return Accuracies(
        _accuracy(task, model),
        float(np.mean([_trained(task, part) for part in parts])),
        _federated(task, parts, rounds, train, seed, "model"),
        _trained(task, np.arange(len(task.labels))),
    )


def run_exact(model: bytes, alpha: float, *, rounds: int = 20, seed: int = SEED, tested: int = 5000) -> Solved:
    """What an exact start gives as many clients with more samples each. rounds: of training after it."""
    task = _task(model, tested, SUMMED)
    parts = dirichlet(task.labels, CLIENTS, alpha, np.random.default_rng(seed))
    alone, trained = (_federated(task, parts, 1 + more, None, seed, "exact") for more in (0, rounds))
    return Solved(alone, trained)


def as_task(model: bytes, alpha: float, *, rounds: int = 40, seed: int = SEED, tested: int = 5000) -> encodings.Task:
    """The same clients for lab/encodings.py."""
    task = _task(model, tested)
    parts = dirichlet(task.labels, CLIENTS, alpha, np.random.default_rng(seed))
    clients = [client_of(task.features[p], task.labels[p], task.spec.features.zero_point) for p in parts]
    return encodings.Task(model, LAYERS, clients, rounds, lambda data: _accuracy(task, data))


def dirichlet(
    labels: NDArray[np.int64], clients: int, alpha: float, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Rows of ``labels`` for each client that gets any, a class cut by Dirichlet(``alpha``).

    Source: Hsu et al., Measuring the Effects of Non-Identical Data Distribution (2019).
    """
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        cuts = (np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * len(rows)).astype(int)
        for part, chunk in zip(parts, np.split(rows, cuts), strict=True):
            part.append(chunk)
    return [rows for rows in map(np.concatenate, parts) if len(rows)]


def upside_down(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """``images``, (n, 28, 28, 1) in [0, 1], rotated by 180 degrees, contrast cut around mid grey."""
    return (images[:, ::-1, ::-1] - np.float32(0.5)) * np.float32(CONTRAST) + np.float32(0.5)


def read(kind: str) -> bytes:
    """The bytes behind the header of the test set's ``images-idx3`` or ``labels-idx1`` file."""
    path = IMAGES / f"t10k-{kind}-ubyte.gz"
    try:
        return gzip.decompress(path.read_bytes())[16 if kind.startswith("images") else 8 :]
    except OSError as cause:
        raise EnvironmentFault(f"cannot read {path}", hint="install Debian's dataset-fashion-mnist") from cause


def _task(data: bytes, tested: int, samples: int = SAMPLES) -> _Task:
    model = read_model(data)
    spec = head_spec(model, LAYERS)
    images = np.frombuffer(read("images-idx3"), np.uint8).reshape(-1, 28, 28, 1).astype(np.float32) / 255
    labels = np.frombuffer(read("labels-idx1"), np.uint8).astype(np.int64)
    scale = model.input.quantisation
    assert scale is not None
    codes = Affine(scale.scale[0], scale.zero_point[0]).to_codes(upside_down(images), np.int8).astype(np.int8)
    features = open_backbone(cut(model, spec.feature_tensor)).run(codes[:samples]).reshape(samples, -1)
    test = slice(TESTED_FROM, TESTED_FROM + tested)
    return _Task(model, spec, features, labels[:samples], codes[test], labels[test])


def _federated(
    task: _Task, parts: Sequence[NDArray[np.int64]], rounds: int, train: wire.Train | None, seed: int, start: str
) -> float:
    """The accuracy of the fleet's head. parts: rows of each client."""
    gateway = GatewaySettings()
    clients = [client_of(task.features[p], task.labels[p], task.spec.features.zero_point) for p in parts]
    done = simulate(
        task.model.data,
        LAYERS,
        clients,
        rounds=rounds,
        train=train or wire.Train(gateway.epochs, gateway.batch, gateway.rate),
        seed=seed,
        max_samples=gateway.max_samples,
        start=start,
        min_samples=gateway.min_samples,
    )
    return _accuracy(task, done.fleet)


def _trained(task: _Task, rows: Sequence[int] | NDArray[np.int64]) -> float:
    """The accuracy of a head fitted on these rows, as ``fl-tiny model personalise`` fits it."""
    start, rng = read_parameters(task.spec), np.random.default_rng(SEED)
    features, labels = task.features[rows], task.labels[rows]
    head = judge.trained(task.spec, start, features, labels, settings=Settings(), rng=rng)
    return _accuracy(task, patch(task.model.data, task.spec, head))


def _accuracy(task: _Task, data: bytes) -> float:
    found = classes_of_outputs(read_model(data), open_backbone(data).run(task.x))
    return float(np.mean(found == task.y))
