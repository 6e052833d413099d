# SPDX-License-Identifier: Apache-2.0
"""What a round gathers and what it makes of it: changes that are averaged, or sums that a head is solved from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, Protocol

import numpy as np

from fl_tiny.errors import DataError, MalformedMessage, RemoteError
from fl_tiny.gateway.store import Store
from fl_tiny.gateway.tables import Entry, Version
from fl_tiny.learn import exact, gram, ridge
from fl_tiny.learn.head import HeadSpec
from fl_tiny.learn.loss import Task
from fl_tiny.learn.tflite import read_model
from fl_tiny.protocol import aggregate, codes, grams, signed, wire
from fl_tiny.protocol.aggregate import LEAST_COMPARED, NORMAL, WHOLE, Share
from fl_tiny.protocol.codes import most_bytes
from fl_tiny.protocol.delta import difference
from fl_tiny.protocol.grams import GramSum, config_of
from fl_tiny.protocol.manifest import spec_of
from fl_tiny.protocol.strategy import FedAvg, Move, Strategy, Tensors, decode_state, fits
from fl_tiny.protocol.update import HeadBody, Parameters, Shapes, decode_head, encode_head
from fl_tiny.protocol.wire import Encoding

log = logging.getLogger(__name__)

SEED = hashlib.sha256(b"fl-tiny exact start").digest()  # of projections; what it is matters to nobody
LEAST_SPREAD = 0.2  # of the median loss: devices that agree closely are not told apart by what little is left


# Of the rate, behind an exact start. Fashion, 15 clients, one round and 20 rounds later, with 1 and with 0.1 of it:
# Dirichlet 0.1 .622, .778 and .768, .789; 0.3 .717, .794 and .781, .794; 1.0 .787, .813 and .792, .807.
GENTLE = 0.1


class Kind(str, Enum):
    """How a head came about; values are those of the table ``round`` and of ``gateway rounds``."""

    TRAIN = "train"
    EXACT = "exact"
    FORGET = "forget"
    MODEL = "model"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Made:
    """A head that a round has made, not signed yet. steps: for the next round.   ranges: of outputs, for the head.

    delta: from the head before.   shares: what of each device's update counts, by did.
    outliers: how far each device stands out, by did; None among too few.
    """

    head: aggregate.Published
    steps: tuple[float, ...]
    ranges: tuple[float, ...] | None
    delta: wire.Delta | None = None
    shares: Mapping[bytes, Share] = field(default_factory=dict)
    outliers: Mapping[bytes, float | None] = field(default_factory=dict)

    @property
    def weight(self) -> int:
        """Samples that count."""
        return sum(share.weight for share in self.shares.values())


Entries = Callable[[], Iterable[Entry]]  # a round's accepted updates ordered by did, as often as it is called


class Gathering(Protocol):
    """What one round gathers. It keeps nothing: the ledger has all that came."""

    size: int  # the most bytes that one device sends

    @property
    def kind(self) -> Kind:
        """What it is that is gathered."""

    @property
    def config(self) -> wire.GramConfig | None:
        """What the offer says of sums."""

    def takes(self, size: int, encoding: int | None = None, /) -> bool:
        """May what a device sends be ``size`` bytes long? encoding: None: in any that is taken."""

    def check(self, codes: bytes, update: wire.Update, /) -> None:
        """Raises: RemoteError unless ``codes`` may count."""

    def made(self, base: Version, entries: Entries, /) -> Made:
        """The next head. entries: at least one."""


class Changes:
    """Changes by training, averaged; a strategy says what the head makes of their mean.

    kept: the strategy's state, as the last round left it.
    share: of the parameters, that a top-k update names; 0: top-k is refused.
    max_samples: the most that an update may weigh.
    """

    kind: Final = Kind.TRAIN
    config: Final = None

    def __init__(
        self,
        manifest: wire.Manifest,
        strategy: Strategy | None = None,
        kept: Mapping[str, bytes] | None = None,
        share: float = 0.0,
        max_samples: int = wire.U16,
    ) -> None:
        self._manifest, self._strategy, self._kept = manifest, strategy or FedAvg(), kept or {}
        self._parameters, self._max_samples = manifest.parameters, max_samples
        self._most = named_at_most(self._parameters, share) if share else 0
        self.size = max(most_bytes(encoding, self._parameters, self._most) for encoding in Encoding)

    def takes(self, size: int, encoding: int | None = None) -> bool:
        """As in ``Gathering``."""
        encodings = Encoding if encoding is None else (encoding,)
        return any(codes.fits(each, size, self._parameters, self._most) for each in encodings)

    def check(self, body: bytes, update: wire.Update) -> None:
        """As in ``Gathering``."""
        if update.samples > self._max_samples:
            raise RemoteError(f"{update.samples} samples, at most {self._max_samples} count", code=wire.Code.QUOTA)
        aggregate.check_codes(self._expanded(body, update.encoding or Encoding.INT8, self._most), self._parameters)

    def _expanded(self, body: bytes, encoding: int, most: int | None) -> bytes:
        try:
            return codes.expanded(body, encoding, self._parameters, most)
        except MalformedMessage as fault:
            raise RemoteError(str(fault), code=wire.Code.SHAPE) from fault

    def made(self, base: Version, entries: Entries) -> Made:
        """As in ``Gathering``. The updates are read for the medians, then for the sum, then to compare each with it."""
        shapes = self._manifest.shapes
        dids, weights, measures, reported = [], [], [], []
        for entry in entries():
            dids.append(entry.did)
            weights.append(entry.samples)
            measures.append(aggregate.measure(self._codes_of(entry), base.steps, shapes))
            reported.append(entry.ranges)
        shares = dict(zip(dids, aggregate.shares(weights, measures), strict=True))
        total, direction = aggregate.RunningSum(shapes), aggregate.Direction(base.steps, shapes)
        for entry, measured in zip(entries(), measures, strict=True):
            body = self._codes_of(entry)
            total.add(body, shares[entry.did])
            direction.add(body, measured.norm)
        pairs = zip(entries(), measures, strict=True)
        cosines = [direction.cosine(self._codes_of(entry), measured.norm) for entry, measured in pairs]
        outliers = dict(zip(dids, aggregate.standing_out(cosines), strict=True))
        ranges = aggregate.merge_ranges([each for each in reported if each is not None])
        head = HeadBody(base.body, wire.decode(wire.Head, signed.payload_of(base.signed)).scales)
        new = aggregate.publish(head, base.residual, shapes, base.steps, total, self._step)
        delta = delta_to(new.head, base, head.scales, shapes)
        steps = aggregate.next_steps(base.steps, aggregate.median_peaks(measures))
        return Made(new, steps, ranges, delta, shares, outliers)

    def _codes_of(self, entry: Entry) -> bytes:
        """An accepted update as int8 codes; it was checked by a setting of ``share`` that may since be another."""
        assert entry.codes is not None
        return self._expanded(entry.codes, entry.encoding, None)

    def _step(self, base: Tensors, change: Tensors) -> Move:
        """The strategy's move; where another package's fails, the mean change as it is: no update is lost by it."""
        try:
            move = self._strategy.step(base, change, decode_state(self._kept, self._manifest.shapes))
            if fits(move, base):
                return move
            why = "it returned no finite move of this head"
        except Exception as fault:  # foreign code
            why = f"{type(fault).__name__}: {fault}"
        log.error("strategy failed, the round is averaged why=%r", why)
        return Move(change, {})


class Grams:
    """Sums that the head is solved from, once."""

    kind: Final = Kind.EXACT

    def __init__(self, start: ExactStart, min_samples: int) -> None:
        self._start = start
        self._empty = start.nothing(min_samples)
        self.size = self._empty.size
        self.config = config_of(start.plan, min_samples)

    def takes(self, size: int, encoding: int | None = None) -> bool:
        """As in ``Gathering``."""
        return size == self.size and not encoding

    def check(self, body: bytes, update: wire.Update) -> None:
        """As in ``Gathering``."""
        self._empty.check(body, update.samples)

    def made(self, _base: Version, entries: Entries) -> Made:
        """As in ``Gathering``."""
        rows = [(entry.did, entry.codes or b"") for entry in entries()]
        total, counted = self._start.total([body for _, body in rows])
        shares = {
            did: Share(self._start.sums(body).samples * factor // WHOLE, factor)
            for (did, body), factor in zip(rows, counted, strict=True)
        }
        scores = self._start.outliers([body for _, body in rows])
        outliers = dict(zip([did for did, _ in rows], scores, strict=True))
        return replace(self._start.made(total), shares=shares, outliers=outliers)


@dataclass(frozen=True, slots=True)
class ExactOptions:
    """wanted: the first head is solved from sums.   min_samples: the fewest that a device may sum."""

    wanted: bool = False
    min_samples: int = 10


class ExactStart:
    """Heads from sums, for one model: always from its own head, so that they depend on the sums alone.

    Raises: ModelError for a head that cannot be solved for.
    """

    def __init__(self, manifest: wire.Manifest, spec: HeadSpec, first: Version) -> None:
        self.plan = exact.plan(spec, SEED, wire.MAX_CODES)
        scales = wire.decode(wire.Head, signed.payload_of(first.signed)).scales
        self._base: Parameters = decode_head(HeadBody(first.body, scales), manifest.shapes)
        self._spec = spec

    @classmethod
    def of(cls, store: Store, model: bytes) -> ExactStart:
        """For the fleet of a store. model: its .tflite."""
        manifest = wire.decode(wire.Manifest, signed.payload_of(store.get("manifest")))
        return cls(manifest, spec_of(read_model(model), manifest), store.version(store.get("first") or 0))

    def nothing(self, min_samples: int) -> GramSum:
        """The sum to begin with."""
        return GramSum(self.plan, min_samples, exclusive=self._spec.task is Task.CLASSES)

    def made(self, total: gram.Sums) -> Made:
        """The head that the sums determine; without samples version 0 again."""
        if total.samples < 1:
            return first_made(self._base)
        solved = exact.exact_head(self._spec, self._base, self.plan, total)
        head = aggregate.Published(encode_head(solved.params), b"")
        return Made(head, aggregate.first_steps(solved.params), solved.ranges)

    def sums(self, body: bytes) -> gram.Sums:
        """A stored body as sums. Raises: DataError when it is of another model's size."""
        if len(body) != gram.size_bytes(self.plan.width, self.plan.outputs):
            raise DataError(f"stored sums of {len(body)} B do not fit this model")
        return gram.from_bytes(body, self.plan.width, self.plan.outputs)

    def total(self, bodies: Sequence[bytes]) -> tuple[gram.Sums, list[int]]:
        """The sums of all, each cut to about as many samples as the median device has, and the factor of each."""
        counted = grams.factors([self.sums(body).samples for body in bodies])
        total = self.nothing(1)
        for body, factor in zip(bodies, counted, strict=True):
            total.add(body, factor)
        return total.total, counted

    def outliers(self, bodies: Sequence[bytes]) -> list[float | None]:
        """How far each device's samples are from what the others say: the loss of a head solved without them, in
        robust standard deviations above the median of the devices. None each among fewer than four.

        The penalty is that of all together, so a device costs one eigenvalue decomposition.
        Source of the robust scale: Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993), section 3.3.
        """
        if len(bodies) < LEAST_COMPARED:
            return [None] * len(bodies)
        (total, counted), offset = self.total(bodies), exact.offset(self._spec)
        penalty = exact.regression(self._spec, self._base, self.plan, total).penalty
        losses = []
        for own, factor in zip(map(self.sums, bodies), counted, strict=True):
            rest = total.plus(own, -factor / WHOLE)
            losses.append(
                ridge.mean_loss(exact.regression(self._spec, self._base, self.plan, rest, penalty), own, offset)
            )
        middle = float(np.median(losses))
        spread = NORMAL * float(np.median(np.abs(np.array(losses) - middle)))
        return [(loss - middle) / max(spread, LEAST_SPREAD * middle, 1e-9) for loss in losses]


def make_version(
    number: int,
    made: Made,
    manifest_digest: bytes,
    seed: bytes,
    since: int | None = None,
    epoch: int | None = None,
) -> Version:
    """A head as a row of the store, signed by the gateway's key. since: the last version solved from sums."""
    body, scales = made.head.head.body, made.head.head.scales
    digest = hashlib.sha256(body).digest()
    head = wire.Head(manifest_digest, number, digest, len(body), scales, made.ranges, since, epoch, made.delta)
    message = signed.sign(wire.encode(head), seed)
    return Version(number, digest, body, message, made.head.residual, made.steps, made.weight)


def delta_to(new: HeadBody, base: Version, scales: tuple[float, ...], shapes: Shapes) -> wire.Delta | None:
    """What a signed head says of the delta from ``base``. scales: those of ``base``."""
    found = difference(base.body, new.body, shapes) if new.scales == scales else None
    return wire.Delta(found[0], len(found[1]), base.digest) if found else None


def named_at_most(parameters: int, share: float) -> int:
    """How many parameters a top-k update may name."""
    return max(1, round(share * parameters))


def train_behind(train: wire.Train, *, solved: bool) -> wire.Train:
    """How devices are to train; from a solved head with smaller steps, which do not undo it. solved: is it one?

    A rate that devices find themselves stays so.
    """
    if not solved or train.rate is None:
        return train
    return replace(train, rate=max(train.rate * GENTLE, wire.LEAST_RATE))


def first_made(parameters: Parameters) -> Made:
    """The model's own head: version 0, and what an exact start without samples comes to."""
    return Made(aggregate.Published(encode_head(parameters), b""), aggregate.first_steps(parameters), None)
