# SPDX-License-Identifier: Apache-2.0
"""The training child: reads samples and a job, answers with an update and a choice, and ends.

Started by the agent as ``python -m fl_tiny.device.worker DIR [--background]`` with one job on stdin, so that numpy's
memory goes back to the board with the process. Answers are frames on stdout (device/job.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fl_tiny import statedir
from fl_tiny.device import slots
from fl_tiny.device.derived import difference
from fl_tiny.device.job import BACKGROUND, FRAME_LIMIT, Chosen, Failed, Job, frame
from fl_tiny.device.store import DeviceStore, HeldHead
from fl_tiny.device.training import Choice, NotAllowed, Samples, choose, client_sums, client_update
from fl_tiny.errors import DataError, FlTinyError
from fl_tiny.learn import likeness
from fl_tiny.learn.head import HeadSpec
from fl_tiny.learn.loss import Task
from fl_tiny.learn.requant import patch
from fl_tiny.learn.tflite import read_model
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.fields import cut_text
from fl_tiny.protocol.manifest import spec_of

PR_SET_PDEATHSIG = 1
OOM_SCORE = 800  # of 1,000: what it does can be done again


def serve(directory: Path, job: Job, out: BinaryIO) -> None:
    """Do a job; the update leaves before the choice is made, so that the round need not wait for it."""
    store = DeviceStore.open(directory / statedir.DATABASE)
    data = slots.base_path(directory, store).read_bytes()
    samples = read_samples(store, data)
    if job.trial is not None:
        from fl_tiny.device.trial import try_model  # noqa: PLC0415 - what runs a model; training does without

        _answer(out, try_model(directory, store, job, samples))
        return
    version = wire.decode(wire.Head, signed.payload_of(job.head)).version
    head = HeldHead(version, job.head, job.body)
    if job.offer is not None:
        offer = wire.decode(wire.Offer, job.offer)
        if offer.gram is not None:
            summed = read_samples(store, data, job.last)
            _answer(out, client_sums(summed, head, offer, job.floors))
        else:
            rng = np.random.default_rng()
            _answer(out, client_update(samples, head, offer, store.residual(), rng, job.floors))
    if job.choose:
        _answer(out, _chosen(data, samples, choose(samples, head, store.kept(), job.epochs), head.body))


def read_samples(store: DeviceStore, data: bytes, last: int | None = None) -> Samples:
    """The stored samples, for the head of the model ``data``. last: as in ``DeviceStore.samples``.

    Raises: ModelError, DataError.
    """
    manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
    spec = spec_of(read_model(data), manifest)
    features = np.empty((store.sample_count()[0], spec.feature_size), np.int8)
    classes = spec.task is Task.CLASSES
    targets = np.empty(len(features), np.int64) if classes else np.empty((len(features), spec.outputs), np.float32)
    held = np.zeros(len(features), np.bool_)
    groups = np.zeros(len(features), np.int64)
    _join_older(store, spec)
    row = 0
    for sample, out in store.samples(last):
        if row == len(features):
            break  # a command beside us is adding more: the next job sees them
        target = sample.label if classes else np.frombuffer(sample.target or b"", "<f4")
        fits = 0 <= sample.label < spec.classes if classes else np.size(target) == spec.outputs
        if len(sample.features) != spec.feature_size or not fits:
            raise DataError(f"a stored sample of {len(sample.features)} B, label {sample.label} does not fit the model")
        features[row] = np.frombuffer(sample.features, np.int8)
        targets[row], held[row], groups[row] = target, out, sample.group
        row += 1
    return Samples(manifest, spec, features[:row], targets[:row], held[:row], groups[:row])


def _join_older(store: DeviceStore, spec: HeadSpec) -> None:
    """Put what an earlier version stored into groups, once."""
    older = store.unjoined()
    if not older or any(len(features) != spec.feature_size for features in older.values()):
        return
    codes = np.frombuffer(b"".join(older.values()), np.int8).reshape(len(older), spec.feature_size)
    firsts: dict[int, int] = {}
    groups = likeness.join(codes, spec.features.zero_point)
    store.regroup({row: firsts.setdefault(int(group), row) for row, group in zip(older, groups, strict=True)})


def give_way() -> None:
    """Compute in what others leave of the CPU; the agent has seen to the disk."""
    with contextlib.suppress(OSError):  # a filter of system calls may forbid either
        os.nice(19)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def be_expendable() -> None:
    """End with the agent, even when stopped, and before others when memory runs out. Source: prctl(2), proc(5)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def main() -> None:
    """The child's entry: DIR as the argument, one job on stdin."""
    out = sys.stdout.buffer
    be_expendable()
    if BACKGROUND in sys.argv[2:]:
        give_way()
    try:
        job = wire.decode(Job, sys.stdin.buffer.read(FRAME_LIMIT), limit=FRAME_LIMIT)
        serve(Path(sys.argv[1]), job, out)
    except FlTinyError as fault:
        code = wire.Code.PRIVACY if isinstance(fault, NotAllowed) else None
        _answer(out, Failed(cut_text(str(fault), 512), code))


def _chosen(data: bytes, samples: Samples, choice: Choice, start: bytes) -> Chosen:
    """A choice as the agent puts it in place. data: the file of the slot.   start: the body that it began with."""
    counts = (choice.judged, choice.groups, choice.chosen_on)
    if choice.head is None:
        return Chosen(choice.kept, int(choice.fitted), None, *choice.accuracies, None, *counts)
    patched = patch(data, samples.spec, choice.head)
    digest, runs = hashlib.sha256(patched).digest(), difference(data, patched, start)
    return Chosen(choice.kept, int(choice.fitted), digest, *choice.accuracies, runs, *counts)


def _answer(out: BinaryIO, message: object) -> None:
    out.write(frame(message))
    out.flush()


if __name__ == "__main__":
    main()
