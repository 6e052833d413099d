# SPDX-License-Identifier: Apache-2.0
"""How a gradient becomes a step: Adam, or gradient descent with momentum."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

import numpy as np

from fl_tiny.learn.head import Array

Update = Callable[[Array, float], None]  # (gradient, rate): moves the vector that it was made for, in place

FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # Adam's decay rates and epsilon, as in its paper
MOMENTUM = 0.9


class Optimiser(str, Enum):
    """How a gradient becomes a step."""

    ADAM = "adam"
    SGD = "sgd"  # with momentum


def stepping(optimiser: Optimiser, flat: Array) -> Update:
    """What moves ``flat``, all parameters in one vector, by one gradient after the other."""
    return _adam(flat) if optimiser is Optimiser.ADAM else _sgd(flat)


def _adam(flat: Array) -> Update:
    """Steps of ``flat`` in place. Source: Kingma and Ba, Adam (2015), algorithm 1, reordered as in its section 2."""
    mean, square, taken = np.zeros_like(flat), np.zeros_like(flat), 0

    def update(slope: Array, rate: float) -> None:
        nonlocal taken
        taken += 1
        short = math.sqrt(1 - SECOND**taken)
        np.add(mean, np.float32(1 - FIRST) * (slope - mean), out=mean)
        np.add(square, np.float32(1 - SECOND) * (slope * slope - square), out=square)
        size = np.sqrt(square)
        size += np.float32(TINY * short)
        np.subtract(flat, np.float32(rate * short / (1 - FIRST**taken)) * mean / size, out=flat)

    return update


def _sgd(flat: Array) -> Update:
    """Steps of ``flat`` in place, by gradient descent with momentum."""
    speed = np.zeros_like(flat)

    def update(slope: Array, rate: float) -> None:
        np.multiply(speed, np.float32(MOMENTUM), out=speed)
        np.add(speed, slope, out=speed)
        np.subtract(flat, np.float32(rate) * speed, out=flat)

    return update
