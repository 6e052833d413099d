# SPDX-License-Identifier: Apache-2.0
"""int8 heads: the same integers as an interpreter, and patches that keep the file whole (facts.md, traps 1 to 7)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_tiny.device.backbone import open_backbone
from fl_tiny.errors import ModelError
from fl_tiny.learn.calibrate import activation_ranges, calibrated, equalised
from fl_tiny.learn.dense import forward
from fl_tiny.learn.head import HeadSpec, candidates, head_spec, read_parameters
from fl_tiny.learn.quant import affine_over
from fl_tiny.learn.requant import MAX_BIAS, QuantHead, patch, requantise
from fl_tiny.learn.tflite import Model, cut, read_model
from fl_tiny.learn.trail import follow
from tests.learn.tiny import classifier, silabs, zoo

TWO = ("dense relu", "dense")
MODELS = {
    "image_classification": (silabs("image_classification"), 1),
    "keyword_spotting": (silabs("keyword_spotting"), 1),
    "magic_wand, one layer": (silabs("tflite_micro_magic_wand"), 1),
    "magic_wand, two layers": (silabs("tflite_micro_magic_wand"), 2),
    "no bias": (classifier(TWO, (12, 9, 4), bias=False), 2),
    "per channel": (classifier(TWO, (12, 9, 4), per_channel=True), 2),
    "relu6": (classifier(("dense relu6", "dense relu", "dense"), (12, 9, 8, 4)), 3),
    "logits out": (classifier(tail="logits"), 1),
    "float logits out": (classifier(tail="float"), 1),
    "uint8 sigmoid": (classifier(sizes=(12, 1), tail="uint8"), 1),
    "tanh": (zoo("hidden_tanh"), 2),
    "convolution, then mean": (zoo("conv_head"), 1),
    "convolution with relu, then mean": (zoo("conv_relu"), 1),
    "convolution, then average pool": (zoo("conv_average"), 1),
    "two convolutions, then mean": (zoo("conv_two"), 2),
    "mean, then convolution": (zoo("conv_late"), 1),
    "convolution, flattened, dense": (zoo("conv_dense"), 2),
    "keyword_spotting, with a convolution": (silabs("keyword_spotting"), 2),
    "a value": (zoo("value"), 2),
    "autoencoder": (zoo("autoencoder"), 3),
}


@pytest.fixture(params=MODELS)
def opened(request: pytest.FixtureRequest) -> tuple[Model, HeadSpec]:
    data, layers = MODELS[request.param]
    model = read_model(data)
    return model, head_spec(model, layers)


def real_inputs(model: Model, count: int, seed: int = 0) -> np.ndarray:
    """Pictures of random smooth blobs: noise alone leaves most features at zero."""
    rng, shape = np.random.default_rng(seed), model.input.shape[1:]
    rough = np.cumsum(rng.normal(size=(count, int(np.prod(shape)))), axis=1).reshape(count, *shape)
    rough /= np.abs(rough).max(axis=tuple(range(1, rough.ndim)), keepdims=True)
    if model.input.dtype == "float32":
        return (rough * 20).astype(np.float32)
    return (rough * 127).astype(np.int8)


def features_of(model: Model, spec: HeadSpec, x: np.ndarray) -> np.ndarray:
    if spec.feature_tensor == model.input.index:
        return x.reshape(len(x), -1)
    return open_backbone(cut(model, spec.feature_tensor)).run(x)


def steps_apart(model: Model, head: QuantHead, features: np.ndarray, x: np.ndarray) -> float:
    """How many steps a layer of ours is from the interpreter's when given the interpreter's own codes.

    Through two layers it may be more: a step of a hidden unit is worth several of the output. So is a step before a
    TANH, whose codes are finer.
    """
    links = follow(model).links[: len(head.layers)][::-1]
    codes, worst = features, 0
    for layer, link in zip(head.layers, links, strict=True):
        left = [index for index in link.tensors if model.main.tensors[index].dtype == "int8"][-1]
        theirs = open_backbone(cut(model, left)).run(x)
        bent = layer.origin.bent
        coarser = 1 if bent is None else int(np.ceil(layer.output.scale / bent.scale))
        worst = max(worst, -(-int(np.abs(layer.run(codes).astype(int) - theirs).max()) // coarser))
        codes = theirs
    last = head.layers[-1].result
    assert np.abs(head.run(features) - last.to_real(codes)).max() < 8 * last.scale
    return worst


def test_our_integers_are_the_interpreters_to_within_a_step(opened: tuple[Model, HeadSpec]) -> None:
    model, spec = opened
    x = real_inputs(model, 64)
    head = requantise(spec, read_parameters(spec), None)
    assert steps_apart(model, head, features_of(model, spec, x), x) <= 1


def test_getting_and_putting_gives_the_same_bytes(opened: tuple[Model, HeadSpec]) -> None:  # trap 3
    model, spec = opened
    assert patch(model.data, spec, requantise(spec, read_parameters(spec), None)) == model.data


def test_a_changed_head_is_run_by_the_interpreter_as_by_us(opened: tuple[Model, HeadSpec]) -> None:  # traps 1 and 2
    """All scales move: a stale bias scale or output scale in the file would show as many steps of difference."""
    model, spec = opened
    rng = np.random.default_rng(5)
    params = [
        (each + rng.normal(size=each.shape) * each.std() * 2).astype(np.float32) for each in read_parameters(spec)
    ]
    x = real_inputs(model, 64)
    features = features_of(model, spec, x)
    for head in (calibrated(spec, params, features), requantise(spec, params, None)):
        data = patch(model.data, spec, head)
        assert len(data) == len(model.data)
        assert steps_apart(read_model(data), head, features, x) <= 1


def test_the_codes_after_a_patch_are_read_back(opened: tuple[Model, HeadSpec]) -> None:
    model, spec = opened
    rng = np.random.default_rng(6)
    params = [(each * 3 + rng.normal(size=each.shape) * 0.05).astype(np.float32) for each in read_parameters(spec)]
    head = calibrated(spec, params, features_of(model, spec, real_inputs(model, 16)))
    again = head_spec(read_model(patch(model.data, spec, head)), len(spec.layers))
    for layer, made in zip(again.layers, head.layers, strict=True):
        assert np.array_equal(layer.weights, made.weights)
        assert np.array_equal(layer.weight_scale, made.weight_scale)
        assert (layer.input, layer.output, layer.result) == (made.input, made.output, made.result)


def test_every_bias_scale_in_the_file_is_input_scale_times_weight_scale() -> None:  # trap 2
    for name in ("magic_wand, two layers", "per channel", "relu6"):
        data, layers = MODELS[name]
        model = read_model(data)
        spec = head_spec(model, layers)
        params = [each * np.float32(1.7) for each in read_parameters(spec)]
        new = read_model(patch(data, spec, calibrated(spec, params, features_of(model, spec, real_inputs(model, 32)))))
        for operator in [op for op in new.main.operators if op.name == "FULLY_CONNECTED"][-layers:]:
            source, weights, bias = (new.main.tensors[index].quantisation for index in operator.inputs)
            assert source
            assert weights
            assert bias
            wanted = np.float32(source.scale[0]) * np.array(weights.scale, np.float32)
            assert np.array(bias.scale, np.float32) == pytest.approx(wanted, rel=1e-6)
        for before, after in pairwise(head_spec(new, layers).layers):
            assert before.output == after.input


def test_only_the_heads_own_bytes_change() -> None:
    data, _ = MODELS["magic_wand, two layers"]
    model = read_model(data)
    spec = head_spec(model, 2)
    head = calibrated(spec, [each * 2 for each in read_parameters(spec)], np.zeros((4, 224), np.int8))
    new = patch(data, spec, head)
    changed = sum(a != b for a, b in zip(new, data, strict=True))
    assert 0 < changed < 3668 + 4 * 20 + 200


def test_a_scale_stays_one_number_or_one_a_row() -> None:  # trap 5
    for per_channel, rows in ((False, 1), (True, 5)):
        spec = head_spec(read_model(classifier(per_channel=per_channel)), 1)
        head = requantise(spec, [each * 4 for each in read_parameters(spec)], [(-1.0, 1.0)])
        assert head.layers[0].weight_scale.shape == (rows,)


def test_a_huge_bias_beside_tiny_weights_stays_within_int32() -> None:  # trap 6
    for per_channel in (False, True):
        data = classifier(per_channel=per_channel)
        model = read_model(data)
        spec = head_spec(model, 1)
        params = [np.full((5, 12), 1e-9, np.float32), np.array([50, -50, 40, 0, 1], np.float32)]
        head = requantise(spec, params, [(-50.0, 50.0)])
        bias = head.layers[0].bias
        assert bias is not None
        assert np.abs(bias.astype(np.int64)).max() <= MAX_BIAS
        x = real_inputs(model, 8)
        assert np.abs(head.run(x) - params[1]).max() < 0.6  # a step of the output is 110/255
        assert steps_apart(read_model(patch(data, spec, head)), head, x, x) <= 1


def test_ranges_get_ten_per_cent_head_room_and_hold_zero() -> None:  # trap 7
    affine = affine_over(-10.0, 20.0)
    assert affine.scale * (127 - affine.zero_point) == pytest.approx(22, abs=affine.scale)
    assert affine.scale * (-128 - affine.zero_point) == pytest.approx(-11, abs=affine.scale)
    assert affine_over(3.0, 5.0).zero_point == -128
    assert affine_over(-5.0, -3.0).zero_point == 127
    assert affine_over(0.0, 0.0).scale > 0


def test_a_public_output_keeps_its_quantisation() -> None:  # trap 7
    spec = head_spec(read_model(classifier(tail="logits")), 1)
    head = requantise(spec, [each * 9 for each in read_parameters(spec)], [(-99.0, 99.0)])
    assert head.layers[0].output == spec.layers[0].output


def test_logits_before_a_softmax_get_codes_only_where_they_could_win() -> None:
    spec = head_spec(read_model(classifier()), 1)
    params = [np.zeros((5, 12), np.float32), np.array([3, 2, 1, 0, -400], np.float32)]
    assert activation_ranges(spec, params, np.zeros((10, 12), np.int8)) == [(-5.0, 3.0)]
    plain = head_spec(read_model(classifier(tail="float")), 1)
    assert activation_ranges(plain, params, np.zeros((10, 12), np.int8)) == [(-400.0, 3.0)]


def test_equalising_changes_no_output() -> None:
    for name in ("magic_wand, two layers", "relu6", "no bias"):
        data, layers = MODELS[name]
        spec = head_spec(read_model(data), layers)
        codes = np.random.default_rng(0).integers(-128, 128, (50, spec.feature_size), np.int8)
        params, x = read_parameters(spec), spec.features.to_real(codes)
        after = forward(spec, equalised(spec, params, codes), x).final
        assert after == pytest.approx(forward(spec, params, x).final, rel=1e-3, abs=1e-3)


def test_numbers_that_are_not_finite_are_refused() -> None:
    spec = head_spec(read_model(classifier()), 1)
    for bad in (np.nan, np.inf):
        params = read_parameters(spec)
        params[0][2, 3] = bad
        with pytest.raises(ModelError, match="not finite"):
            requantise(spec, params, None)


@settings(max_examples=60)
@given(
    st.floats(1e-12, 1e12),
    st.floats(0, 1e12),
    st.booleans(),
    st.sampled_from(["softmax", "logits"]),
    st.integers(0, 99),
)
def test_any_finite_head_becomes_a_file_that_reads_back(
    size: float, bias: float, per_channel: bool, tail: str, seed: int
) -> None:
    data = classifier(TWO, (6, 5, 3), tail=tail, per_channel=per_channel)
    spec, rng = head_spec(read_model(data), 2), np.random.default_rng(seed)
    params = [
        (rng.normal(size=shape) * (size if len(shape) == 2 else bias)).astype(np.float32) for shape in spec.tensors
    ]
    features = rng.integers(-128, 128, (20, 6), np.int8)
    new = read_model(patch(data, spec, calibrated(spec, params, features)))
    assert candidates(new)[-1].trainable
    assert np.isfinite(requantise(spec, params, None).run(features)).all()
