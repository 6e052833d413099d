# SPDX-License-Identifier: Apache-2.0
"""One member against the head: the largest codes, the largest weight, sums that no samples have (docs/privacy.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fl_tiny.config import GatewaySettings
from fl_tiny.device.backbone import open_backbone
from fl_tiny.device.job import Trained
from fl_tiny.lab import fashion, watch
from fl_tiny.lab.measure import found_in
from fl_tiny.lab.simulate import Client, held_out, simulate
from fl_tiny.learn.head import default_layers, head_spec
from fl_tiny.learn.tflite import cut, read_model
from fl_tiny.protocol import aggregate, wire

FASHION = Path(__file__).parents[1] / "models/fashion.tflite"
ROUNDS = 13
GATEWAY = GatewaySettings()
TRAIN = wire.Train(GATEWAY.epochs, GATEWAY.batch, GATEWAY.rate)
Fleet = tuple[bytes, int, list[Client], Callable[[bytes], float]]


def watch_fleet() -> Fleet:
    """Ten arms with five labels a class; what the fleet's head gets right of all arms' later windows."""
    data = watch.load()
    model = read_model(data.model)
    layers = default_layers(model)
    spec = head_spec(model, layers)
    backbone = open_backbone(cut(model, spec.feature_tensor))
    clients = []
    for arm in data.arms:
        part = watch.labelled(arm, 5)
        features = backbone.run(part.x).reshape(len(part.x), -1).astype(np.int8)
        clients.append(Client(features, part.y, held_out(part.y)))
    later = [(arm.later.x, arm.later.y) for arm in data.arms]
    x, y = (np.concatenate(each) for each in zip(*later, strict=True))
    return data.model, layers, clients, lambda head: float(np.mean(found_in(head, x) == y))


def fashion_fleet() -> Fleet:
    """Fifty devices, 5,000 pictures over all, Dirichlet 1.0."""
    data = FASHION.read_bytes()
    task = fashion._task(data, 2000, fashion.SUMMED)
    parts = fashion.dirichlet(task.labels, 50, 1.0, np.random.default_rng(1))
    clients = [Client(task.features[p], task.labels[p], held_out(task.labels[p])) for p in parts]
    return data, fashion.LAYERS, clients, lambda head: fashion._accuracy(task, head)


FLEETS = [
    pytest.param(watch_fleet, id="watch"),
    pytest.param(
        fashion_fleet,
        id="fashion",
        marks=pytest.mark.skipif(not fashion.IMAGES.is_dir(), reason="needs Debian's package dataset-fashion-mnist"),
    ),
]


def attack_largest(fleet: Fleet, *, lies: bool, weight: int = 1) -> float:
    """The first member sends its update with one code of 127 in each tensor, as so many samples. Accuracy of the head."""
    model, layers, clients, accuracy = fleet
    shapes = head_spec(read_model(model), layers).tensors

    def tamper(place: int, trained: Trained) -> Trained:
        if place or not lies:
            return trained
        codes = np.frombuffer(trained.codes, np.int8).copy()
        codes[np.cumsum([0, *(int(np.prod(shape)) for shape in shapes[:-1])])] = 127
        return replace(trained, codes=codes.tobytes(), samples=weight)

    done = simulate(model, layers, clients, rounds=ROUNDS, train=TRAIN, seed=1, tamper=tamper)
    return accuracy(done.fleet)


@pytest.mark.parametrize("fleet", FLEETS)
def test_largest_one_member_costs_the_fleet_less_than_a_point(fleet: Callable[[], Fleet]) -> None:
    here = fleet()
    clean = attack_largest(here, lies=False)
    for weight in (1, 65_535):
        assert attack_largest(here, lies=True, weight=weight) > clean - 0.01


@pytest.mark.parametrize("fleet", FLEETS)
def test_control_largest(fleet: Callable[[], Fleet], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that follow the largest peak, as before: one code of 127 doubles everybody's step each round."""
    monkeypatch.setattr(aggregate, "median_peaks", lambda every: tuple(map(max, zip(*(m.peaks for m in every)))))
    here = fleet()
    assert attack_largest(here, lies=True) < attack_largest(here, lies=False) - 0.2
