# SPDX-License-Identifier: Apache-2.0
"""What a board computes in a round: a client update from its samples, and the choice of its own model. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device.job import Trained
from fl_tiny.device.store import HeldHead, Kept, bytes_to_floats
from fl_tiny.errors import DataError
from fl_tiny.learn import gram, judge
from fl_tiny.learn.calibrate import activation_ranges, calibrated
from fl_tiny.learn.head import HeadSpec, trained_part, whole
from fl_tiny.learn.loss import Targets, Task
from fl_tiny.learn.optimiser import Optimiser
from fl_tiny.learn.requant import QuantHead, Ranges, requantise
from fl_tiny.learn.train import Settings, fit
from fl_tiny.protocol import signed, update, wire
from fl_tiny.protocol.consent import MIN_CLASSES, MIN_SAMPLES, MOST_SUMMED, Floors, summable, sums_refusal

DEFAULT = Floors()
SEED = 1  # of personal fits: the same samples and head give the same model

# A client update must average well with others: Adam's steps and a shrunk start, which serve a single board, cost
# 8 points on 15 Dirichlet(0.1) clients (.664 and .569 against .742 by SGD, Fashion, 40 rounds).
ROUND = Settings(optimiser=Optimiser.SGD, pull=0.0, shrink=False, revive=False)

# A board's own model is pulled to the fleet's head: with five labels a class .932 and .922 (watch data, two draws)
# against .922 and .918 by the defaults for a head that nobody vouches for; from ten labels on it makes no difference.
PERSONAL = Settings(pull=0.3, shrink=False, revive=False)


class NotAllowed(DataError):
    """What a round asks for would show single samples of this board."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """A board's samples and the head they train.

    features: (n, features) int8 codes.   labels: (n,) int64 classes, or (n, outputs) float32 of labels or values.
    held: (n,) bool, the samples no update is trained on.   groups: (n,), alike samples have one number.
    """

    manifest: wire.Manifest
    spec: HeadSpec
    features: NDArray[np.int8]
    labels: Targets
    held: NDArray[np.bool_]
    groups: NDArray[np.int64]

    @property
    def unseen(self) -> NDArray[np.bool_]:
        """Held-out samples that have nothing alike among the others: none of the fleet's heads has seen any of them."""
        return self.held & ~np.isin(self.groups, self.groups[~self.held])

    @property
    def can_train(self) -> bool:
        """Are there samples enough, of classes enough?"""
        told_apart = self.spec.task is not Task.CLASSES or len(np.unique(self.labels)) >= MIN_CLASSES
        return len(self.labels) >= MIN_SAMPLES and told_apart

    def parameters(self, head: HeldHead) -> update.Parameters:
        """All parameters with a held head, in real units."""
        scales = wire.decode(wire.Head, signed.payload_of(head.signed)).scales
        return whole(self.spec, update.decode_head(update.HeadBody(head.body, scales), self.manifest.shapes))

    def parts(self) -> list[judge.Split]:
        """The held-out part alone when it is large enough to judge by, else splits that cover all samples."""
        if self.holds_enough:
            return [self.held]
        return judge.splits(self.labels, self.groups, np.random.default_rng(0))  # the same for every candidate

    @property
    def holds_enough(self) -> bool:
        """True when the held-out part alone can be judged by."""
        return judge.counted(self.groups, [self.held]) >= judge.HELD_ENOUGH

    def quantised(self, head: HeldHead) -> QuantHead:
        """A held head in int8, as suits this board's samples; without enough of them, by the fleet's ranges."""
        parameters = self.parameters(head)
        if self.can_train:
            return calibrated(self.spec, parameters, self.features)
        return requantise(self.spec, parameters, _fleet_ranges(head))


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Which candidate is best. head: what to patch into the file, None: the file in place stays.

    accuracies: of {previous, global, personal} on samples that none of them was trained on; None each where those are
    too few to tell.   judged, groups: how many, of how many groups.   chosen_on: how many samples decided.
    """

    kept: str
    fitted: bool
    head: QuantHead | None
    accuracies: tuple[float | None, float | None, float | None] = (None, None, None)
    judged: int = 0
    groups: int = 0
    chosen_on: int = 0


def client_update(
    samples: Samples,
    base: HeldHead,
    offer: wire.Offer,
    residual: tuple[bytes, bytes] | None,
    rng: np.random.Generator,
    floors: Floors = DEFAULT,
) -> Trained:
    """Train from the base head on all but the held-out samples, and round the change to codes as the offer says.

    residual: what earlier rounds left unsaid, and the steps it is in (protocol/update.py).
    Raises: NotAllowed below the floors.
    """
    if len(samples.labels) < floors.min_samples:
        raise NotAllowed(f"an update of {len(samples.labels)} samples; {floors.min_samples} are the fewest")
    start = samples.parameters(base)
    rest = ~samples.held
    settings = round_settings(offer.train)
    fitted = fit(samples.spec, start, samples.features[rest], samples.labels[rest], settings=settings, rng=rng)
    change = update.flatten(trained_part(samples.spec, fitted)) - update.flatten(trained_part(samples.spec, start))
    shapes = samples.manifest.shapes
    if residual is not None:
        carried, steps = residual
        change += update.decode_residual(carried, update.per_parameter(bytes_to_floats(steps), shapes))
    how = (offer.encoding or wire.Encoding.INT8, offer.kept or 1)
    codes = update.encode_change(change, update.per_parameter(offer.steps, shapes), rng, *how)
    spans = activation_ranges(samples.spec, fitted, samples.features[rest])
    ranges = tuple(float(v) for span in spans for v in span)
    weight = min(int(rest.sum()), offer.max_samples)
    metrics = _metrics(samples, base) if floors.metrics else None
    return Trained(codes.codes, weight, codes.residual, ranges, metrics)


def client_sums(samples: Samples, base: HeldHead, offer: wire.Offer, floors: Floors = DEFAULT) -> Trained:
    """Sum up all samples but the held-out ones and those of rare classes; beyond what a sum holds, the oldest.

    A window that moves would show what differs, so the offer never says which samples count.
    Raises: NotAllowed below the floors; DataError when the offer does not fit the head.
    """
    assert offer.gram is not None
    made = gram.Plan(offer.gram.layer, offer.gram.width, offer.gram.outputs, offer.gram.seed, offer.gram.shift)
    rows = np.flatnonzero(~samples.held)
    if samples.spec.task is Task.CLASSES:
        labels, counts = np.unique(samples.labels[rows], return_counts=True)
        classes, _ = summable(dict(zip(labels.tolist(), counts.tolist(), strict=True)), floors)
        rows = rows[np.isin(samples.labels[rows], list(classes))]
    rows = rows[:MOST_SUMMED]
    refusal = sums_refusal(offer, len(rows), floors) or _rare_difference(samples.labels[rows], floors.min_class)
    if refusal:
        raise NotAllowed(refusal)
    sums = gram.summed(samples.spec, samples.parameters(base), made, samples.features[rows], samples.labels[rows])
    return Trained(gram.to_bytes(sums), sums.samples, metrics=_metrics(samples, base) if floors.metrics else None)


def _rare_difference(labels: Targets, least: int) -> str:
    """Why moments of several labels a sample would show single samples; empty when they would not.

    Two labels that differ in few samples show those by the difference of their moments; so does a label that nearly
    all samples have, or nearly none.
    """
    if labels.ndim == 1:
        return ""
    columns = np.column_stack([np.zeros(len(labels)), np.ones(len(labels)), labels > 0.5])
    common = columns.T @ columns
    apart = np.diag(common)[:, None] + np.diag(common) - 2 * common
    few = apart[(apart > 0) & (apart < least)]
    return f"labels that differ in {few.min():.0f} samples would show them; {least} are the fewest" if len(few) else ""


def round_settings(train: wire.Train) -> Settings:
    """How an offer says to train."""
    return replace(
        ROUND,
        epochs=train.epochs,
        batch=train.batch,
        rate=train.rate,
        proximal=train.proximal or 0.0,
        smoothing=train.smoothing or 0.0,
        balanced=bool(train.balanced),
        patience=train.patience,
        optimiser=Optimiser.ADAM if train.adam else ROUND.optimiser,
    )


def choose(samples: Samples, head: HeldHead, kept: Kept, epochs: int) -> Choice:
    """The best of {previous, global, personal} on held-out samples; a board without labels takes the global head."""
    settings = replace(PERSONAL, epochs=epochs)
    if not samples.can_train:
        return Choice("global", False, samples.quantised(head))
    spec, features, labels, parts = samples.spec, samples.features, samples.labels, samples.parts()

    def fixed(of: HeldHead) -> list[QuantHead]:
        return [samples.quantised(of)] * len(parts)

    def fine_tuned(of: HeldHead) -> list[QuantHead]:
        rng = np.random.default_rng(SEED)  # candidates differ by their start alone
        return judge.fits(spec, samples.parameters(of), features, labels, parts, settings=settings, rng=rng)

    heads = {
        "previous": fine_tuned(kept.start) if kept.fitted else fixed(kept.start),
        "global": fixed(head),
        "personal": fine_tuned(head),
    }
    scores = {name: judge.judged(spec, each, features, labels, parts) for name, each in heads.items()}
    best = _best(scores, samples, None if kept.fitted else kept.start, head)
    unseen = [part & samples.unseen for part in parts]
    judged, groups = int(np.any(unseen, axis=0).sum()), judge.counted(samples.groups, unseen)
    accuracies: tuple[float | None, float | None, float | None] = (None, None, None)
    if judge.tells(judged, groups):
        before, fleet, own = (_share(judge.judged(spec, each, features, labels, unseen)) for each in heads.values())
        accuracies = before, fleet, own
    facts = (accuracies, judged, groups, scores[best].samples)
    if best == "previous":
        return Choice(best, kept.fitted, None, *facts)
    if best == "global":
        return Choice(best, False, samples.quantised(head), *facts)
    rng = np.random.default_rng(SEED)
    fitted = judge.trained(spec, samples.parameters(head), features, labels, settings=settings, rng=rng)
    return Choice(best, True, fitted, *facts)


def _metrics(samples: Samples, base: HeldHead) -> wire.Metrics | None:
    """The base head on the held-out samples, when there are any."""
    if not samples.held.any():
        return None
    score = judge.judged(samples.spec, [samples.quantised(base)], samples.features, samples.labels, [samples.held])
    return wire.Metrics(score.samples, min(float(score.loss), 1e6), _share(score))


def _best(scores: dict[str, judge.Score], samples: Samples, previous: HeldHead | None, head: HeldHead) -> str:
    """The name of the best score. previous: the head kept so far, None when it was fitted here.

    Splits that cover all samples hold out from a fit what a head of the fleet has learned from: such a head must be
    right more often by one standard error. Measured on ten devices with five labels a class: .937 for .915 without.
    """
    shared = not samples.holds_enough
    personal = scores["personal"]
    share, n = personal.accuracy, personal.samples
    uncertain = shared and samples.spec.task is not Task.VALUES  # R squared is no share of samples
    margin = math.sqrt(max(share * (1 - share), 1 / n) / n) if uncertain else 0.0
    best = "personal"
    for name, unfitted in (("previous", previous), ("global", head)):
        lead = margin if unfitted is not None and unfitted.version > 0 else 0.0
        least = judge.Score(scores[best].loss, scores[best].accuracy + lead, n)
        if judge.better(scores[name], least):
            best = name
    return best


def _share(score: judge.Score) -> float:
    """An accuracy as messages carry it; R squared of values may be below zero."""
    return float(min(max(score.accuracy, 0.0), 1.0))


def _fleet_ranges(head: HeldHead) -> Ranges | None:
    ranges = wire.decode(wire.Head, signed.payload_of(head.signed)).ranges
    return list(zip(ranges[0::2], ranges[1::2], strict=True)) if ranges else None
