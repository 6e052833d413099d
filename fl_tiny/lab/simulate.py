# SPDX-License-Identifier: Apache-2.0
"""Federated rounds in one process and without a network, by the functions that devices and gateway run themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fl_tiny.device import intake
from fl_tiny.device.job import Trained
from fl_tiny.device.store import HeldHead, Kept, floats_to_bytes
from fl_tiny.device.training import Samples, choose, client_sums, client_update
from fl_tiny.gateway.encodings import KNOWN, Encodings
from fl_tiny.gateway.gather import Changes, ExactStart, Gathering, Grams, first_made, make_version, train_behind
from fl_tiny.gateway.tables import Entry, Version
from fl_tiny.learn import likeness
from fl_tiny.learn.head import HeadSpec, head_spec, read_parameters, trained_part
from fl_tiny.learn.loss import Task
from fl_tiny.learn.requant import QuantHead, patch
from fl_tiny.learn.tflite import read_model
from fl_tiny.protocol import signed, wire
from fl_tiny.protocol.consent import Floors, Past, Stock, reply
from fl_tiny.protocol.strategy import FedAvg, Strategy, encode_state

KEY = bytes(signed.SEED_BYTES)  # signs the simulated heads; nobody trusts it
INT8 = Encodings("int8")
Tamper = Callable[[int, Trained], Trained]  # a client's number and its update; the update that it sends


@dataclass(frozen=True, slots=True, eq=False)
class Client:
    """What one simulated device holds. features: (n, in) int8.   labels: (n,) int64.   held: (n,) bool, held out.

    groups: (n,), one number for samples that are alike.
    """

    features: NDArray[np.int8]
    labels: NDArray[np.int64]
    held: NDArray[np.bool_]
    groups: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Simulated:
    """What the rounds came to, as .tflite files. accuracy: on held-out samples, by round, of the head it began with.

    fleet: the model with the last head, as ``gateway export`` writes it.   kept: each client's own; empty when not
    asked for.   up, down: mean bytes of an update's codes, and of a head's delta or body, a round.
    """

    fleet: bytes
    kept: tuple[bytes, ...]
    accuracy: tuple[float | None, ...]
    up: float = 0.0
    down: float = 0.0


def client_of(features: NDArray[np.int8], labels: NDArray[np.int64], zero_point: int) -> Client:
    """A device with samples, those held out that its store would hold out when they come in this order."""
    groups = likeness.join(features, zero_point)
    shares, met, training = intake.Shares({}, {}), dict[int, bool](), set[int]()
    held = np.zeros(len(labels), np.bool_)
    for row, (label, group) in enumerate(zip(labels.tolist(), groups.tolist(), strict=True)):
        held[row] = met.setdefault(group, label in training and shares.holds_out(label))
        shares.count(label, held=met[group])
        if not met[group]:
            training.add(label)
    return Client(features, labels, held, groups)


def simulate(
    model: bytes,
    layers: int,
    clients: Sequence[Client],
    *,
    rounds: int,
    train: wire.Train,
    seed: int,
    max_samples: int = 2000,
    personal_epochs: int | None = None,
    every_round: bool = True,
    start: str = "model",
    min_samples: int = 10,
    strategy: Strategy | None = None,
    encodings: Encodings = INT8,
    tamper: Tamper = lambda place, trained: trained,
) -> Simulated:
    """``rounds`` rounds in which every client takes part; the same arguments give the same files.

    start: ``exact`` makes the first of them an exact start, of clients with ``min_samples``.   train, max_samples: as
    an offer carries them.   personal_epochs: of a client's own model; None: no choice.
    strategy: None is FedAvg.   encodings: of updates.   tamper: what a client sends in place of what it trained.
    every_round: choose behind each round, as devices do; False: behind the last one, which is several times faster.
    """
    spec = head_spec(read_model(model), layers)
    manifest = wire.Manifest("simulated", 1, 1, hashlib.sha256(model).digest(), len(model), layers, spec.tensors)
    version = _first(manifest, spec)
    boards = [_Board(Samples(manifest, spec, c.features, c.labels, c.held, c.groups), version) for c in clients]
    accuracy: list[float | None] = []
    state: dict[str, bytes] = {}
    down: list[int] = []
    train = (strategy or FedAvg()).train(train)
    for number in range(1, rounds + 1):
        gathering: Gathering = Changes(manifest, strategy, state, encodings.topk_share, max_samples)
        if start == "exact" and number == 1:
            gathering = Grams(ExactStart(manifest, spec, version), min_samples)
        how = train_behind(train, solved=start == "exact" and number > 1)
        offer = wire.Offer(bytes(8), number, version.digest, 0, version.steps, how, max_samples, gathering.config)
        if offer.gram is None:
            encoding, most = encodings.offered(KNOWN, manifest.parameters)
            offer = replace(offer, encoding=encoding, kept=most)
        version, score, state = _round(boards, offer, version, seed, gathering, tamper)
        accuracy.append(score)
        head = wire.decode(wire.Head, signed.payload_of(version.signed))
        down.append(head.delta.size if head.delta else head.size)
        if personal_epochs is not None and (every_round or number == rounds):
            for board in boards:
                board.choose(version, personal_epochs)
    ids = np.empty(0, np.int64)
    none = np.empty((0, spec.feature_size), np.int8), ids, np.empty(0, np.bool_), ids
    fleet = patch(model, spec, Samples(manifest, spec, *none).quantised(_held(version))) if rounds else model
    kept = [model if board.head is None else patch(model, spec, board.head) for board in boards]
    up = float(np.mean([size for board in boards for size in board.sent] or [0]))
    return Simulated(fleet, tuple(kept), tuple(accuracy), up, float(np.mean(down or [0])))


class _Board:
    """A device's memory between rounds: what its state.db and model/ hold."""

    def __init__(self, samples: Samples, first: Version) -> None:
        self.samples = samples
        self.residual: tuple[bytes, bytes] | None = None
        self.sent: list[int] = []  # bytes of each update's codes
        self.kept = Kept(0, "model", fitted=False, digest=b"", start=_held(first))
        self.head: QuantHead | None = None  # of model/current.tflite; None: the file as it came

    def takes_part(self, offer: wire.Offer) -> bool:
        """Does a device with these samples join (protocol/consent.py)?"""
        held, labels = self.samples.held, self.samples.labels
        classes = len(np.unique(labels)) if self.samples.spec.task is Task.CLASSES else None
        summed = dict(zip(*(v.tolist() for v in np.unique(labels[~held], return_counts=True)), strict=True))
        stock = Stock(len(held), int(held.sum()), classes, summed)
        return reply(offer, Floors(), stock, Past()).said is wire.Said.JOIN

    def train(self, base: HeldHead, offer: wire.Offer, rng: np.random.Generator) -> Trained:
        """A client update that counts: what its codes leave unsaid waits for the next."""
        if offer.gram is not None:
            return client_sums(self.samples, base, offer)
        trained = client_update(self.samples, base, offer, self.residual, rng)
        assert trained.residual is not None
        self.residual = (trained.residual, floats_to_bytes(offer.steps))
        self.sent.append(len(trained.codes))
        return trained

    def choose(self, version: Version, epochs: int) -> None:
        """Take the best candidate, as device/agent.py records it."""
        head = _held(version)
        choice = choose(self.samples, head, self.kept, epochs)
        if choice.head is None:
            self.kept = replace(self.kept, chosen_at=head.version, kind=choice.kept)
        else:
            self.kept = Kept(head.version, choice.kept, choice.fitted, b"", head)
            self.head = choice.head


def _round(
    boards: Sequence[_Board], offer: wire.Offer, base: Version, seed: int, gathering: Gathering, tamper: Tamper
) -> tuple[Version, float | None, dict[str, bytes]]:
    """The head that one round publishes, the accuracy of its base on all held-out samples, the strategy's state."""
    entries, scores = [], []
    encoding = offer.encoding or wire.Encoding.INT8
    for place, board in enumerate(boards):
        if not board.takes_part(offer):
            continue
        rng = np.random.default_rng([seed, offer.number, place])
        trained = tamper(place, board.train(_held(base), offer, rng))
        did = place.to_bytes(16, "big")
        entries.append(Entry(did, b"", trained.samples, None, None, None, trained.ranges, trained.codes, encoding))
        if trained.metrics is not None:
            scores.append((trained.metrics.accuracy, trained.metrics.samples))
    made, digest = gathering.made(base, lambda: entries), _digest(boards[0].samples.manifest)
    version = make_version(offer.number, made, digest, KEY)
    mean = sum(share * n for share, n in scores) / sum(n for _, n in scores) if scores else None
    return version, mean, encode_state(made.head.state)


def _first(manifest: wire.Manifest, spec: HeadSpec) -> Version:
    """Version 0, as ``gateway init`` makes it."""
    return make_version(0, first_made(trained_part(spec, read_parameters(spec))), _digest(manifest), KEY)


def _digest(manifest: wire.Manifest) -> bytes:
    return hashlib.sha256(wire.encode(manifest)).digest()


def _held(version: Version) -> HeldHead:
    return HeldHead(version.number, version.signed, version.body)
