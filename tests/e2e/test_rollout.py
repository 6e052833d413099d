# SPDX-License-Identifier: Apache-2.0
"""A newer model through a live fleet of real processes: a bad one that each device refuses, a good one by share."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_tiny.device.backbone import open_backbone
from fl_tiny.gateway.models import in_share
from fl_tiny.gateway.store import Store
from fl_tiny.learn.head import head_spec, read_parameters
from fl_tiny.learn.requant import patch, requantise
from fl_tiny.learn.tflite import read_model

from .fleet import MODEL, PATIENCE_S, Fleet, cli, stop

NEW = Path(__file__).parents[1] / "models/bench/head_64x10.tflite"  # another backbone, ten classes


class Rollout:
    """A fleet whose models are signed off the gateway, and the signing."""

    def __init__(self, root: Path) -> None:
        self.keys = root / "keys"
        cli("fleet", "init", self.keys)
        self.root = root
        self.fleet = Fleet(root, MODEL, None, "--manifest", self.sign(MODEL, 1, "--layers", 2))

    def sign(self, model: Path, counter: int, *options: object) -> Path:
        out = self.root / f"{counter}.manifest"
        cli("fleet", "sign", self.keys, "--model", model, "--counter", counter, "--out", out, *options)
        return out


@pytest.fixture
def rollout(tmp_path: Path) -> Iterator[Rollout]:
    found = Rollout(tmp_path)
    yield found
    found.fleet.end()


def numb(path: Path) -> Path:
    """The new model with a head that has forgotten everything: whatever it is shown, it says the same."""
    data = NEW.read_bytes()
    spec = head_spec(read_model(data), 1)
    zeros = [np.zeros_like(p) for p in read_parameters(spec)]
    path.write_bytes(patch(data, spec, requantise(spec, zeros, None)))
    return path


def samples(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    pattern = np.random.default_rng(98).normal(size=(10, 8, 8, 1))
    y = np.arange(60) % 10
    np.savez(path, x=(pattern[y] + rng.normal(size=(60, 8, 8, 1)) * 0.3).astype(np.float32), y=y)
    return path


def part_of(dids: list[bytes]) -> tuple[float, list[bool]]:
    """A share that some of these devices are in and some are not, and who is."""
    for share in (0.2, 0.4, 0.6, 0.8, 0.1, 0.9):
        chosen = [in_share(did, share) for did in dids]
        if 0 < sum(chosen) < len(dids):
            return share, chosen
    raise AssertionError("identities are random, and these are very odd")


def current(directory: Path) -> int:
    """How many classes the model that programs load tells apart; it makes an inference, as theirs do."""
    data = (directory / "model/current.tflite").read_bytes()
    return int(open_backbone(data).run(np.zeros((1, 8, 8, 1), np.int8)).shape[-1])


def test_a_new_model_runs_through_a_live_fleet_and_a_bad_one_stops_nothing(rollout: Rollout) -> None:
    new_model_through_a_fleet(rollout, 5)


def new_model_through_a_fleet(rollout: Rollout, count: int, patience: float = PATIENCE_S) -> None:
    """A numb model that all refuse, then a good one: for some, then for all, then learned."""
    fleet = rollout.fleet
    assert not (fleet.gw / "secret/model.key").exists()
    gateway = fleet.gateway("--interval", 2, "--deadline", 60)
    devices = [fleet.device(f"d{i}", seed=i) for i in range(count)]
    for directory in devices:
        (directory / "fl-tiny.toml").write_text("lan_timing = true\n")
    runs = [fleet.run(d) for d in devices]
    gateway.event("round", patience, state="published")

    bad = rollout.sign(numb(rollout.root / "numb.tflite"), 2)
    cli("gateway", "publish", fleet.gw, bad, "--model", rollout.root / "numb.tflite")
    for run in runs:
        assert "the same of every input" in run.event("upgrade", patience, state="refused", counter=2)["why"]
    gateway.event("round", patience, state="open")
    gateway.event("round", patience, state="published")
    rows = cli("gateway", "devices", fleet.gw)
    assert all(r["model"] == 1 and "code 21" in r["trouble"] and "refused model 2" in r["trouble"] for r in rows)
    assert cli("gateway", "status", fleet.gw)["rollout"] == {
        "counter": 2, "share": 1.0, "holding": 0, "refused": count
    }  # fmt: skip
    assert [current(d) for d in devices] == [4] * count

    share, chosen = part_of([bytes.fromhex(r["id"]) for r in rows])
    good = rollout.sign(NEW, 3)
    cli("gateway", "publish", fleet.gw, good, "--model", NEW, "--share", share)
    for run, is_chosen in zip(runs, chosen, strict=True):
        if is_chosen:
            run.event("upgrade", patience, state="confirmed", counter=3)
    assert [current(d) for d in devices] == [10 if is_chosen else 4 for is_chosen in chosen]
    gateway.event("round", patience, state="published", updates=chosen.count(False))  # the others go on
    assert "only grows" in cli("gateway", "publish", fleet.gw, good, "--model", NEW, "--share", share / 2, code=78)
    cli("gateway", "publish", fleet.gw, good, "--model", NEW)
    for run, is_chosen in zip(runs, chosen, strict=True):
        if not is_chosen:
            run.event("upgrade", patience, state="confirmed", counter=3)
    assert [current(d) for d in devices] == [10] * count
    assert cli("gateway", "status", fleet.gw)["rollout"] == {
        "counter": 3, "share": 1.0, "holding": count, "refused": 0
    }  # fmt: skip

    for i, directory in enumerate(devices):
        assert cli("samples", "stats", directory)["samples"] == 0, "features of another backbone teach it nothing"
        cli("samples", "add", directory, "--data", samples(rollout.root / f"new{i}.npz", i))
        with sqlite3.connect(directory / "state.db") as db:
            assert db.execute("SELECT count(*) FROM sample GROUP BY model ORDER BY model").fetchall() == [(60,), (60,)]
    moved = [r["number"] for r in cli("gateway", "rounds", fleet.gw) if r["kind"] == "model"]
    assert len(moved) == 1 and gateway.event("round", patience, state="published", number=moved[0] + 1)["updates"] > 0
    exported = cli("gateway", "export", fleet.gw, "--out", rollout.root / "x.tflite")
    assert exported["round"] and open_backbone((rollout.root / "x.tflite").read_bytes())
    assert [stop(run) for run in runs] == [0] * count and stop(gateway) == 0
    assert Store.open(fleet.gw / "state.db").faults() == []


def test_a_damaged_model_without_another_is_fetched_again(fleet: Fleet) -> None:
    fleet.gateway("--interval", 3600)
    directory = fleet.device("d", samples=0)
    base = directory / "model/base.tflite"
    good = base.read_bytes()
    base.write_bytes(good[:1000] + bytes([good[1000] ^ 4]) + good[1001:])
    assert "not the fleet's" in next(
        row["detail"] for row in doctor(directory) if row["check"] == "model" and row["state"] == "fail"
    )
    run = fleet.run(directory)
    run.event("connected")
    until = time.monotonic() + 30
    while base.read_bytes() != good:
        assert time.monotonic() < until, "".join(run.log)
        time.sleep(0.1)
    assert stop(run) == 0
    assert next(row["state"] for row in doctor(directory) if row["check"] == "model") == "ok"


def doctor(directory: Path) -> list[dict[str, str]]:
    words = [sys.executable, "-m", "fl_tiny", "device", "doctor", str(directory), "--json"]
    found: list[dict[str, str]] = json.loads(subprocess.run(words, capture_output=True, check=False).stdout)
    return found
