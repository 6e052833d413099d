# SPDX-License-Identifier: Apache-2.0
"""What an input holds follows from its scale, and data that cannot be meant for it are noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.learn.inputs import Seen, as_text, input_range, usual
from fl_tiny.learn.tflite import read_model

from .tiny import silabs, taking


@pytest.mark.parametrize(
    ("dtype", "scale", "point", "meant"),
    [
        ("int8", 1 / 255, -128, (0, 1)),
        ("uint8", 1 / 256, 0, (0, 1)),
        ("int8", 1 / 128, 0, (-1, 1)),
        ("int8", 0.00784314, -1, (-1, 1)),
        ("int8", 1.0, -128, (0, 255)),
        ("uint8", 1.0, 0, (0, 255)),
        ("int8", 1.0, 0, (-128, 127)),
        ("int8", 0.88, -128, None),
        ("int8", 0.0187, -14, None),  # ImageNet's mean and deviation
        ("float32", 0.0, 0, None),
    ],
)
def test_a_scale_says_what_pixels_are_meant(dtype: str, scale: float, point: int, meant: tuple[float, float]) -> None:
    assert usual(input_range(taking((4, 4, 3), dtype, scale, point))) == meant


def test_a_float_input_holds_what_the_quantize_behind_it_lets_through() -> None:
    held = input_range(read_model(silabs("keyword_spotting")))
    assert held == pytest.approx((0, 255 * 0.8810154795646667))
    assert as_text((-1.0, 0.9921875)) == "-1 to 1"


def told(x: np.ndarray, held: tuple[float, float] | None = (0.0, 255.0)) -> str:
    seen = Seen(held)
    for part in np.array_split(x, 5):
        seen.add(part)
    return seen.doubt()


def test_data_of_another_unit_are_noticed() -> None:
    unit = np.random.default_rng(0).uniform(0, 1, 500)
    assert "0 to 255: they use less than 5%" in told(unit)
    assert "cut off" in told(unit * 255, (0.0, 1.0))
    assert "cut off" in told((unit - 0.5) * 512, (-1.0, 1.0))
    assert "nothing to tell them apart" in told(np.zeros(500))
    assert "nothing to tell them apart" in told(np.zeros(500), None)
    for fine in (unit * 255, unit * 30, np.repeat([0.0, 255.0], 250), unit * 300):
        assert told(fine) == ""
    assert told(unit * 1e9, None) == ""
    assert Seen((0.0, 1.0)).doubt() == ""


@given(st.lists(st.floats(-400, 400), min_size=1, max_size=60))
def test_counting_values_is_as_good_as_seeing_each(values: list[float]) -> None:
    one, two = Seen((0.0, 255.0)), Seen((0.0, 255.0))
    one.add(np.array(values))
    kinds, counts = np.unique(values, return_counts=True)
    two.add(np.array([*kinds, 1e6]), np.array([*counts, 0]))
    assert (one.low, one.high, one.values, one.clipped) == (two.low, two.high, two.values, two.clipped)
