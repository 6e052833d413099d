# SPDX-License-Identifier: Apache-2.0
"""``fl-tiny model`` as a user runs it: a process, files, exit codes, one line on stderr."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_tiny.device.backbone import open_backbone
from fl_tiny.device.runtimes import RUNTIMES, installed
from fl_tiny.learn.head import head_spec
from fl_tiny.learn.tflite import read_model
from tests.learn.test_train import a_task
from tests.learn.tiny import SILABS, classifier, silabs

ONLY_MODEL = "import fl_tiny.cli.main as m; m.GROUPS = ('model',); m.entry()"


def fl_tiny(*args: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", ONLY_MODEL, "model", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=120)
    assert done.returncode == check, done.stderr
    return done


def refused(*args: object, code: int) -> str:
    """The one line that a refused command says."""
    done = fl_tiny(*args, check=code)
    assert done.stdout == ""
    lines = done.stderr.strip().split("\n")
    faults = [line for line in lines if line.startswith("fl-tiny: ")]
    assert len(faults) == 1
    assert lines[-1] == faults[0]
    assert "Traceback" not in done.stderr
    return faults[0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(classifier(("dense relu", "dense"), (12, 9, 4)))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    features, labels = a_task(head_spec(read_model(classifier(sizes=(12, 4))), 1), 900)
    np.savez(tmp_path / "train.npz", x=features[:400], y=labels[:400])
    np.savez(tmp_path / "test.npz", x=features[400:], y=labels[400:])
    return tmp_path / "train.npz"


def test_inspect_says_what_the_model_is() -> None:
    found = json.loads(fl_tiny("inspect", SILABS / "tflite_micro_magic_wand.tflite", "--json").stdout)
    assert set(found) >= {"input", "outputs", "operators", "tail", "heads", "costs", "labels", "runtime", "runtimes"}
    assert found["runtimes"]["numpy"] is True
    held = found["input_range"]  # of the QUANTIZE behind it: scale 12.713, zero point -33
    assert held == pytest.approx([-1207.7, 2034.1], abs=0.1)
    assert found["usual_range"] is None
    assert found["input"] == {"shape": [1, 128, 3, 1], "dtype": "float32", "scale": None, "zero_point": None}
    assert found["labels"] is None
    assert found["tail"] == ["FULLY_CONNECTED", "FULLY_CONNECTED", "SOFTMAX", "DEQUANTIZE"]
    assert [cost["layers"] for cost in found["costs"]] == [1, 2]
    assert [each["shape"] for each in found["outputs"]] == [[1, 4]]
    assert found["operators"][-3:] == ["FULLY_CONNECTED", "SOFTMAX", "DEQUANTIZE"]
    assert found["heads"] == [
        {
            "layers": 1,
            "parameters": 68,
            "kinds": ["dense"],
            "feature_shape": [1, 16],
            "trainable": True,
            "reason": None,
        },
        {
            "layers": 2,
            "parameters": 3668,
            "kinds": ["dense relu", "dense"],
            "feature_shape": [1, 224],
            "trainable": True,
            "reason": None,
        },
    ]
    text = fl_tiny("inspect", SILABS / "image_classification.tflite").stdout
    assert "int8 [1, 32, 32, 3] scale 0.0078125 zero point 0 holds -1 to 1\n" in text
    assert "650 parameters" in text


def test_inspect_says_why_a_head_cannot_be_trained(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(classifier(version=12))
    head = json.loads(fl_tiny("inspect", tmp_path / "m.tflite", "--json").stdout)["heads"][0]
    assert head["trainable"] is False
    assert "version 12" in head["reason"]
    assert "version 12" in refused(
        "personalise", tmp_path / "m.tflite", "--data", "none.npz", "--out", tmp_path / "o", code=65
    )


def test_evaluate_counts_what_the_interpreter_gets_right(model: Path, data: Path) -> None:
    found = json.loads(fl_tiny("evaluate", model, "--data", data, "--json").stdout)
    with np.load(data) as arrays:
        right = open_backbone(model.read_bytes()).run(arrays["x"]).argmax(axis=1) == arrays["y"]
    assert found == {
        "accuracy": right.mean(),
        "samples": 400,
        "skipped": 0,
        "on": "the samples given",
        "runtime": open_backbone(model.read_bytes()).name,
    }


def test_numpy_evaluates_and_personalises_as_the_interpreter_does(model: Path, data: Path, tmp_path: Path) -> None:
    if not installed("tflite"):
        pytest.skip("tflite-runtime is not installed here")
    found = {}
    for runtime in ("tflite", "numpy"):
        out = tmp_path / runtime
        fl_tiny("personalise", model, "--data", data, "--out", out, "--runtime", runtime)
        each = json.loads(fl_tiny("evaluate", out, "--data", data, "--runtime", runtime, "--json").stdout)
        found[runtime] = (each["accuracy"], out.read_bytes())
        assert each["runtime"].startswith(RUNTIMES[runtime].distribution)
    assert found["numpy"] == found["tflite"]


@pytest.mark.parametrize("name", ["tflite", "litert"])
def test_a_runtime_that_is_not_installed_exits_69(model: Path, data: Path, name: str) -> None:
    if installed(name):
        pytest.skip(f"{name} is installed here")
    assert "pip install" in refused("evaluate", model, "--data", data, "--runtime", name, code=69)


@pytest.mark.parametrize(("layers", "parameters"), [(None, 157), (1, 40), (2, 157)])
def test_personalise_makes_a_better_model_of_the_same_length(
    model: Path, data: Path, layers: int | None, parameters: int
) -> None:
    out = data.parent / "out.tflite"
    more = [] if layers is None else ["--layers", layers]
    found = json.loads(fl_tiny("personalise", model, "--data", data, "--out", out, "--json", *more).stdout)
    more = {"samples", "groups", "on", "tells", "skipped"}
    assert set(found) == {"before", "after", "accepted", "layers", "parameters", "seconds", *more}
    assert (found["accepted"], found["layers"], found["parameters"]) == (True, layers or 2, parameters)
    assert found["after"] > found["before"]
    assert len(out.read_bytes()) == len(model.read_bytes())
    test = data.parent / "test.npz"
    before, after = (
        json.loads(fl_tiny("evaluate", each, "--data", test, "--json").stdout)["accuracy"] for each in (model, out)
    )
    assert after > max(before + 0.2, 0.7)


def test_personalise_twice_with_one_seed_gives_the_same_bytes(model: Path, data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        fl_tiny("personalise", model, "--data", data, "--out", tmp_path / name, "--seed", seed, "--epochs", 3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_what_is_not_better_leaves_the_model_as_it_was(model: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(-128, 128, (60, 12), np.int8)
    np.savez(tmp_path / "own.npz", x=x, y=open_backbone(model.read_bytes()).run(x).argmax(axis=1))
    out = tmp_path / "out.tflite"
    found = json.loads(fl_tiny("personalise", model, "--data", tmp_path / "own.npz", "--out", out, "--json").stdout)
    assert found["accepted"] is False
    assert found["before"] == 1
    assert out.read_bytes() == model.read_bytes()


def test_a_model_may_be_replaced_by_its_better_self(model: Path, data: Path) -> None:
    old = model.read_bytes()
    fl_tiny("personalise", model, "--data", data, "--out", model)
    assert model.read_bytes() != old
    assert sorted(each.name for each in model.parent.iterdir()) == ["model.tflite", "test.npz", "train.npz"]


@pytest.mark.parametrize(
    "bad", [b"", b"text\n" * 99, silabs("image_classification")[:50_000], b"\0\0\0\0TFL3" + b"\x77" * 99]
)
@pytest.mark.parametrize("command", ["inspect", "evaluate", "personalise"])
def test_bad_model_files_end_with_65(tmp_path: Path, data: Path, command: str, bad: bytes) -> None:
    (tmp_path / "bad.tflite").write_bytes(bad)
    out = tmp_path / "o"
    options = {"inspect": [], "evaluate": ["--data", data], "personalise": ["--data", data, "--out", out]}
    more: list[Any] = options[command]
    refused(command, tmp_path / "bad.tflite", *more, code=65)
    refused(command, tmp_path / "missing.tflite", *more, code=65)
    refused(command, tmp_path, *more, code=65)
    assert not out.exists()


def test_bad_data_ends_with_65_and_says_what_is_expected(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tflite"
    np.savez(tmp_path / "shape.npz", x=np.zeros((20, 13), np.float32), y=np.zeros(20, int))
    np.savez(tmp_path / "few.npz", x=np.zeros((5, 12), np.float32), y=np.zeros(5, int))
    np.savez(tmp_path / "label.npz", x=np.zeros((20, 12), np.float32), y=np.full(20, 4))
    for name, said in (("shape", "[n, 12]"), ("few", "too few"), ("label", "0 to 3"), ("missing", "No such file")):
        assert said in refused("personalise", model, "--data", tmp_path / f"{name}.npz", "--out", out, code=65)
    assert not out.exists()


def test_a_place_that_cannot_be_written_ends_with_69_before_the_work(model: Path, data: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "no" / "such" / "o.tflite", tmp_path, model / "o.tflite", "/proc/o.tflite"):
        refused("personalise", model, "--data", data, "--out", out, code=69)
    assert "3 " not in refused("personalise", model, "--data", data, "--out", "/proc/o", "--layers", 2, code=69)


def test_more_layers_than_there_are_end_with_65(model: Path, data: Path, tmp_path: Path) -> None:
    said = refused("personalise", model, "--data", data, "--out", tmp_path / "o", "--layers", 3, code=65)
    assert "2 dense layers" in said


@pytest.mark.parametrize("option", [["--layers", "0"], ["--epochs", "-1"], ["--seed", "x"], ["--epochs", "1.5"]])
def test_options_out_of_range_end_with_2(model: Path, data: Path, tmp_path: Path, option: list[str]) -> None:
    fl_tiny("personalise", model, "--data", data, "--out", tmp_path / "o", *option, check=2)


@pytest.mark.parametrize("command", ["inspect", "evaluate", "personalise"])
def test_help_has_an_example(command: str) -> None:
    assert "fl-tiny model" in fl_tiny(command, "--help").stdout.split("example:")[1]


def test_personalise_trains_as_it_is_told(model: Path, data: Path, tmp_path: Path) -> None:
    told = ("--rate", "auto", "--optimiser", "sgd", "--smoothing", "0.1", "--balanced", "--patience", "3")
    asked = ("personalise", model, "--data", data, "--json", "--out")
    found = json.loads(fl_tiny(*asked, tmp_path / "a.tflite", *told).stdout)
    plain = json.loads(fl_tiny(*asked, tmp_path / "b.tflite").stdout)
    assert found["before"] == plain["before"]
    assert (tmp_path / "a.tflite").read_bytes() != (tmp_path / "b.tflite").read_bytes()
    assert found["after"] > found["before"]
    assert "auto" in fl_tiny(*asked, tmp_path / "c.tflite", "--rate", "much", check=2).stderr


def test_long_training_says_how_far_it_is_and_how_long_it_lasts(tmp_path: Path) -> None:
    """A thousand classes and few samples: the steps over all parameters take the time (1.3 million here)."""
    (tmp_path / "wide.tflite").write_bytes(classifier(sizes=(1280, 1000)))
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "d.npz", x=rng.integers(-128, 128, (100, 1280), dtype=np.int8), y=np.arange(100) % 20)
    words = ("--data", tmp_path / "d.npz", "--out", tmp_path / "o.tflite", "--epochs", 8)
    done = fl_tiny("personalise", tmp_path / "wide.tflite", *words)
    assert re.search(r"^epochs: [1-9][0-9]* of 48, about [0-9]+ s left$", done.stderr, re.MULTILINE), done.stderr
    assert "epochs" not in done.stdout
