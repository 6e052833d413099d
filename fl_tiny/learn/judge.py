# SPDX-License-Identifier: Apache-2.0
"""Whether training helps: a head, and the way it was made, scored on samples held out from it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
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
Groups = NDArray[np.int64]  # a number for each sample; equal: alike, or of one stretch (learn/likeness.py)
Split = NDArray[np.bool_]  # True: held out

HELD_SHARE = 0.2
HELD_ENOUGH = 50  # held-out groups that one split may judge by
FOLDS = 5
ENOUGH_SAMPLES, ENOUGH_GROUPS = 20, 10  # guess: with ten groups a share is known to 16 points (one standard error)
MIN_SAMPLES = 10  # guess: two held-out samples a fold; below it chance decides


@dataclass(frozen=True, slots=True)
class Score:
    """How the int8 head does on held-out samples: mean loss (nats, or squared units), and ``loss.right_share``."""

    loss: float
    accuracy: float
    samples: int


@dataclass(frozen=True, slots=True, eq=False)
class Personalised:
    """The outcome: ``head`` is the new one where ``accepted``, else None and the model's own stays.

    groups: how many groups the scores were measured on.
    """

    before: Score
    after: Score
    groups: int
    accepted: bool
    head: QuantHead | None


def better(new: Score, old: Score) -> bool:
    """Whether ``new`` has less loss and no less accuracy; a loss that is no number is never better."""
    return new.loss < old.loss and new.accuracy >= old.accuracy


def splits(targets: Targets, groups: Groups, rng: np.random.Generator) -> list[Split]:
    """One stratified held-out part where it has 50 groups or more, else up to five parts that cover all samples.

    targets: (n,) or (n, outputs).   groups: (n,), none of which is cut; all of one group are taken one by one.
    Each split: (n,) bool.   Raises: DataError below 10 samples.
    """
    if len(targets) < MIN_SAMPLES:
        raise DataError(f"{len(targets)} samples are too few to hold some out", hint=f"collect {MIN_SAMPLES} or more")
    _, first, unit = np.unique(groups, return_index=True, return_inverse=True)
    if len(first) == 1:
        first = unit = np.arange(len(targets))
    n = len(first)
    held = int(min(HELD_SHARE * n, max(HELD_ENOUGH, n / 10)))
    order = np.lexsort((rng.random(n), strata(targets[first])))  # class by class, at random within each
    places = np.empty(n, np.int64)
    places[order] = np.arange(n)
    if held < HELD_ENOUGH:
        folds = min(FOLDS, n)
        parts = [places % folds == fold for fold in range(folds)]
    else:  # every n/held-th place, from a random one: each class is held out by its share, to within one group
        parts = [(places + rng.integers(n)) * held % n < held]
    return [part[unit.reshape(-1)] for part in parts]


def counted(groups: Groups, parts: Sequence[Split]) -> int:
    """How many groups the held-out parts have."""
    return len(np.unique(groups[np.any(parts, axis=0)]))


def tells(samples: int, groups: int) -> bool:
    """True when a figure measured on so many samples, of so many groups, says something of others."""
    return samples >= ENOUGH_SAMPLES and groups >= ENOUGH_GROUPS


def judged(
    spec: HeadSpec, heads: Sequence[QuantHead], features: Codes, targets: Targets, parts: Sequence[Split]
) -> Score:
    """The score over the held-out parts of heads that have not seen them, one a part. At least one has samples."""
    pairs = [(head, part) for head, part in zip(heads, parts, strict=True) if part.any()]
    return _mean([_score(spec, head, features[part], targets[part]) for head, part in pairs])


def fits(
    spec: HeadSpec,
    start: Sequence[Array],
    features: Codes,
    targets: Targets,
    parts: Sequence[Split],
    *,
    settings: Settings,
    rng: np.random.Generator,
    after_epoch: Callable[[], None] = lambda: None,
) -> list[QuantHead]:
    """What training from ``start`` on the rest of each split gives, in int8."""
    return [
        trained(spec, start, features[~part], targets[~part], settings=settings, rng=rng, after_epoch=after_epoch)
        for part in parts
    ]


def trained(
    spec: HeadSpec,
    start: Sequence[Array],
    features: Codes,
    targets: Targets,
    *,
    settings: Settings,
    rng: np.random.Generator,
    after_epoch: Callable[[], None] = lambda: None,
) -> QuantHead:
    """The head fitted from ``start``, in int8 by the same samples. Raises: ModelError when it is not finite."""
    params = fit(spec, start, features, targets, settings=settings, rng=rng, after_epoch=after_epoch)
    return calibrated(spec, params, features)


def personalise(
    spec: HeadSpec,
    features: Codes,
    targets: Targets,
    groups: Groups,
    settings: Settings,
    rng: np.random.Generator,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Personalised:
    """Train the model's own head, and keep the result, refitted on all samples, only if the training was better.

    features: (n, features) int8 codes of the feature tensor.   targets: (n,) or (n, outputs).   groups: (n,).
    progress: called with the epochs done and the epochs of all fits together.   Raises: DataError for too few samples.
    """
    start = read_parameters(spec)
    parts = splits(targets, groups, rng)
    epochs, total = itertools.count(1), (len(parts) + 1) * settings.epochs

    def after_epoch() -> None:
        progress(next(epochs), total)

    own = [requantise(spec, start, None)] * len(parts)
    before = judged(spec, own, features, targets, parts)
    fitted = fits(spec, start, features, targets, parts, settings=settings, rng=rng, after_epoch=after_epoch)
    after = judged(spec, fitted, features, targets, parts)
    met = counted(groups, parts)
    if not better(after, before):
        return Personalised(before, after, met, accepted=False, head=None)
    head = trained(spec, start, features, targets, settings=settings, rng=rng, after_epoch=after_epoch)
    return Personalised(before, after, met, accepted=True, head=head)


def _score(spec: HeadSpec, head: QuantHead, features: Codes, targets: Targets) -> Score:
    outputs = head.run(features)
    loss, _ = loss_and_grad(spec.loss, outputs, targets)
    return Score(loss, right_share(spec.task, outputs, targets), len(targets))


def _mean(scores: Sequence[Score]) -> Score:
    samples = sum(score.samples for score in scores)
    loss = sum(score.loss * score.samples for score in scores) / samples
    return Score(loss, sum(score.accuracy * score.samples for score in scores) / samples, samples)
