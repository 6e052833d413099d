# SPDX-License-Identifier: Apache-2.0
"""Training a head on feature codes and targets: normalised features, minibatches, a pull towards the start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fl_tiny.learn.dense import backward, forward
from fl_tiny.learn.head import Array, HeadSpec
from fl_tiny.learn.layer import Activation
from fl_tiny.learn.loss import Loss, Targets, class_weights, loss_and_grad
from fl_tiny.learn.normal import Normal, folded, normal_of, unfolded
from fl_tiny.learn.optimiser import Optimiser, stepping
from fl_tiny.learn.requant import BATCH

SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0)  # of the start head that training may begin with
STEPS_AN_EPOCH = 32  # few samples still take this many steps an epoch, in batches of four or more
SMALLEST_BATCH = 4
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)  # that are tried where none is given
TRIED_ON = 512  # samples of one epoch a rate
WAKE_ON = 512  # samples that units are woken by
LEAST_AWAKE = 0.01  # share of samples below which a unit counts as asleep
WATCHED_EVERY = 10  # one sample in so many tells when to stop, and is not trained on


@dataclass(frozen=True, slots=True)
class Settings:
    """How a head is trained; the defaults are measured on eight pairs of head and data, 30 to 3,000 samples."""

    epochs: int = 60
    batch: int = 64  # at most; few samples are cut into smaller ones
    rate: float | None = 0.02  # of the first step, for normalised features; falls to zero as a cosine. None: tried out
    pull: float = 0.03  # towards the start, as a prior that weighs against the sum over samples
    proximal: float = 0.0  # FedProx's mu: the same pull, whatever the number of samples
    optimiser: Optimiser = Optimiser.ADAM
    shrink: bool = True  # may begin with less of the start's last layer, where its samples are unlike the start's
    revive: bool = True  # units that none of the samples wakes begin anew
    smoothing: float = 0.0  # share of each target that is spread over all classes
    balanced: bool = False  # each class weighs the same, however many samples it has
    patience: int | None = None  # epochs without a better loss on samples kept aside, after which training stops


def fit(
    spec: HeadSpec,
    params: Sequence[Array],
    features: NDArray[np.int8],
    targets: Targets,
    *,
    settings: Settings,
    rng: np.random.Generator,
    after_epoch: Callable[[], None] = lambda: None,
) -> list[Array]:
    """``params`` trained to tell ``targets`` from ``features``; the same generator state gives the same result.

    params: all of them, real units; not changed.   features: (n, features) codes of the feature tensor.
    targets: as ``loss.loss_and_grad`` takes them.   Memory beyond the arguments grows by 8 bytes a sample only.
    Source of ``proximal``: Li et al., Federated Optimization in Heterogeneous Networks (MLSys 2020), equation 2.
    """
    normal = normal_of(spec, features, targets)
    shrinks = settings.shrink and not spec.biases_only and spec.loss is not Loss.SQUARED
    if shrinks:
        params = _shrunk(spec, params, features, targets)
    begin = folded(spec, revived(spec, params, features) if settings.revive else params, normal)
    task = _Task(spec, features, targets, normal, class_weights(targets) if settings.balanced else None, settings)
    rows = np.arange(len(features))
    if settings.rate is None:
        task.settings = settings = replace(settings, rate=_found_rate(task, begin, rows, rng))
    live = _descended(task, begin, rows, settings.epochs, rng, after_epoch)
    done = unfolded(spec, live, normal)
    return [old if spec.biases_only and old.ndim > 1 else new for old, new in zip(params, done, strict=True)]


@dataclass(slots=True, eq=False)
class _Task:
    """What is trained on. weights: (n,) of each sample in the loss, mean one; None: all alike."""

    spec: HeadSpec
    features: NDArray[np.int8]
    targets: Targets
    normal: Normal
    weights: Array | None
    settings: Settings

    def loss_and_slope(self, live: Sequence[Array], rows: NDArray[np.int64], *, slope: bool) -> tuple[float, Array]:
        """The loss over ``rows``, and the gradient of all parameters in one vector (empty without ``slope``)."""
        x = self.features[rows].reshape(-1, len(self.normal.shift)).astype(np.float32)
        x -= self.normal.shift
        x *= self.normal.gain
        passed = forward(self.spec, live, x.reshape(len(rows), -1))
        wanted = self.targets[rows]
        if self.spec.loss is Loss.SQUARED:
            wanted = (wanted - self.normal.centre) / self.normal.unit
        weights = None if self.weights is None else self.weights[rows]
        loss, grad = loss_and_grad(
            self.spec.loss, passed.final, wanted, weights=weights, smoothing=self.settings.smoothing
        )
        if not slope:
            return loss, np.empty(0, np.float32)
        return loss, np.concatenate([each.ravel() for each in backward(self.spec, live, passed, grad)])

    def loss(self, live: Sequence[Array], rows: NDArray[np.int64]) -> float:
        """The mean loss over ``rows``, a part at a time."""
        parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        return sum(self.loss_and_slope(live, part, slope=False)[0] * len(part) for part in parts) / len(rows)


def _descended(
    task: _Task,
    begin: Sequence[Array],
    rows: NDArray[np.int64],
    epochs: int,
    rng: np.random.Generator,
    after_epoch: Callable[[], None] = lambda: None,
) -> list[Array]:
    """``begin`` after ``epochs`` over ``rows``; with patience, what was best on one row in ten, kept aside."""
    settings, (flat, live) = task.settings, _flat(begin)
    assert settings.rate is not None
    watched = None
    if settings.patience is not None and len(rows) >= 2 * WATCHED_EVERY:
        order = rng.permutation(rows)
        watched, rows = order[: len(rows) // WATCHED_EVERY], order[len(rows) // WATCHED_EVERY :]
    start, pull = flat.copy(), np.float32(settings.pull / len(rows) + settings.proximal)
    frozen = np.concatenate([np.full(each.size, task.spec.biases_only and each.ndim > 1) for each in live])
    step, best, best_loss, waited = stepping(settings.optimiser, flat), flat.copy(), math.inf, 0
    for progress, batches in _epochs(rows, epochs, settings.batch, rng):
        for chosen, share in batches:
            _, slope = task.loss_and_slope(live, chosen, slope=True)
            slope += pull * (flat - start)
            if task.spec.biases_only:
                slope[frozen] = 0
            step(slope, settings.rate * 0.5 * (1 + math.cos(math.pi * (progress + share))))
        after_epoch()
        if watched is None:
            continue
        waited += 1
        if (loss := task.loss(live, watched)) < best_loss:
            best, best_loss, waited = flat.copy(), loss, 0
        if settings.patience is not None and waited >= settings.patience:
            break
    if watched is not None:
        flat[:] = best
    return live


def _epochs(
    rows: NDArray[np.int64], epochs: int, batch: int, rng: np.random.Generator
) -> Iterator[tuple[float, list[tuple[NDArray[np.int64], float]]]]:
    """Each epoch's batches in a new order; each with the share of all steps that were done before it."""
    size = min(batch, max(SMALLEST_BATCH, len(rows) // STEPS_AN_EPOCH))
    starts = range(0, len(rows), size)
    for epoch in range(epochs):
        order = rng.permutation(rows)
        yield (
            epoch / epochs,
            [(order[at : at + size], place / (len(starts) * epochs)) for place, at in enumerate(starts)],
        )


def _found_rate(task: _Task, begin: Sequence[Array], rows: NDArray[np.int64], rng: np.random.Generator) -> float:
    """The rate whose single epoch over some samples leaves the least loss on them."""
    some, settings = rng.permutation(rows)[:TRIED_ON], task.settings
    seed, losses = int(rng.integers(2**32)), []
    for rate in RATES:
        task.settings = replace(settings, rate=rate, patience=None)
        live = _descended(task, begin, some, 1, np.random.default_rng(seed))
        loss = task.loss(live, some)
        losses.append(loss if math.isfinite(loss) else math.inf)
    return RATES[int(np.argmin(losses))]


def _flat(params: Sequence[Array]) -> tuple[Array, list[Array]]:
    """All parameters in one vector, and each as a view of it: an optimiser's step is then a handful of calls."""
    flat = np.concatenate([each.ravel() for each in params])
    ends = np.cumsum([each.size for each in params])
    parts = np.split(flat, ends[:-1])
    return flat, [part.reshape(each.shape) for part, each in zip(parts, params, strict=True)]


def revived(spec: HeadSpec, params: Sequence[Array], features: NDArray[np.int8]) -> list[Array]:
    """``params`` that give the same outputs, hidden units without any output moved to where half the samples wake them.

    Samples unlike those a model was made with can leave most of a RELU layer at zero, where nothing is learned.
    Measured on silabs' magic wand model with 15 of 16 units asleep: .39 to .95 of the training samples right.
    """
    made, place = list(params), 0
    part = features[:: max(1, len(features) // WAKE_ON)]
    for depth, (layer, after) in enumerate(zip(spec.layers, spec.layers[1:], strict=False)):
        size = 1 if layer.bias is None else 2
        wakes = layer.activation in (Activation.RELU, Activation.RELU6) and size == 2 and not spec.biases_only
        if wakes and layer.weights.shape[0] == after.weights.shape[1]:
            passed = forward(spec, made, spec.features.to_real(part))
            asleep = (passed.outputs[depth] > 0).mean(axis=0) < LEAST_AWAKE
            before = passed.inputs[depth] @ made[place].T + made[place + 1]
            made[place + 1] = np.where(asleep, made[place + 1] - np.median(before, axis=0), made[place + 1])
            made[place + size] = np.where(asleep, np.float32(0), made[place + size])
        place += size
    return made


def _shrunk(spec: HeadSpec, params: Sequence[Array], features: NDArray[np.int8], targets: Targets) -> list[Array]:
    """``params`` with the last layer times that share which fits the samples best.

    A head made for other data is sure of what is wrong: starting from, and being pulled to, less of it costs nothing
    where it fits (share 1) and halves the loss where it does not.
    """
    losses = np.zeros(len(SHARES))
    for start in range(0, len(features), BATCH):
        logits = forward(spec, params, spec.features.to_real(features[start : start + BATCH])).final
        part = targets[start : start + BATCH]
        losses += [len(part) * loss_and_grad(spec.loss, logits * np.float32(share), part)[0] for share in SHARES]
    share, last = np.float32(SHARES[int(losses.argmin())]), 1 if spec.layers[-1].bias is None else 2
    return [*params[:-last], *(each * share for each in params[-last:])]
