# SPDX-License-Identifier: Apache-2.0
"""What each encoding of updates costs in accuracy, against float32 throughout, and what it saves in bytes.

For scripts/bench: over the demo's data and over the Fashion clients (lab/fashion.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fl_tiny.config import GatewaySettings
from fl_tiny.device.backbone import open_backbone
from fl_tiny.device.training import round_settings
from fl_tiny.gateway.encodings import Encodings
from fl_tiny.lab import watch
from fl_tiny.lab.measure import found_in
from fl_tiny.lab.simulate import Client, client_of, simulate
from fl_tiny.learn.calibrate import activation_ranges
from fl_tiny.learn.head import default_layers, head_spec, read_parameters
from fl_tiny.learn.requant import patch, requantise
from fl_tiny.learn.tflite import cut, read_model
from fl_tiny.learn.train import fit
from fl_tiny.protocol import wire
from fl_tiny.protocol.aggregate import merge_ranges

WANTED = ("int8", "int4", "topk")
TOPK_SHARE = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A fleet that is simulated. accuracy: of a .tflite file."""

    model: bytes
    layers: int
    clients: Sequence[Client]
    rounds: int
    accuracy: Callable[[bytes], float]


def watches(devices: int = 10, labels: int | None = 5, rounds: int = 20) -> Task:
    """The demo's arms, labels a class each, judged on all later windows."""
    found = watch.load()
    arms = found.arms[:devices]
    model = read_model(found.model)
    layers = default_layers(model)
    spec = head_spec(model, layers)
    backbone = open_backbone(cut(model, spec.feature_tensor))
    clients = []
    for arm in arms:
        part = watch.labelled(arm, labels)
        features = backbone.run(part.x).reshape(len(part.x), -1).astype(np.int8)
        clients.append(client_of(features, part.y, spec.features.zero_point))

    def accuracy(data: bytes) -> float:
        return float(np.mean([np.mean(found_in(data, arm.later.x) == arm.later.y) for arm in arms]))

    return Task(found.model, layers, clients, rounds, accuracy)


def compare(task: Task, seeds: Sequence[int] = (1,)) -> dict[str, Any]:
    """Encoding -> accuracy (mean over seeds), points below float32, bytes of codes up and of heads down a round."""
    gateway = GatewaySettings()
    train = wire.Train(gateway.epochs, gateway.batch, gateway.rate)
    whole = float(np.mean([task.accuracy(in_floats(task, train, seed)) for seed in seeds]))
    found: dict[str, Any] = {"float32": {"accuracy": round(whole, 4)}}
    for wanted in WANTED:
        encodings = Encodings(wanted, TOPK_SHARE)
        done = [
            simulate(
                task.model,
                task.layers,
                task.clients,
                rounds=task.rounds,
                train=train,
                seed=seed,
                max_samples=gateway.max_samples,
                encodings=encodings,
            )
            for seed in seeds
        ]
        accuracy = float(np.mean([task.accuracy(each.fleet) for each in done]))
        found[wanted] = {
            "accuracy": round(accuracy, 4),
            "points_below_float32": round(100 * (whole - accuracy), 2),
            "up": round(float(np.mean([each.up for each in done]))),
            "down": round(float(np.mean([each.down for each in done]))),
        }
    return found


def in_floats(task: Task, train: wire.Train, seed: int) -> bytes:
    """FedAvg without any rounding on the way; the file's int8 comes last, as ``gateway export`` makes it."""
    spec = head_spec(read_model(task.model), task.layers)
    head = [tensor.astype(np.float64) for tensor in read_parameters(spec)]
    settings = replace(round_settings(train))
    spans: list[tuple[float, ...]] = []
    for number in range(1, task.rounds + 1):
        total, weight, spans = [np.zeros_like(tensor) for tensor in head], 0, []
        start = [tensor.astype(np.float32) for tensor in head]
        for place, client in enumerate(task.clients):
            rest = ~client.held
            if len(rest) < 10 or len(np.unique(client.labels)) < 2:
                continue
            rng = np.random.default_rng([seed, number, place])
            fitted = fit(spec, start, client.features[rest], client.labels[rest], settings=settings, rng=rng)
            samples = int(rest.sum())
            total = [t + samples * f.astype(np.float64) for t, f in zip(total, fitted, strict=True)]
            weight += samples
            ranges = activation_ranges(spec, fitted, client.features[rest])
            spans.append(tuple(float(v) for span in ranges for v in span))
        head = [tensor / weight for tensor in total]
    merged = merge_ranges(spans)
    ranges_of = list(zip(merged[0::2], merged[1::2], strict=True)) if merged else None
    return patch(task.model, spec, requantise(spec, [tensor.astype(np.float32) for tensor in head], ranges_of))
