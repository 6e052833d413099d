# SPDX-License-Identifier: Apache-2.0
"""One member against the head: the largest codes, the largest weight, sums that no samples have (docs/privacy.md)."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from e2e.fleet import Fleet, cli

from fl_tiny import statedir
from fl_tiny.config import GatewaySettings
from fl_tiny.device import worker
from fl_tiny.device.backbone import open_backbone
from fl_tiny.device.enrol import enrol
from fl_tiny.device.job import Trained
from fl_tiny.device.layout import DEVICE_KEY, PSK
from fl_tiny.device.link import Link
from fl_tiny.device.store import DeviceStore
from fl_tiny.device.training import client_sums
from fl_tiny.errors import RemoteError
from fl_tiny.gateway import setup
from fl_tiny.lab import fashion, watch
from fl_tiny.lab.measure import found_in
from fl_tiny.lab.simulate import Client, client_of, simulate
from fl_tiny.learn import gram
from fl_tiny.learn.head import default_layers, head_spec
from fl_tiny.learn.tflite import cut, read_model
from fl_tiny.protocol import aggregate, grams, signed, wire

from .test_floors import attacker

FASHION = Path(__file__).parents[1] / "models/fashion.tflite"
ROUNDS = 13
GATEWAY = GatewaySettings()
TRAIN = wire.Train(GATEWAY.epochs, GATEWAY.batch, GATEWAY.rate)
Task = tuple[bytes, int, list[Client], Callable[[bytes], float]]


def watch_fleet() -> Task:
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
        clients.append(client_of(features, part.y, spec.features.zero_point))
    later = [(arm.later.x, arm.later.y) for arm in data.arms]
    x, y = (np.concatenate(each) for each in zip(*later, strict=True))
    return data.model, layers, clients, lambda head: float(np.mean(found_in(head, x) == y))


def fashion_fleet() -> Task:
    """Fifty devices, 5,000 pictures over all, Dirichlet 1.0."""
    data = FASHION.read_bytes()
    task = fashion._task(data, 2000, fashion.SUMMED)
    parts = fashion.dirichlet(task.labels, 50, 1.0, np.random.default_rng(1))
    clients = [client_of(task.features[p], task.labels[p], task.spec.features.zero_point) for p in parts]
    return data, fashion.LAYERS, clients, lambda head: fashion._accuracy(task, head)


FLEETS = [
    pytest.param(watch_fleet, id="watch"),
    pytest.param(
        fashion_fleet,
        id="fashion",
        marks=[
            pytest.mark.full,
            pytest.mark.skipif(not fashion.IMAGES.is_dir(), reason="needs Debian's package dataset-fashion-mnist"),
        ],
    ),
]


def attack_largest(fleet: Task, *, lies: bool, weight: int = 1) -> float:
    """The head's accuracy when the first member's updates have a code of 127 in each tensor, and this weight."""
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
def test_largest_one_member_costs_the_fleet_less_than_a_point(fleet: Callable[[], Task]) -> None:
    here = fleet()
    clean = attack_largest(here, lies=False)
    for weight in (1, 65_535):
        assert attack_largest(here, lies=True, weight=weight) > clean - 0.01


@pytest.mark.parametrize("fleet", FLEETS)
def test_control_largest(fleet: Callable[[], Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that follow the largest peak, as before: one code of 127 doubles everybody's step each round."""
    monkeypatch.setattr(
        aggregate, "median_peaks", lambda every: tuple(map(max, zip(*(m.peaks for m in every), strict=True)))
    )
    here = fleet()
    assert attack_largest(here, lies=True) < attack_largest(here, lies=False) - 0.2


def forged(body: bytes, width: int, outputs: int) -> bytes:
    """Sums with moments that each gate of one number passes, and that no samples have."""
    sums = gram.from_bytes(body, width, outputs)
    signs = np.where(np.arange(width)[:, None] % 2 == np.arange(outputs) % 2, 120, -120)
    sums.moments[:-1] = signs * sums.moments[-1]
    return gram.to_bytes(sums)


def attack_forged_sums(root: Path) -> int:
    """A member of a real exact start delivers forged sums. Returns the code of the refusal, 0 when they are counted."""
    fleet = Fleet(root)
    device = root / "liar"

    async def run() -> int:
        async with attacker(fleet.gw) as found:  # here the gateway is honest, and the device is not
            gateway = found.gateway
            code = setup.new_codes(fleet.gw, 1, 600)[0]
            await enrol(device, code, f"127.0.0.1:{found.port}", "liar")
            await asyncio.to_thread(cli, "samples", "add", device, "--data", fleet.data("liar", 620, 1))
            gateway._open(time.monotonic())
            store = DeviceStore.open(device / "state.db")
            psk = statedir.read_secret(device, PSK)
            link = await Link.open(("127.0.0.1", found.port), store.get("did").hex(), psk, lan_timing=True)
            await link.register(store.get("did"))
            offer = await link.offer()
            await link.answer(offer.rid, wire.Said.JOIN)
            model = (device / "model/base.tflite").read_bytes()
            true = client_sums(worker.read_samples(store, model), store.head(), offer)
            assert offer.gram is not None
            codes = forged(true.codes, offer.gram.width, offer.gram.outputs)
            digest = hashlib.sha256(codes).digest()
            update = wire.Update(offer.rid, store.get("did"), offer.base, true.samples, digest, len(codes))
            message = signed.sign(wire.encode(update), statedir.read_secret(device, DEVICE_KEY))
            try:
                await link.upload(message, codes, again=False)
            except RemoteError as fault:
                return fault.code
            finally:
                await link.close()
                store.close()
            return 0

    return asyncio.run(run())


def test_forged_sums_are_refused(tmp_path: Path) -> None:
    assert attack_forged_sums(tmp_path) == wire.Code.SUMS


def test_control_forged_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look at eigenvalues they count."""
    monkeypatch.setattr(grams, "_is_positive", lambda sums, joint: True)
    assert attack_forged_sums(tmp_path) == 0
