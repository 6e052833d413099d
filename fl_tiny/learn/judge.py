# SPDX-License-Identifier: Apache-2.0
"""Whether training helps: a head, and the way it was made, scored on samples held out from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import DataError
from fl_tiny.learn.calibrate import calibrated
from fl_tiny.learn.head import Array, HeadSpec, read_parameters
from fl_tiny.learn.loss import Targets, loss_and_grad, right_share, strata
from fl_tiny.learn.requant import QuantHead, requantise
from fl_tiny.learn.train import Settings, fit

Codes = NDArray[np.int8]
Split = NDArray[np.bool_]  # True: held out

HELD_SHARE = 0.2
HELD_ENOUGH = 50  # held-out samples that one split may judge by
FOLDS = 5
MIN_SAMPLES = 10  # guess: two held-out samples a fold; below it chance decides


@dataclass(frozen=True, slots=True)
class Score:
    """How the int8 head does on held-out samples: mean loss (nats, or squared units), and ``loss.right_share``."""

    loss: float
    accuracy: float
    samples: int


@dataclass(frozen=True, slots=True, eq=False)
class Personalised:
    """The outcome: ``head`` is the new one where ``accepted``, else None and the model's own stays."""

    before: Score
    after: Score
    accepted: bool
    head: QuantHead | None


def better(new: Score, old: Score) -> bool:
    """Whether ``new`` has less loss and no less accuracy; a loss that is no number is never better."""
    return new.loss < old.loss and new.accuracy >= old.accuracy


def splits(targets: Targets, rng: np.random.Generator) -> list[Split]:
    """One stratified held-out part where it has 50 samples or more, else five that cover all samples.

    targets: (n,) or (n, outputs).   Each split: (n,) bool.   Raises: DataError below 10 samples.
    """
    n = len(targets)
    if n < MIN_SAMPLES:
        raise DataError(f"{n} samples are too few to hold some out", hint=f"collect {MIN_SAMPLES} or more")
    held = int(min(HELD_SHARE * n, max(HELD_ENOUGH, n / 10)))
    order = np.lexsort((rng.random(n), strata(targets)))  # class by class, at random within each
    places = np.empty(n, np.int64)
    places[order] = np.arange(n)
    if held < HELD_ENOUGH:
        return [places % FOLDS == fold for fold in range(FOLDS)]
    # Every n/held-th place, from a random one: each class is held out by its share, to within one sample.
    return [(places + rng.integers(n)) * held % n < held]


def judged(spec: HeadSpec, head: QuantHead, features: Codes, targets: Targets, parts: Sequence[Split]) -> Score:
    """The score of a head that has seen none of the samples, over the held-out parts."""
    return _mean([_score(spec, head, features[part], targets[part]) for part in parts])


def judged_fit(
    spec: HeadSpec,
    start: Sequence[Array],
    features: Codes,
    targets: Targets,
    parts: Sequence[Split],
    *,
    settings: Settings,
    rng: np.random.Generator,
) -> Score:
    """The score of training from ``start``: on the rest of each split, judged in int8 on its held-out part."""
    scores = []
    for part in parts:
        head = trained(spec, start, features[~part], targets[~part], settings=settings, rng=rng)
        scores.append(_score(spec, head, features[part], targets[part]))
    return _mean(scores)


def trained(
    spec: HeadSpec,
    start: Sequence[Array],
    features: Codes,
    targets: Targets,
    *,
    settings: Settings,
    rng: np.random.Generator,
) -> QuantHead:
    """The head fitted from ``start``, in int8 by the same samples. Raises: ModelError when it is not finite."""
    return calibrated(spec, fit(spec, start, features, targets, settings=settings, rng=rng), features)


def personalise(
    spec: HeadSpec, features: Codes, targets: Targets, settings: Settings, rng: np.random.Generator
) -> Personalised:
    """Train the model's own head, and keep the result, refitted on all samples, only if the training was better.

    features: (n, features) int8 codes of the feature tensor.   targets: (n,) or (n, outputs).   Raises: DataError for
    too few samples.
    """
    start = read_parameters(spec)
    parts = splits(targets, rng)
    before = judged(spec, requantise(spec, start, None), features, targets, parts)
    after = judged_fit(spec, start, features, targets, parts, settings=settings, rng=rng)
    if not better(after, before):
        return Personalised(before, after, accepted=False, head=None)
    head = trained(spec, start, features, targets, settings=settings, rng=rng)
    return Personalised(before, after, accepted=True, head=head)


def _score(spec: HeadSpec, head: QuantHead, features: Codes, targets: Targets) -> Score:
    outputs = head.run(features)
    loss, _ = loss_and_grad(spec.loss, outputs, targets)
    return Score(loss, right_share(spec.task, outputs, targets), len(targets))


def _mean(scores: Sequence[Score]) -> Score:
    samples = sum(score.samples for score in scores)
    loss = sum(score.loss * score.samples for score in scores) / samples
    return Score(loss, sum(score.accuracy * score.samples for score in scores) / samples, samples)
