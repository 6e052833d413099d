# SPDX-License-Identifier: Apache-2.0
"""Damaged models and options out of range: numpy runs them or refuses them with a ModelError, and nothing else."""

from __future__ import annotations

import struct
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_tiny.errors import ModelError
from fl_tiny.learn.kernels.plan import prepare
from fl_tiny.learn.kernels.rounding import Rule
from fl_tiny.learn.tflite import Model, read_model
from tests.learn.kernels.nets import NETS
from tests.learn.kernels.truth import inputs
from tests.learn.tiny import RESHAPE, Net, silabs

REAL = [silabs("tflite_micro_magic_wand"), silabs("keyword_spotting")]
DRAWN = [
    draw(np.random.default_rng(seed), kinds[seed % len(kinds)], **more)
    for kinds, draw, more in NETS.values()
    for seed in range(4)
]


def outcome(data: bytes, rule: Rule = Rule.TFLITE) -> str:
    """``run`` or why not; anything but a ModelError is a fault of ours, and so is a warning of numpy's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            model = read_model(data)
            plan = prepare(model, rule)
        except ModelError as refused:
            assert refused.what
            return refused.what
        y = plan.run(np.zeros((1, *model.input.shape[1:]), model.input.dtype))
        assert y.shape[0] == 1
        return "run"


@settings(max_examples=1500)
@given(
    st.sampled_from(REAL + DRAWN),
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.one_of(
            st.binary(min_size=1, max_size=4),
            st.integers(-(2**31), 2**31 - 1).map(lambda n: struct.pack("<i", n)),
            st.sampled_from([0.0, -1.0, 1e-38, 1e38, float("nan"), float("inf")]).map(lambda x: struct.pack("<f", x)),
        )), min_size=1, max_size=3),
    st.sampled_from(list(Rule)),
)  # fmt: skip
def test_a_changed_file_runs_or_is_refused(data: bytes, changes: list[tuple[float, bytes]], rule: Rule) -> None:
    copy = bytearray(data)
    for share, new in changes:
        at = int(share * (len(data) - len(new)))
        copy[at : at + len(new)] = new
    began = time.monotonic()
    outcome(bytes(copy), rule)
    assert time.monotonic() - began < 20  # the bound on products; a normal file takes milliseconds


@pytest.mark.parametrize("name", NETS)
def test_every_byte_of_an_operator_turned_over_runs_or_is_refused(name: str) -> None:
    kinds, draw, more = NETS[name]
    data = draw(np.random.default_rng(3), kinds[0], **more)
    assert outcome(data) == "run"
    for at in range(len(data)):
        for value in (data[at] ^ 0xFF, data[at] ^ 1, 0):
            copy = bytearray(data)
            copy[at] = value
            outcome(bytes(copy))


def test_a_window_of_a_billion_places_is_refused() -> None:
    net = Net()
    at = net.tensor([1, 2000, 2000, 1], "int8", [0.1], [0])
    weights = net.tensor([1, 999, 999, 1], "int8", [0.1], data=np.ones((1, 999, 999, 1), np.int8))
    bias = net.tensor([1], "int32", [0.01], data=np.zeros(1, "<i4"))
    result = net.tensor([1, 2000, 2000, 1], "int8", [0.1], [0])
    net.inputs, net.outputs = [at], [result]
    net.operator("CONV_2D", [at, weights, bias], [result], 3, (1, {1: ("i", 1), 2: ("i", 1)}))
    assert "products" in outcome(net.model())


def test_tensors_that_are_held_at_once_are_bounded() -> None:
    net, shape = Net(), [1, 15_000_000]
    at = net.tensor(shape, "int8", [0.1], [0])
    net.inputs, parts = [at], []
    for _ in range(8):
        parts.append(net.tensor(shape, "int8", [0.1], [0]))
        net.operator("RESHAPE", [at], [parts[-1]], 1, (RESHAPE, {0: ("vi", shape)}))
    total = parts[0]
    for each in parts[1:]:
        after = net.tensor(shape, "int8", [0.1], [0])
        net.operator("ADD", [total, each], [after], 2, (11, {0: ("b", 0)}))
        total = after
    net.outputs = [total]
    assert "at once" in outcome(net.model())


def test_what_is_no_number_becomes_a_code() -> None:
    model: Model = read_model(silabs("keyword_spotting"))
    x = inputs(model, 3)
    x[0], x[1], x[2] = np.nan, np.inf, -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rule in Rule:
            assert np.isfinite(prepare(model, rule).run(x)).all()
