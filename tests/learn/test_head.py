# SPDX-License-Identifier: Apache-2.0
"""Which heads a model offers, and why others cannot be trained."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from fl_tiny.errors import ModelError
from fl_tiny.learn.head import candidates, default_layers, head_spec, read_parameters
from fl_tiny.learn.loss import Task
from fl_tiny.learn.tflite import read_model
from fl_tiny.learn.trail import Tail
from tests.learn.tiny import FULLY_CONNECTED, RESHAPE, Net, classifier, dense, silabs


def reason(data: bytes) -> str:
    offered = candidates(read_model(data))[-1]
    assert not offered.trainable
    assert offered.reason
    return offered.reason


def chain(between: str, dtype: str = "int8", shape: tuple[int, ...] = (1, 6)) -> Net:
    """Dense 8 to 6, ``between``, dense 6 to 3."""
    rng, net = np.random.default_rng(3), Net()
    net.inputs = [net.tensor([1, 8], "int8", [0.1], [0])]
    first = dense(net, net.inputs[0], (8, 6), "dense relu", rng=rng)
    middle = net.tensor(shape, dtype, [0.1], [3])
    inputs, options = [first], None
    if between == "RESHAPE":
        inputs.append(net.tensor([2], "int32", data=np.array([-1, 6], "<i4")))
        options = (RESHAPE, {0: ("vi", [-1, 6])})
    net.operator(between, inputs, [middle], options=options)
    net.outputs = [dense(net, middle, (6, 3), rng=rng)]
    return net


def test_the_heads_of_real_models_are_listed() -> None:
    def facts(name: str) -> list[tuple[int, int, tuple[str, ...], object]]:
        return [(h.layers, h.parameters, h.kinds, h.feature_shape) for h in candidates(read_model(silabs(name)))]

    assert facts("image_classification") == [(1, 650, ("dense",), (1, 64))]
    assert facts("keyword_spotting") == [
        (1, 780, ("dense",), (1, 64)),
        (2, 4940, ("conv relu pooled", "dense"), (1, 25, 5, 64)),
    ]
    assert facts("tflite_micro_magic_wand") == [
        (1, 68, ("dense",), (1, 16)),
        (2, 3668, ("dense relu", "dense"), (1, 224)),
    ]


def test_two_layers_are_the_default_where_there_are_two() -> None:
    assert default_layers(read_model(silabs("tflite_micro_magic_wand"))) == 2
    assert default_layers(read_model(silabs("image_classification"))) == 1
    assert default_layers(read_model(silabs("keyword_spotting"))) == 1  # the second has 8,000 B of features a sample


def test_parameters_come_weights_then_bias_first_layer_first() -> None:
    spec = head_spec(read_model(silabs("tflite_micro_magic_wand")), 2)
    assert spec.tensors == ((16, 224), (16,), (4, 16), (4,))
    assert [each.shape for each in read_parameters(spec)] == list(spec.tensors)
    assert {each.dtype for each in read_parameters(spec)} == {np.dtype(np.float32)}


def test_a_layer_without_bias_is_trained_without() -> None:  # facts.md, trap 4
    assert head_spec(read_model(classifier(bias=False)), 1).tensors == ((5, 12),)


def test_per_channel_scales_are_read_row_by_row() -> None:  # facts.md, trap 5
    spec = head_spec(read_model(classifier(per_channel=True)), 1)
    assert spec.layers[0].weight_scale.shape == (5,)
    assert head_spec(read_model(classifier()), 1).layers[0].weight_scale.shape == (1,)


@pytest.mark.parametrize(  # facts.md, trap 8
    ("tail", "expected", "public"),
    [
        ("softmax", Tail.SOFTMAX, False),
        ("logits", Tail.LOGITS, True),
        ("float", Tail.LOGITS, False),
        ("logistic", Tail.LOGISTIC, False),
        ("uint8", Tail.LOGISTIC, False),
    ],
)
def test_each_tail_decides_the_loss_and_whether_the_output_scale_is_public(
    tail: str, expected: Tail, public: bool
) -> None:
    spec = head_spec(read_model(classifier(tail=tail)), 1)
    assert spec.tail is expected
    assert spec.layers[-1].keeps_output is public


@pytest.mark.parametrize("between", ["RESHAPE", "QUANTIZE"])
def test_layers_are_found_behind_what_only_passes_on(between: str) -> None:
    model = read_model(chain(between).model())
    spec = head_spec(model, 2)
    assert [layer.kind for layer in spec.layers] == ["dense relu", "dense"]
    assert len(spec.layers[0].patches.outputs) == 2  # its own output's scale, and that of the tensor behind


def test_one_sigmoid_output_is_two_classes_and_one_plain_output_a_value() -> None:
    assert head_spec(read_model(classifier(sizes=(12, 1), tail="logistic")), 1).classes == 2
    plain = read_model(classifier(sizes=(12, 1), tail="logits"))
    assert head_spec(plain, 1).task is Task.VALUES
    with pytest.raises(ModelError, match="no classes"):
        head_spec(plain, 1, task=Task.CLASSES)


@pytest.mark.parametrize(
    ("tail", "task"), [("softmax", Task.VALUES), ("softmax", Task.LABELS), ("logistic", Task.VALUES)]
)
def test_a_task_that_the_model_does_not_end_in_is_refused(tail: str, task: Task) -> None:
    with pytest.raises(ModelError, match=r"SOFTMAX|LOGISTIC"):
        head_spec(read_model(classifier(tail=tail)), 1, task=task)


def test_an_operator_of_another_kind_ends_the_list_with_its_name() -> None:
    net = Net()
    net.inputs = [net.tensor([1, 8], "int8", [0.1], [0])]
    net.outputs = [net.tensor([1, 8], "int8", [0.1], [0])]
    net.operator("ABS", net.inputs, net.outputs)
    assert "ABS" in reason(net.model())
    with pytest.raises(ModelError, match="2 dense layers"):
        head_spec(read_model(silabs("tflite_micro_magic_wand")), 3)


def test_dynamic_range_version_12_is_refused_by_name() -> None:
    assert "FULLY_CONNECTED version 12" in reason(classifier(version=12))


@pytest.mark.parametrize(
    ("options", "said"),
    [({1: ("b", 1)}, "shuffled"), ({0: ("b", 4)}, "activation")],
)
def test_options_that_cannot_be_trained_are_refused(options: dict[int, tuple[str, int]], said: str) -> None:
    assert said in reason(classifier(options=options))


def test_streaming_models_are_refused_in_one_sentence() -> None:
    net = Net()
    net.inputs = [net.tensor([1, 8], "int8", [0.1], [0])]
    net.outputs = [dense(net, net.inputs[0], (8, 3), rng=np.random.default_rng(0))]
    assert "streaming" in reason(net.model(copy.deepcopy(net.graph())))
    net.tensor([1, 4], "int8", [0.1], [0], _5=("B", 1))
    assert "streaming" in reason(net.model())


def test_float_and_hybrid_models_are_refused_with_their_types() -> None:
    net = Net()
    net.inputs, net.outputs = [net.tensor([1, 8], "float32")], [net.tensor([1, 3], "float32")]
    weights = net.tensor([3, 8], "float32", data=np.zeros((3, 8), np.float32))
    net.operator("FULLY_CONNECTED", [net.inputs[0], weights], net.outputs, options=(FULLY_CONNECTED, {}))
    assert "float32" in reason(net.model())


def test_weights_that_two_tensors_share_are_refused() -> None:
    net = Net()
    rng = np.random.default_rng(0)
    net.inputs = [net.tensor([1, 8], "int8", [0.1], [0])]
    net.outputs = [dense(net, net.inputs[0], (8, 3), rng=rng)]
    shared = net.tensors[1][2]
    net.tensors[net.tensor([3, 8], "int8", [0.1])][2] = shared
    assert "shares" in reason(net.model())


def test_two_layers_with_one_weight_buffer_are_refused() -> None:
    rng, net = np.random.default_rng(0), Net()
    net.inputs = [net.tensor([1, 6], "int8", [0.1], [0])]
    first = dense(net, net.inputs[0], (6, 6), "dense relu", rng=rng)
    net.outputs = [dense(net, first, (6, 6), rng=rng)]
    weights = [index for index, each in enumerate(net.tensors) if each[0] == ("vi", [6, 6])]
    net.tensors[weights[1]][2] = net.tensors[weights[0]][2]
    offered = candidates(read_model(net.model()))
    assert not offered[0].trainable
    assert "shares bytes" in (offered[0].reason or "")


def test_a_scale_table_that_is_shared_with_another_tensor_is_refused() -> None:
    net = Net()
    net.inputs = [net.tensor([1, 8], "int8", [0.1], [0])]
    net.outputs = [dense(net, net.inputs[0], (8, 3), rng=np.random.default_rng(0))]
    net.tensors[1][4] = ("late", net.tensors[1][4][1])
    net.tensors[net.tensor([3, 8], "int8", [0.1])][4] = net.tensors[1][4]
    assert "shares bytes" in reason(net.model())


def test_an_output_that_goes_two_ways_ends_the_head_before_it() -> None:
    net = chain("RESHAPE")
    hidden = net.operators[1][1][1][0]
    net.operator("TANH", [hidden], [net.tensor([1, 6], "int8", [0.1], [0])])
    model = read_model(net.model())
    assert [each.layers for each in candidates(model)] == [1]
    with pytest.raises(ModelError, match="two places"):
        head_spec(model, 2)
