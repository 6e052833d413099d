# SPDX-License-Identifier: Apache-2.0
"""The training child: samples and a head become an update and a choice; it ends when it has answered.

Started by the agent as ``python -m fl_tiny.device.worker DIR`` with one job on stdin, so that numpy's memory goes
back to the board with the process. Answers are frames on stdout: length, then CBOR.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fl_tiny import statedir
from fl_tiny.device.job import FRAME_LIMIT, Chosen, Failed, Job, Trained, frame
from fl_tiny.device.layout import BASE, NEXT
from fl_tiny.device.store import DeviceStore, HeldHead, bytes_to_floats
from fl_tiny.errors import DataError, FlTinyError
from fl_tiny.learn import judge
from fl_tiny.learn.head import HeadSpec, head_spec
from fl_tiny.learn.requant import QuantHead, Ranges, activation_ranges, patch, requantise
from fl_tiny.learn.tflite import read_model
from fl_tiny.learn.train import Settings, fit
from fl_tiny.protocol import signed, update, wire
from fl_tiny.protocol.session import MIN_CLASSES, MIN_SAMPLES

SEED = 1  # of personal fits: the same samples and head give the same model


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What a job works on. held: (n,) bool, the samples that no update is trained on."""

    directory: Path
    store: DeviceStore
    head: HeldHead  # what to start from
    data: bytes  # the model file
    manifest: wire.Manifest
    spec: HeadSpec
    features: NDArray[np.int8]
    labels: NDArray[np.int64]
    held: NDArray[np.bool_]
    rng: np.random.Generator

    @property
    def can_train(self) -> bool:
        """Are there samples enough, of classes enough?"""
        return len(self.labels) >= MIN_SAMPLES and len(np.unique(self.labels)) >= MIN_CLASSES

    def parameters(self, head: HeldHead) -> update.Parameters:
        """A held head in real units."""
        scales = wire.decode(wire.Head, signed.payload_of(head.signed)).scales
        return update.decode_head(update.HeadBody(head.body, scales), self.manifest.shapes)

    def parts(self) -> list[judge.Split]:
        """The held-out part alone when it is large enough to judge by, else splits that cover all samples."""
        if int(self.held.sum()) >= judge.HELD_ENOUGH:
            return [self.held]
        return judge.splits(self.labels, np.random.default_rng(0))  # the same splits for every candidate

    def quantised(self, head: HeldHead) -> QuantHead:
        """A held head in int8; its outputs' scales cover the fleet's ranges and those of this board's samples."""
        parameters, ranges = self.parameters(head), _fleet_ranges(head)
        if self.can_train:
            own = activation_ranges(self.spec, parameters, self.features)
            ranges = own if ranges is None else _union(own, ranges)
        return requantise(self.spec, parameters, ranges)


def train(bench: Bench, offer: wire.Offer, residual: tuple[bytes, bytes] | None) -> Trained:
    """One client update: train from the base head on all but the held-out samples, and round the change to codes."""
    start = bench.parameters(bench.head)
    rest = ~bench.held
    settings = Settings(epochs=offer.train.epochs, batch=offer.train.batch, rate=offer.train.rate)
    fitted = fit(bench.spec, start, bench.features[rest], bench.labels[rest], settings=settings, rng=bench.rng)
    change = update.flatten(fitted) - update.flatten(start)
    shapes = bench.manifest.shapes
    if residual is not None:
        carried, steps = residual
        change += update.decode_residual(carried, update.per_parameter(bytes_to_floats(steps), shapes))
    codes = update.encode_change(change, update.per_parameter(offer.steps, shapes), bench.rng)
    metrics = None
    if bench.held.any():
        score = judge.judged(bench.spec, bench.quantised(bench.head), bench.features, bench.labels, [bench.held])
        metrics = wire.Metrics(score.samples, min(float(score.loss), 1e6), float(score.accuracy))
    ranges = activation_ranges(bench.spec, fitted, bench.features[rest])
    samples = min(int(rest.sum()), offer.max_samples)
    return Trained(codes.codes, codes.residual, samples, tuple(float(v) for span in ranges for v in span), metrics)


def choose(bench: Bench, settings: Settings) -> Chosen:
    """The best of {previous, global, personal} on held-out samples; a new one is patched into model/.next.tflite."""
    head, kept = bench.head, bench.store.kept()
    if not bench.can_train:
        return Chosen("global", 0, write(bench, bench.quantised(head)))
    parts = bench.parts()

    def fixed(of: HeldHead) -> judge.Score:
        return judge.judged(bench.spec, bench.quantised(of), bench.features, bench.labels, parts)

    def fine_tuned(of: HeldHead) -> judge.Score:
        rng = np.random.default_rng(SEED)  # candidates differ by their start alone
        return judge.judged_fit(
            bench.spec, bench.parameters(of), bench.features, bench.labels, parts, settings=settings, rng=rng
        )

    scores = {
        "previous": fine_tuned(kept.start) if kept.fitted else fixed(kept.start),
        "global": fixed(head),
        "personal": fine_tuned(head),
    }
    best = "previous"
    for name in ("global", "personal"):
        if judge.better(scores[name], scores[best]):
            best = name
    accuracies = [float(scores[name].accuracy) for name in ("previous", "global", "personal")]
    if best == "previous":
        return Chosen(best, kept.fitted, None, *accuracies)
    if best == "global":
        return Chosen(best, 0, write(bench, bench.quantised(head)), *accuracies)
    rng = np.random.default_rng(SEED)
    fitted = judge.trained(bench.spec, bench.parameters(head), bench.features, bench.labels, settings=settings, rng=rng)
    return Chosen(best, 1, write(bench, fitted), *accuracies)


def write(bench: Bench, head: QuantHead) -> bytes:
    """Patch ``head`` into model/.next.tflite, on the disk when this returns, and return the file's SHA-256."""
    patched = patch(bench.data, bench.spec, head)
    statedir.write_atomic(bench.directory / statedir.MODEL / NEXT, patched)
    return hashlib.sha256(patched).digest()


def open_bench(directory: Path, head: HeldHead, rng: np.random.Generator) -> Bench:
    """What DIR holds to train with. Raises: ModelError, DataError, EnvironmentFault."""
    store = DeviceStore.open(directory / statedir.DATABASE)
    data = (directory / statedir.MODEL / BASE).read_bytes()
    manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
    spec = head_spec(read_model(data), manifest.layers)
    size = spec.feature_size
    features = np.empty((store.sample_stats()[0], size), np.int8)
    labels = np.empty(len(features), np.int64)
    held = np.zeros(len(features), np.bool_)
    for row, (codes, label, out) in zip(range(len(features)), store.samples(), strict=False):
        if len(codes) != size or not 0 <= label < spec.classes:
            raise DataError(f"a stored sample of {len(codes)} B and label {label} does not fit the model")
        features[row] = np.frombuffer(codes, np.int8)
        labels[row], held[row] = label, out
    return Bench(directory, store, head, data, manifest, spec, features, labels, held, rng)


def serve(directory: Path, job: Job, out: BinaryIO) -> None:
    """Do a job; the update leaves before the choice is made, so that the round need not wait for it."""
    version = wire.decode(wire.Head, signed.payload_of(job.head)).version
    bench = open_bench(directory, HeldHead(version, job.head, job.body), np.random.default_rng())
    if job.offer is not None:
        trained = train(bench, wire.decode(wire.Offer, job.offer), bench.store.residual())
        out.write(frame(trained))
        out.flush()
    if job.choose:
        out.write(frame(choose(bench, Settings(epochs=job.epochs))))
        out.flush()


def main() -> None:
    """The child's entry: DIR as the argument, one job on stdin."""
    directory, out = Path(sys.argv[1]), sys.stdout.buffer
    try:
        serve(directory, wire.decode(Job, sys.stdin.buffer.read(FRAME_LIMIT), limit=FRAME_LIMIT), out)
    except FlTinyError as fault:
        out.write(frame(Failed(str(fault).encode()[:512].decode(errors="ignore"))))


def _union(one: Ranges, other: Ranges) -> Ranges:
    return [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(one, other, strict=True)]


def _fleet_ranges(head: HeldHead) -> Ranges | None:
    ranges = wire.decode(wire.Head, signed.payload_of(head.signed)).ranges
    return list(zip(ranges[0::2], ranges[1::2], strict=True)) if ranges else None


if __name__ == "__main__":
    main()
