# SPDX-License-Identifier: Apache-2.0
"""Fleets of real processes that train other heads than classes of dense layers, and a new head on a backbone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_tiny.lab.heads import samples
from fl_tiny.learn.head import head_spec
from fl_tiny.learn.loss import Task
from fl_tiny.learn.tflite import read_model
from tests.learn.tiny import classifier

from .fleet import Fleet, cli

MODELS = Path(__file__).parents[1] / "models"
FLEETS = {
    "labels of their own": ("zoo/logistic_three", 2, "multi-label", []),
    "values": ("zoo/values", 2, "regression", []),
    "a convolution before the pool": ("zoo/conv_two", 2, "classification", []),
    "tanh between": ("zoo/hidden_tanh", 2, "classification", []),
    "biases alone": ("zoo/conv_two", 2, "classification", ["--bias-only"]),
}


@pytest.fixture
def ended(tmp_path: Path) -> Iterator[list[Fleet]]:
    fleets: list[Fleet] = []
    yield fleets
    for fleet in fleets:
        fleet.end()


def taught(fleet: Fleet, model: Path, layers: int, task: str, devices: int) -> tuple[list[Path], Path]:
    """Enrolled devices, each with its part of made-up samples, and test samples."""
    read = read_model(model.read_bytes())
    spec = head_spec(read, layers, task=Task(task))
    x, y = samples(read, spec, 100 * devices + 200, np.random.default_rng(1))
    made = []
    for number in range(devices):
        part = slice(100 * number, 100 * (number + 1))
        directory = fleet.device(f"d{number}", samples=0)
        np.savez(fleet.root / "part.npz", x=x[part], y=y[part])
        cli("samples", "add", directory, "--data", fleet.root / "part.npz")
        made.append(directory)
    test = fleet.root / "test.npz"
    np.savez(test, x=x[100 * devices :], y=y[100 * devices :])
    return made, test


def score(model: Path, test: Path) -> float:
    found: dict[str, Any] = cli("model", "evaluate", model, "--data", test)
    return float(found["r2"] if found["accuracy"] is None else found["accuracy"])


@pytest.mark.parametrize("name", FLEETS)
def test_a_fleet_trains_it_and_the_exported_model_and_the_boards_are_better(
    name: str, tmp_path: Path, ended: list[Fleet]
) -> None:
    file, layers, task, more = FLEETS[name]
    model = MODELS / f"{file}.tflite"
    fleet = Fleet(tmp_path, model, layers, "--task", task, *more)
    ended.append(fleet)
    gateway = fleet.gateway("--rounds", 3, "--clients", 2, "--quorum", 1, "--interval", 0)
    devices, test = taught(fleet, model, layers, task, 2)
    runs = [fleet.run(d, "--rounds", 3) for d in devices]
    assert gateway.wait() == 0
    assert [run.wait() for run in runs] == [0, 0]
    cli("gateway", "export", fleet.gw, "--out", tmp_path / "x.tflite")
    assert score(tmp_path / "x.tflite", test) > score(model, test) + (0.0 if more else 0.1)
    for directory in devices:
        status = cli("device", "status", directory)
        assert status["rounds"] == 3
        assert more or score(directory / "model" / "current.tflite", test) > score(model, test)
    found = cli("predict", devices[0], "--data", test)
    assert len(found["values" if task == "regression" else "labels"]) == 200
    with sqlite3.connect(fleet.gw / "state.db") as db:
        (body,) = db.execute("SELECT body FROM version WHERE number=3").fetchone()
    spec = head_spec(read_model(model.read_bytes()), layers)
    whole = sum(layer.weights.size + 2 * layer.weights.shape[0] for layer in spec.layers)
    assert len(body) == (2 * sum(layer.weights.shape[0] for layer in spec.layers) if more else whole)


def test_a_fleet_trains_a_new_head_and_knows_its_labels(tmp_path: Path, ended: list[Fleet]) -> None:
    pytest.importorskip("ai_edge_litert.schema_py_generated", reason="the extra [model] is not installed")
    names = ["mug", "shoe", "plant", "key", "hat"]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    new = tmp_path / "new.tflite"
    backbone = MODELS / "silabs" / "image_classification.tflite"
    cli("model", "rehead", backbone, "--classes", 5, "--labels", tmp_path / "labels.txt", "--out", new)
    fleet = Fleet(tmp_path, new, 1)
    ended.append(fleet)
    gateway = fleet.gateway("--rounds", 3, "--clients", 2, "--quorum", 1, "--interval", 0)
    devices, test = taught(fleet, new, 1, "classification", 2)
    runs = [fleet.run(d, "--rounds", 3) for d in devices]
    assert gateway.wait() == 0
    assert [run.wait() for run in runs] == [0, 0]
    cli("gateway", "export", fleet.gw, "--out", tmp_path / "x.tflite")
    assert score(tmp_path / "x.tflite", test) > score(new, test) + 0.1
    found = cli("predict", devices[0], "--data", test)["labels"]
    assert set(found) <= set(range(5))
    shown = cli_text("predict", devices[0], "--data", test)
    assert set(shown.split("\n")) - {""} <= set(names)


def test_a_head_that_no_update_can_carry_is_refused_with_a_way_out_that_works(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert.schema_py_generated", reason="the extra [model] is not installed")
    (tmp_path / "wide.tflite").write_bytes(classifier(sizes=(1280, 1000)))
    line = cli("gateway", "init", tmp_path / "gw", "--model", tmp_path / "wide.tflite", code=65)
    assert "the last layer has 1281000 parameters" in line and "--layers" not in line
    assert "fl-tiny model rehead FILE --classes N --out NEW" in line and not (tmp_path / "gw").exists()
    cli("model", "rehead", tmp_path / "wide.tflite", "--classes", 5, "--out", tmp_path / "new.tflite")
    cli("gateway", "init", tmp_path / "gw", "--model", tmp_path / "new.tflite")


def test_a_round_goes_by_the_strategy_and_training_that_the_settings_say(fleet: Fleet) -> None:
    settings = ["find_rate = true", "smoothing = 0.1", "balanced = true", "patience = 2", 'strategy = "fedyogi"']
    (fleet.gw / "fl-tiny.toml").write_text("\n".join(settings) + "\n")
    gateway = fleet.gateway("--rounds", 2, "--clients", 2, "--quorum", 1, "--interval", 0)
    devices = [fleet.device(f"d{i}", seed=i) for i in range(2)]
    runs = [fleet.run(d, "--rounds", 2) for d in devices]
    assert gateway.wait() == 0
    assert [run.wait() for run in runs] == [0, 0]
    with sqlite3.connect(fleet.gw / "state.db") as db:
        assert {name for (name,) in db.execute("SELECT name FROM strategy")} == {"unit", "mean", "square"}
    line = cli("gateway", "run", fleet.gw, "--strategy", "nonsense", code=78)
    assert "nonsense" in line and "fedadam" in line


def cli_text(*args: object) -> str:
    import subprocess

    from .fleet import COMMAND

    done = subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_an_oversized_y_is_refused(fleet: Fleet) -> None:
    """Labels for a fleet of classes must be one integer each."""
    fleet.gateway()
    directory = fleet.device("d", samples=0)
    shape = cli("model", "inspect", fleet.root / "gw" / "model" / "base.tflite")["input"]["shape"][1:]
    np.savez(fleet.root / "bad.npz", x=np.zeros((12, *shape), np.int8), y=np.zeros((12, 4), np.float32))
    assert "one integer" in cli("samples", "add", directory, "--data", fleet.root / "bad.npz", code=65)
    assert json.dumps(cli("samples", "stats", directory)["samples"]) == "0"
