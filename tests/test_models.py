# SPDX-License-Identifier: Apache-2.0
"""The committed models and data are what their pages say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import pytest

MODELS = Path(__file__).parent / "models"
WATCH = Path(__file__).parent.parent / "fl_tiny" / "lab" / "data"
INDEX: dict[str, dict[str, Any]] = json.loads((MODELS / "zoo" / "zoo.json").read_text())
runtime = pytest.importorskip("tflite_runtime.interpreter", reason="tflite-runtime has no wheel for this Python")


def predictions(path: Path, real: Any = None, raw: Any = None) -> Any:
    interpreter = runtime.Interpreter(model_content=path.read_bytes())
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    if raw is None:
        scale, zero = source["quantization"]
        raw = np.clip(np.round(real / scale) + zero, -128, 127).astype(np.int8)
    interpreter.resize_tensor_input(source["index"], raw.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], raw)
    interpreter.invoke()
    return interpreter.get_tensor(sink["index"]).argmax(axis=1)


def test_the_index_lists_every_file_of_zoo_and_bench() -> None:
    found = {f"{folder}/{path.name}" for folder in ("zoo", "bench") for path in (MODELS / folder).glob("*.tflite")}
    assert found == set(INDEX)


@pytest.mark.parametrize("name", INDEX)
def test_a_model_of_the_index_loads_with_the_ends_it_lists(name: str) -> None:
    interpreter = runtime.Interpreter(model_content=(MODELS / name).read_bytes())
    interpreter.allocate_tensors()
    for end, details in (("inputs", interpreter.get_input_details()), ("outputs", interpreter.get_output_details())):
        assert [[d["shape"].tolist(), d["dtype"].__name__] for d in details] == INDEX[name][end]


def test_a_dense_layer_of_version_12_does_not_load_in_2_14() -> None:
    with pytest.raises(ValueError, match="FULLY_CONNECTED' version '12'"):
        runtime.Interpreter(model_content=(MODELS / "zoo" / "tf219" / "dynamic_range.tflite").read_bytes())


def test_the_watch_model_leaves_the_unseen_arms_something_to_learn() -> None:
    data = np.load(WATCH / "watch.npz")
    right = predictions(WATCH / "watch.tflite", raw=data["x"]) == data["y"]
    later = [right[(data["arm"] == k) & (data["part"] == 1)].mean() for k in range(10)]
    assert 0.77 < np.mean(later) < 0.83
    assert right[data["arm"] == 10].mean() < 0.8


def test_every_arm_of_the_fleet_has_twenty_labels_a_class_and_no_wearer_of_the_backbone() -> None:
    data = np.load(WATCH / "watch.npz")
    counts = [
        [np.sum((data["arm"] == k) & (data["part"] == 0) & (data["y"] == c)) for c in range(7)] for k in range(10)
    ]
    assert np.min(counts) >= 20
    assert not set(data["wearer"].tolist()) & {1, 2, 4, 5}
    assert set(data["part"][data["arm"] == 10].tolist()) == {1}


@pytest.mark.skipif(not fashion.DATA.is_dir(), reason="Debian package dataset-fashion-mnist is not installed")
def test_the_fashion_model_knows_upright_images_and_not_those_upside_down() -> None:
    images, labels = (part[:2000] for part in fashion.read("t10k"))
    path = MODELS / "fashion.tflite"
    assert np.mean(predictions(path, images) == labels) > 0.8
    assert np.mean(predictions(path, fashion.upside_down(images)) == labels) < 0.3
