# SPDX-License-Identifier: Apache-2.0
"""A new model tried on this board, in the child process: it runs, tells inputs apart, and is right often enough."""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny import config, statedir
from fl_tiny.device import slots
from fl_tiny.device.backbone import Backbone, open_backbone
from fl_tiny.device.dataset import open_dataset
from fl_tiny.device.evaluation import accuracy, expected_of, real_values
from fl_tiny.device.job import Job, Tried
from fl_tiny.device.layout import CANARY, CURRENT, SLOTS
from fl_tiny.device.store import DeviceStore
from fl_tiny.device.training import Samples
from fl_tiny.errors import FlTinyError, RemoteError
from fl_tiny.learn import judge
from fl_tiny.learn.dense import forward
from fl_tiny.learn.head import HeadSpec, read_parameters
from fl_tiny.learn.requant import requantise
from fl_tiny.learn.tflite import Model, Tensor, cut, read_model
from fl_tiny.protocol import wire
from fl_tiny.protocol.fields import cut_text
from fl_tiny.protocol.manifest import spec_of
from fl_tiny.protocol.release import WHY_BYTES
from fl_tiny.protocol.wire import Code

CPU_S = 300  # guess: a model that computes longer on some inputs never ends
PROBES = 16
LEAST_HELD = 10  # samples; fewer say nothing
DOUBT = 2.0  # standard errors


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A model with what runs it."""

    model: Model
    spec: HeadSpec
    backbone: Backbone
    features: Backbone

    @classmethod
    def of(cls, data: bytes, manifest: wire.Manifest, runtime: str | None) -> Opened:
        """Open a model. Raises: ModelError, RemoteError for other shapes than the manifest's."""
        model = read_model(data)
        spec = spec_of(model, manifest)
        if spec.tensors != manifest.shapes:
            raise RemoteError("its shapes are not those of its manifest", code=Code.SHAPE)
        features = open_backbone(cut(model, spec.feature_tensor), runtime=runtime)
        return cls(model, spec, open_backbone(data, runtime=runtime), features)

    def seen(self, probes: NDArray[Any]) -> NDArray[np.int8]:
        """(n, features) codes."""
        found: NDArray[np.int8] = self.features.run(probes).reshape(len(probes), -1)
        return found


def try_model(directory: Path, store: DeviceStore, job: Job, samples: Samples) -> Tried:
    """Try the model in a slot. samples: of the model in use. A fault of the model is an answer, not an exception."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    assert job.trial is not None and job.manifest is not None
    manifest = slots.manifest_of(job.manifest)
    runtime = config.load(directory / statedir.SETTINGS, config.DeviceSettings).runtime
    folder = directory / statedir.MODEL
    new = job.trial != (store.get("slot") or "a")
    try:
        path = folder / SLOTS[job.trial]
        if slots.digest_of(path) != manifest.digest:
            raise RemoteError("the file is not the one that was signed", code=Code.CONFLICT)
        opened = Opened.of(path.read_bytes(), manifest, runtime)
        probes = probes_of(opened.model.input)
        _runs(opened, probes)
        if not new:
            data = (folder / CURRENT).read_bytes()  # what programs load
            _finite(opened.model, open_backbone(data, runtime=runtime), probes)
            return Tried(0)
        if manifest.canary is not None:
            _sings(opened, folder / CANARY, manifest.canary)
        same = _same_features(opened, manifest, store, samples, directory, runtime)
        if same:
            _no_worse(opened.spec, samples)
        return Tried(0, same=1 if same else None)
    except RemoteError as fault:
        return Tried(int(fault.code), _words(fault))
    except FlTinyError as fault:
        return Tried(int(Code.CANARY), _words(fault))


def probes_of(source: Tensor) -> NDArray[Any]:
    """Inputs that no two of which are alike: flat ones, faint and loud noise; always the same."""
    shape, rng = (PROBES, *source.shape[1:]), np.random.default_rng(1)
    loud = np.linspace(0.0, 1.0, PROBES).reshape(-1, *[1] * (len(shape) - 1))
    noise = 0.5 + loud * (rng.random(shape) - 0.5)
    noise[0], noise[1] = 0.0, 1.0
    if source.dtype == "float32":
        return np.asarray(2 * noise - 1, np.float32)
    limits = np.iinfo(source.dtype)
    return np.asarray(np.round(limits.min + noise * (limits.max - limits.min)), source.dtype)


def _runs(opened: Opened, probes: NDArray[Any]) -> None:
    """Raises: RemoteError for outputs that are not finite, or that are the same whatever the input."""
    _finite(opened.model, opened.backbone, probes)
    codes = opened.seen(probes)
    outputs = forward(opened.spec, read_parameters(opened.spec), opened.spec.features.to_real(codes)).final
    if not np.isfinite(outputs).all():
        raise RemoteError("outputs that are not finite", code=Code.NOT_FINITE)
    if not float(np.ptp(outputs, axis=0).max()) > 0:
        raise RemoteError("it says the same of every input", code=Code.CANARY)


def _finite(model: Model, backbone: Backbone, probes: NDArray[Any]) -> None:
    if not np.isfinite(real_values(model.output, backbone.run(probes))).all():
        raise RemoteError("outputs that are not finite", code=Code.NOT_FINITE)


def _sings(opened: Opened, path: Path, canary: wire.Canary) -> None:
    """Raises: RemoteError when the model is right of too few of its canary's samples; DataError."""
    data = open_dataset(path, opened.model.input, expected=expected_of(opened.model))
    found = accuracy(opened.model, opened.backbone, data)[0]
    if found < canary.least:
        why = f"right of {found:.3f} of the canary, {canary.least:.3f} is the least"
        raise RemoteError(why, code=Code.CANARY)


def _same_features(
    opened: Opened,
    manifest: wire.Manifest,
    store: DeviceStore,
    samples: Samples,
    directory: Path,
    runtime: str | None,
) -> bool:
    """Do the stored samples mean the same to the new model: the same features, the same outputs?"""
    old = slots.manifest_of(store.get("manifest"))
    spec = samples.spec
    meant = (manifest.labels, manifest.task, opened.spec.outputs, opened.spec.feature_size)
    if meant != (old.labels, old.task, spec.outputs, spec.feature_size):
        return False
    before = Opened.of(slots.base_path(directory, store).read_bytes(), old, runtime)
    if before.model.input.shape[1:] != opened.model.input.shape[1:] or before.spec.features != opened.spec.features:
        return False
    probes = probes_of(before.model.input)
    return before.model.input.dtype == opened.model.input.dtype and np.array_equal(
        before.seen(probes), opened.seen(probes)
    )


def _no_worse(spec: HeadSpec, samples: Samples) -> None:
    """Raises: RemoteError when the new model's own head is clearly worse than the old one's on held-out samples."""
    if int(samples.held.sum()) < LEAST_HELD:
        return
    parts = [samples.held]

    def own(of: HeadSpec) -> judge.Score:
        return judge.judged(of, [requantise(of, read_parameters(of), None)], samples.features, samples.labels, parts)

    before, after = own(samples.spec), own(spec)
    n = before.samples
    error = math.sqrt(max(before.accuracy * (1 - before.accuracy), 1 / n) / n)
    if after.accuracy < before.accuracy - DOUBT * error:
        why = f"right of {after.accuracy:.3f} of {n} held-out samples, the model before it of {before.accuracy:.3f}"
        raise RemoteError(why, code=Code.CANARY)


def _words(fault: FlTinyError) -> str:
    return cut_text(fault.what, WHY_BYTES)
