# SPDX-License-Identifier: Apache-2.0
"""Sums to codes: the fast ways give what the rules say in whole numbers of any size."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_tiny.learn.kernels.rounding import EXACT_FLOAT32, Channels, Rule, Target, fixed_point, fixed_product, scaler

MULTIPLIERS = st.one_of(
    st.floats(2.0**-32, 0.9, allow_subnormal=False),
    st.integers(-31, 3).map(lambda e: 2.0**e),  # every odd sum is half way
    st.tuples(st.integers(2**30, 2**31 - 1), st.integers(-31, 2), st.integers(1, 24)).map(
        lambda each: (each[0] >> each[2] << each[2]) * 2.0 ** (each[1] - 31)
    ),
)
SUMS = st.integers(-(2**24) + 1, 2**24 - 1)


def by_the_rule(total: int, scale: float, *, away: bool) -> int:
    """gemmlowp in whole numbers. Source: gemmlowp/fixedpoint.h; ruy rounds half up at the end."""
    q, shift = fixed_point(scale)
    product = (total << max(shift, 0)) * q
    nudge = (1 << 30) if product >= 0 else 1 - (1 << 30)
    high = int(math.copysign(abs(product + nudge) // (1 << 31), product + nudge))  # C divides towards zero
    right = max(-shift, 0)
    if not away:
        return math.floor(Fraction(high, 1 << right) + Fraction(1, 2)) if right else high
    mask = (1 << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


@settings(max_examples=1000)
@given(SUMS, MULTIPLIERS, st.booleans())
@example(3, 0.5, True)
@example(-3, 0.5, True)
@example(-1, 0.5, False)
def test_a_product_in_integers_is_the_rules(total: int, scale: float, away: bool) -> None:
    assert int(fixed_product(np.array([total]), scale, away=away)[0]) == by_the_rule(total, scale, away=away)


@settings(max_examples=1000)
@given(
    st.lists(st.tuples(MULTIPLIERS, st.integers(-(2**20), 2**20)), min_size=1, max_size=6),
    st.lists(SUMS, min_size=12, max_size=12),
    st.integers(-128, 127),
    st.sampled_from(["int8", "uint8"]),
    st.booleans(),
    st.booleans(),
)
def test_a_scaler_gives_the_codes_that_integers_give(
    channels: list[tuple[float, int]], totals: list[int], zero: int, dtype: str, relu: bool, away: bool
) -> None:
    """Sums are as given, and as close to half a step as whole numbers get."""
    lowest = -128 if dtype == "int8" else 0
    zero = zero if dtype == "int8" else zero + 128
    target = Target(zero if relu else lowest, lowest + 255, dtype)
    scales, bias = (np.array(column) for column in zip(*channels, strict=True))
    sums = np.array(totals, np.int64)[:, None].repeat(len(scales), 1)
    with np.errstate(over="ignore"):
        halves = np.rint((np.arange(12) - 6.5)[:, None] * (1 + 17 * (np.arange(12)[:, None] % 3)) / scales)
    near = np.clip(halves, -(2.0**24) + 1, 2.0**24 - 1).astype(np.int64) - bias.astype(np.int64)
    sums = np.concatenate([sums, near, near + 1, near - 1])
    bound = np.abs(sums).max(axis=0) + np.abs(bias)
    kind = np.float32 if bound.max() < EXACT_FLOAT32 else np.float64
    given_channels = Channels(scales, bias.astype(kind), np.full(len(scales), zero), bound.astype(np.float64))
    codes = scaler(given_channels, target, Rule.TFLITE, positions=12, away=away)(sums.astype(kind))
    assert codes.dtype == dtype
    for row, found in zip(sums, codes, strict=True):
        for total, each, scale, code in zip(row, bias, scales, found, strict=True):
            right = by_the_rule(int(total) + int(each), float(scale), away=away) + zero
            assert code == min(max(right, target.low), target.high)


@settings(max_examples=300)
@given(st.lists(SUMS, min_size=4, max_size=4), st.floats(2.0**-30, 100), st.integers(-128, 127))
def test_the_floating_point_rule_is_one_float32_product_rounded_half_to_even(
    totals: list[int], scale: float, zero: int
) -> None:
    sums = np.array(totals, np.float32)[:, None]
    channels = Channels(np.array([scale]), np.zeros(1, np.float32), np.array([zero]), np.array([2.0**24]))
    codes = scaler(channels, Target(-128, 127, "int8"), Rule.LITERT, positions=4, away=False)(sums.copy())
    for total, code in zip(totals, codes[:, 0], strict=True):
        product = np.float32(np.float32(total) * np.float32(scale))
        assert code == min(max(round(Fraction(float(product))) + zero, -128), 127)
