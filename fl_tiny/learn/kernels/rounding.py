# SPDX-License-Identifier: Apache-2.0
"""Sums of products to codes: the two rules by which runtimes scale, round and clip.

A sum ``a`` of products becomes the code ``round(a * m) + zero_point``, clipped; what differs is ``round`` and ``m``.

* TFLITE, fixed point: ``m`` is ``q / 2^31 * 2^shift`` with q of 31 bits; the product is rounded half up to a whole
  number before the right shift and once more after it. The second rounding is half up in matrix products (ruy on
  x86-64) and half away from zero elsewhere (gemmlowp).
* LITERT, floating point: ``m`` is a float32, the product is a float32, rounded half to even (XNNPACK).

Source: tensorflow/lite/kernels/internal/common.h, ruy/kernel_avx512.cc, XNNPACK's qs8 requantisation; and measured,
docs/facts.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

EXACT_SHIFT = 12  # at most this far to the right, a sum of 2^22 or more saturates whatever its last bits are
EXACT_SUM = 2**22  # below it, a sum times a multiplier of 31 bits is exact in a float64's 53
EXACT_FLOAT32 = 2**24  # below it, every whole number is a float32
AWAY = 1 + 2.0**-30  # moves a tie off zero, and nothing else over one: codes are multiples of 2^-shift
ROW = 512  # values of the innermost loop that pay for its start, measured (docs/adr/0012-numpy-kernels.md)


class Rule(str, Enum):
    """Whose arithmetic is followed; values are the names users see."""

    TFLITE = "tflite"
    LITERT = "litert"


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """What is done to the sums of each channel: ``(sum + bias) * scale + code``.

    scale: float64; code: int64, the zero point; bias: of the sums' type; bound: no sum with its bias is larger.
    """

    scale: Array
    bias: Array
    code: Array
    bound: Array

    def tiled(self, positions: int) -> tuple[int, Array, Array]:
        """Values in a row of several positions, and bias and code repeated along it: long rows are quick."""
        count = len(self.scale)
        most = max(1, ROW // count)
        tile = max(size for size in range(1, min(positions, most) + 1) if positions % size == 0)
        return tile * count, np.tile(self.bias, tile), np.tile(self.code, tile)


@dataclass(frozen=True, slots=True)
class Target:
    """The codes sums become: the range they are clipped to, and their type."""

    low: int
    high: int
    dtype: str

    @property
    def lowest(self) -> int:
        return -128 if self.dtype == "int8" else 0


def fixed_point(scale: float) -> tuple[int, int]:
    """``scale`` as (q, shift): q / 2^31 * 2^shift, q below 2^31; (0, 0) for what is below 2^-32."""
    fraction, shift = math.frexp(scale)
    q = math.floor(fraction * 2**31 + 0.5)
    if q == 2**31:
        q, shift = q // 2, shift + 1
    return (0, 0) if shift < -31 else (q, shift)


def fixed_product(sums: Array, scale: float, *, away: bool) -> Array:
    """``sums`` times ``scale`` by the TFLITE rule in plain integers; ``away``: how the second rounding breaks ties.

    sums: any shape, below 2^31 when shifted left as the scale asks.   Returns int64 of the same shape.
    """
    return fixed_shift(sums, *fixed_point(scale), away=away)


def fixed_shift(sums: Array, q: int, shift: int, *, away: bool) -> Array:
    """As ``fixed_product``, for a scale of q / 2^31 * 2^shift."""
    high = ((sums << max(shift, 0)) * q + (1 << 30)) >> 31
    right = max(-shift, 0)
    if right == 0:
        return high
    half = (1 << (right - 1)) - (high < 0 if away else 0)
    return (high + half) >> right


def scaler(channels: Channels, target: Target, rule: Rule, *, positions: int, away: bool) -> Callable[[Array], Array]:
    """A function from sums (n * positions, channels) to codes of the same shape; the sums are overwritten.

    away: how the TFLITE rule's second rounding breaks ties.
    """
    if rule is Rule.LITERT:
        return _float_scaler(channels, target, positions)
    exact = [_exact(*each) for each in zip(channels.scale, channels.bound, strict=True)]
    odd = [channel for channel, each in enumerate(exact) if not each]
    fast = _fixed_scaler(channels, target, positions, away=away)
    return _with_plain(fast, odd, channels, target, away=away) if odd else fast


def constant_codes(channels: Channels, rule: Rule, *, away: bool) -> Array:
    """The code of each channel when its sum is its bias, (channels,) int64, not clipped."""
    bias = channels.bias.astype(np.int64)
    if rule is Rule.LITERT:
        steps: Array = np.rint(bias.astype(np.float32) * channels.scale.astype(np.float32))
        return steps.astype(np.int64) + channels.code
    products = [fixed_product(bias[at : at + 1], each, away=away) for at, each in enumerate(channels.scale)]
    return np.concatenate(products) + channels.code


def _exact(scale: float, bound: float) -> bool:
    """Whether float64 gets every product right that decides a code, for sums up to ``bound``."""
    q, shift = fixed_point(scale)
    if q == 0 or bound * scale < 0.25:  # nothing but zero points comes out
        return True
    if bound >= EXACT_SUM and shift < -EXACT_SHIFT:
        return False
    decisive = min(bound, 2.0**10 / scale)  # a larger sum saturates
    return (q & -q) * decisive < 2**30  # else a product may end in one half, which float64 rounds to even


def _fixed_scaler(channels: Channels, target: Target, positions: int, *, away: bool) -> Callable[[Array], Array]:
    """The TFLITE rule in float64: all products that matter are exact, so each rounding is what the rule says.

    Adding and subtracting 1.5 * 2^52 / 2^right rounds to a multiple of 2^-right, which is the first rounding; casting
    what is not negative to an unsigned byte rounds down, which after one half was added is the second.
    """
    width, bias, code = channels.tiled(positions)
    points = [fixed_point(scale) for scale in channels.scale]
    multiplier = np.resize([q * 2.0 ** (shift - 31) for q, shift in points], width)
    first = np.resize([1.5 * 2.0 ** (52 + shift) if shift < 0 else 0.0 for _, shift in points], width)
    offset = 0.5 + code - target.lowest
    away = away and bool((code > target.low).any())
    second = first if away else first - offset
    nudge = np.where(first > 0, AWAY, 1.0)  # without a right shift there is no second rounding
    low, high = float(target.low - target.lowest), float(target.high - target.lowest)

    def scale(sums: Array) -> Array:
        rows = sums.reshape(-1, width)
        rows += bias
        values = rows.astype(np.float64, copy=False)
        values *= multiplier
        values += first
        values -= second
        if away:
            values *= nudge
            values += offset
        return _codes(values, low, high, target).reshape(sums.shape)

    return scale


def _with_plain(
    fast: Callable[[Array], Array], odd: Sequence[int], channels: Channels, target: Target, *, away: bool
) -> Callable[[Array], Array]:
    """``fast``, but for the channels ``odd``: those go through plain integers."""

    def scale(sums: Array) -> Array:
        whole = [(sums[:, channel] + channels.bias[channel]).astype(np.int64) for channel in odd]
        codes = fast(sums)
        for channel, column in zip(odd, whole, strict=True):
            product = fixed_product(column, channels.scale[channel], away=away) + channels.code[channel]
            codes[:, channel] = np.clip(product, target.low, target.high)
        return codes

    return scale


def _float_scaler(channels: Channels, target: Target, positions: int) -> Callable[[Array], Array]:
    width, bias, code = channels.tiled(positions)
    multiplier = np.resize(channels.scale.astype(np.float32), width)
    offset = (code - target.lowest).astype(np.float32)
    low, high = float(target.low - target.lowest), float(target.high - target.lowest)

    def scale(sums: Array) -> Array:
        rows = sums.reshape(-1, width)
        rows += bias
        values = rows.astype(np.float32, copy=False)
        values *= multiplier
        np.rint(values, out=values)
        values += offset
        return _codes(values, low, high, target).reshape(sums.shape)

    return scale


def _codes(values: Array, low: float, high: float, target: Target) -> Array:
    """Values above the lowest code, clipped and rounded down to codes; ``values`` is overwritten."""
    np.maximum(values, low, out=values)
    np.minimum(values, high, out=values)
    codes = values.astype(np.uint8)
    if target.lowest:
        codes ^= 128
    return codes.view(target.dtype)
