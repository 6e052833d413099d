# SPDX-License-Identifier: Apache-2.0
"""Whole models by numpy: every output value is the interpreter's, and what numpy cannot run is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fl_tiny.errors import ModelError
from fl_tiny.learn.head import head_spec
from fl_tiny.learn.kernels.plan import prepare
from fl_tiny.learn.kernels.rounding import Rule
from fl_tiny.learn.tflite import cut, read_model
from tests.learn.kernels.truth import inputs, interpreted, rules
from tests.learn.tiny import Net, classifier, silabs

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "tests" / "models"
WHOLE = [
    *sorted((MODELS / "silabs").glob("*.tflite")),
    MODELS / "fashion.tflite",
    ROOT / "fl_tiny" / "lab" / "data" / "watch.tflite",
    *sorted((MODELS / "zoo").glob("*.tflite")),
    MODELS / "zoo" / "tf219" / "per_channel.tflite",
    *sorted((MODELS / "bench").glob("*.tflite")),
]
REFUSED = {
    "dynamic_range": "FULLY_CONNECTED .* works on float32, int8, float32",
    "streaming": "several graphs or variables",
    "two_heads": "2 outputs",
}
CLOSE = {"float_model"}  # sums of real numbers depend on their order
N = 100


@rules
@pytest.mark.parametrize("path", [path for path in WHOLE if path.stem not in REFUSED], ids=lambda path: path.stem)
def test_every_output_value_of_a_model_is_the_interpreters(path: Path, rule: Rule) -> None:
    data = path.read_bytes()
    model = read_model(data)
    x = inputs(model, N)
    y, truth = prepare(model, rule).run(x), interpreted(data, x, rule)
    assert y.dtype == truth.dtype
    if path.stem in CLOSE:
        assert np.allclose(y, truth, rtol=1e-5, atol=1e-6)
    else:
        assert np.array_equal(y, truth)
    assert len(np.unique(truth)) > 1


@rules
@pytest.mark.parametrize("name", ["visual_wake_words", "keyword_spotting", "image_classification"])
def test_features_are_the_interpreters(name: str, rule: Rule) -> None:
    model = read_model(silabs(name))
    features = cut(model, head_spec(model, 1).feature_tensor)
    x = inputs(model, 20, seed=1)
    assert np.array_equal(prepare(read_model(features), rule).run(x), interpreted(features, x, rule))


@pytest.mark.parametrize("name", REFUSED)
def test_what_numpy_cannot_run_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[name]):
        prepare(read_model((MODELS / "zoo" / f"{name}.tflite").read_bytes()), Rule.TFLITE)


def test_an_operator_without_a_kernel_is_named_only_when_the_output_needs_it() -> None:
    net = Net()
    source = net.tensor([1, 4], "float32")
    other, result = net.tensor([1, 4], "float32"), net.tensor([1, 4], "float32")
    net.inputs, net.outputs = [source], [result]
    net.operator("EXP", [source], [other])
    net.operator("RELU", [source], [result])
    x = np.array([[-1, 2, -3, 4]], np.float32)
    assert prepare(read_model(net.model()), Rule.TFLITE).run(x).tolist() == [[0, 2, 0, 4]]
    net.outputs = [other]
    with pytest.raises(ModelError, match="numpy cannot run EXP"):
        prepare(read_model(net.model()), Rule.TFLITE)


@pytest.mark.parametrize("count", [0, 1, 5, 33])
@pytest.mark.parametrize("name", ["silabs/image_classification", "zoo/fixed_batch", "zoo/reshape_fc"])
def test_samples_at_once_give_what_each_gives_alone(name: str, count: int) -> None:
    plan = prepare(read_model((MODELS / f"{name}.tflite").read_bytes()), Rule.TFLITE)
    x = np.random.default_rng(1).integers(-128, 128, (count, *plan.input.shape[1:])).astype(np.int8)
    together = plan.run(x)
    assert together.shape == (count, plan.output.shape[-1])
    for row, each in zip(together, x, strict=True):
        assert np.array_equal(plan.run(each[None])[0], row)


def test_a_model_cut_at_its_input_gives_the_input() -> None:
    data = classifier()
    x = np.arange(-12, 12, dtype=np.int8).reshape(2, 12)
    at_input = cut(read_model(data), read_model(data).input.index)
    assert np.array_equal(prepare(read_model(at_input), Rule.TFLITE).run(x), x)
