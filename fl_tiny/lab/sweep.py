# SPDX-License-Identifier: Apache-2.0
"""What the fleet gives by the number of labels: the demo's devices simulated, as a child process of the demo.

Run as ``python -m fl_tiny.lab.sweep LABELS ROUNDS DEVICES RUNTIME``, LABELS a class or ``all``, RUNTIME empty for
the one that is installed; prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from fl_tiny import config
from fl_tiny.device.backbone import open_backbone
from fl_tiny.lab import watch
from fl_tiny.lab.measure import found_in
from fl_tiny.lab.simulate import client_of, simulate
from fl_tiny.learn import judge
from fl_tiny.learn.head import default_layers, head_spec, read_parameters
from fl_tiny.learn.requant import patch
from fl_tiny.learn.tflite import cut, read_model
from fl_tiny.learn.train import Settings
from fl_tiny.protocol import wire


def sweep(
    labels: int | None, rounds: int, devices: int, runtime: str | None = None, start: str = "model"
) -> dict[str, Any]:
    """Mean accuracies on later windows with ``labels`` a class: alone, global, personal; and the cold start's.

    Alone is fitted as ``fl-tiny model personalise`` does, without its check of whether that helped; here it does.
    """
    found = watch.load()
    arms = found.arms[:devices]
    model = read_model(found.model)
    layers = default_layers(model)
    spec = head_spec(model, layers)
    backbone = open_backbone(cut(model, spec.feature_tensor), runtime=runtime)
    clients, alone, rng = [], [], np.random.default_rng(watch.SEED)
    for arm in arms:
        part = watch.labelled(arm, labels)
        features = backbone.run(part.x).reshape(len(part.x), -1).astype(np.int8)
        clients.append(client_of(features, part.y, spec.features.zero_point))
        own = judge.trained(spec, read_parameters(spec), features, part.y, settings=Settings(), rng=rng)
        alone.append(patch(found.model, spec, own))
    gateway, device = config.GatewaySettings(), config.DeviceSettings()
    done = simulate(
        found.model,
        layers,
        clients,
        rounds=rounds,
        train=wire.Train(gateway.epochs, gateway.batch, gateway.rate),
        seed=watch.SEED,
        max_samples=gateway.max_samples,
        personal_epochs=device.personal_epochs,
        every_round=False,
        start=start,
        min_samples=gateway.min_samples,
    )

    def mean(files: list[bytes]) -> float:
        right = [found_in(data, arm.later.x) == arm.later.y for data, arm in zip(files, arms, strict=True)]
        return float(np.mean([each.mean() for each in right]))

    cold = found_in(done.fleet, found.cold.later.x) == found.cold.later.y
    return {
        "labels": labels,
        "alone": mean(alone),
        "global": mean([done.fleet] * len(arms)),
        "personal": mean(list(done.kept)),
        "cold_start": float(cold.mean()),
    }


def main() -> None:
    """The child's entry."""
    labels, rounds, devices, runtime = sys.argv[1:]
    found = sweep(None if labels == "all" else int(labels), int(rounds), int(devices), runtime or None)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
