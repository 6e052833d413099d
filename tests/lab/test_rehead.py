# SPDX-License-Identifier: Apache-2.0
"""A new head on a public backbone: run by stock interpreters, trained by personalise, labels carried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_tiny.cli.main import main
from fl_tiny.labels import labels_of
from fl_tiny.learn.head import head_spec
from fl_tiny.learn.tflite import read_model
from tests.learn.tiny import SILABS, zoo

pytest.importorskip("ai_edge_litert.schema_py_generated", reason="the extra [model] is not installed")
tflite = pytest.importorskip("tflite_runtime.interpreter", reason="tflite-runtime has no wheel for this Python")
from ai_edge_litert import interpreter as litert  # noqa: E402 - behind the skip

KINDS = {"image_classification": 5, "keyword_spotting": 4}


def samples(path: Path, classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of classes that the backbone was not made for: each class a smooth field, in its own noise."""
    source = read_model(path.read_bytes()).input
    shape, rng = source.shape[1:], np.random.default_rng(seed)
    centres = np.cumsum(np.random.default_rng(5).normal(size=(classes, int(np.prod(shape)))), axis=1)
    centres = (centres - centres.mean(axis=1, keepdims=True)) / centres.std(axis=1, keepdims=True)
    labels = np.arange(count) % classes
    x = centres[labels] + 0.5 * rng.normal(size=(count, centres.shape[1]))
    x = x.reshape(count, *shape)
    if source.dtype == "float32":
        return (x * 20).astype(np.float32), labels
    return np.clip(np.rint(x * 45), -128, 127).astype(np.int8), labels


def found(runtime: Any, data: bytes, x: np.ndarray) -> np.ndarray:
    interpreter = runtime.Interpreter(model_content=data)
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    classes = []
    for row in x:
        interpreter.set_tensor(source["index"], row[None])
        interpreter.invoke()
        classes.append(int(interpreter.get_tensor(sink["index"]).argmax()))
    return np.array(classes)


def call(capsys: pytest.CaptureFixture[str], *args: Any) -> dict[str, Any]:
    assert main([*map(str, args), "--json"]) == 0
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("hidden", [None, 24])
def test_a_new_head_is_imprinted_then_trained_and_runs_in_stock_interpreters(
    name: str, hidden: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes, model = KINDS[name], SILABS / f"{name}.tflite"
    names = [f"thing {i}" for i in range(classes)]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    x, y = samples(model, classes, 300, seed=1)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    more = [] if hidden is None else ["--hidden", hidden]
    out = tmp_path / "new.tflite"
    common = ["model", "rehead", model, "--classes", classes, "--labels", tmp_path / "labels.txt", *more]
    told = call(capsys, *common, "--imprint", tmp_path / "d.npz", "--out", out)
    assert (told["classes"], told["labels"], told["imprinted"]) == (classes, names, True)
    assert labels_of(out.read_bytes(), classes) == tuple(names)

    better = tmp_path / "better.tflite"
    call(capsys, "model", "personalise", out, "--data", tmp_path / "d.npz", "--out", better)
    test_x, test_y = samples(model, classes, 200, seed=2)
    imprinted = float(np.mean(found(tflite, out.read_bytes(), test_x) == test_y))
    for runtime in (tflite, litert):
        trained = float(np.mean(found(runtime, better.read_bytes(), test_x) == test_y))
        assert trained > 0.6
        assert imprinted - 1 / classes > (trained - 1 / classes) / 2


def test_a_random_head_is_the_same_each_time_and_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = SILABS / "image_classification.tflite"
    for name in ("a", "b"):
        call(capsys, "model", "rehead", model, "--classes", 5, "--out", tmp_path / f"{name}.tflite")
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()
    x, y = samples(model, 5, 300, seed=1)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    told = call(
        capsys,
        "model",
        "personalise",
        tmp_path / "a.tflite",
        "--data",
        tmp_path / "d.npz",
        "--out",
        tmp_path / "c.tflite",
    )
    assert told["accepted"]
    assert told["after"] > told["before"] + 0.3


@pytest.mark.parametrize("name", ["conv_head", "conv_late", "uint8_io", "float_io"])
def test_backbones_with_other_ends_get_a_head_too(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.tflite").write_bytes(zoo(name))
    call(capsys, "model", "rehead", tmp_path / "old.tflite", "--classes", 3, "--out", tmp_path / "new.tflite")
    old, new = read_model(zoo(name)), read_model((tmp_path / "new.tflite").read_bytes())
    assert (new.input.shape, new.input.dtype) == (old.input.shape, old.input.dtype)
    assert (new.output.shape, new.output.dtype) == ((1, 3), old.output.dtype)
    assert head_spec(new, 1).classes == 3
    interpreter = tflite.Interpreter(model_content=new.data)
    interpreter.allocate_tensors()
    interpreter.invoke()


def test_what_cannot_get_a_head_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.tflite").write_bytes(zoo("streaming"))
    assert main(["model", "rehead", str(tmp_path / "old.tflite"), "--classes", "3", "--out", str(tmp_path / "n")]) == 65
    wrong = tmp_path / "labels.txt"
    wrong.write_text("one\ntwo\n")
    image = str(SILABS / "image_classification.tflite")
    args = ["model", "rehead", image, "--classes", "3", "--labels", str(wrong), "--out", str(tmp_path / "n")]
    assert main(args) == 65
    assert not (tmp_path / "n").exists()
    assert capsys.readouterr().out == ""
