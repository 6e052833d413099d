# SPDX-License-Identifier: Apache-2.0
"""What a gateway makes of the clients' mean change: FedAvg, or a server optimiser that remembers earlier rounds.

Source: Reddi et al., Adaptive Federated Optimization (ICLR 2021), algorithm 2; Hsu et al., Measuring the Effects of
Non-Identical Data Distribution (2019), FedAvgM; Li et al., Federated Optimization in Heterogeneous Networks (2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fl_tiny.protocol.update import Shapes
from fl_tiny.protocol.wire import Train

Tensors = Sequence[NDArray[np.float64]]  # one a trained tensor of the head, in the manifest's order
State = Mapping[str, Tensors]  # what a strategy remembers from round to round; empty at first

FIRST, SECOND = 0.9, 0.99  # decay of the mean change and of its square, as in Reddi et al.
TAU = 1e-3  # of a tensor's first change: the least that a step is divided by
ADAPTIVE_RATE = 0.3  # of a tensor's first change a round; measured on 15 Fashion clients (docs/facts.md)
MOMENTUM_RATE, MOMENTUM = 1.0, 0.5  # measured there too: .742 after 30 rounds at Dirichlet .1 for .664 by 0.9
PROXIMAL = 0.1


@dataclass(frozen=True, slots=True)
class Move:
    """What a round comes to. change: what to add to the head.   state: what to remember until the next."""

    change: Tensors
    state: State


@dataclass(frozen=True, slots=True)
class Options:
    """What the operator set; None leaves a strategy its own default."""

    rate: float | None = None
    momentum: float | None = None
    proximal: float | None = None


class Strategy(Protocol):
    """How a fleet learns. A package's own is found by its entry point (docs/strategies.md)."""

    def train(self, train: Train) -> Train:
        """What clients are told of how to train, from what the gateway's settings say."""

    def step(self, base: Tensors, change: Tensors, state: State) -> Move:
        """From the head, the clients' mean change weighted by samples, and the state: what to do with the head.

        Must depend on its arguments alone: a gateway that was cut calls it again. ``state`` holds arrays shaped as
        those of ``base``.
        """


@dataclass(frozen=True, slots=True)
class FedAvg:
    """The mean change as it is. proximal: FedProx's mu, that clients are told; 0: they are not."""

    proximal: float = 0.0

    def train(self, train: Train) -> Train:
        """As ``Strategy.train``."""
        return replace(train, proximal=self.proximal) if self.proximal else train

    def step(self, base: Tensors, change: Tensors, state: State) -> Move:
        """As ``Strategy.step``."""
        return Move(change, {})


@dataclass(frozen=True, slots=True)
class FedAvgM:
    """Gradient descent with momentum on the mean change."""

    rate: float
    momentum: float

    def train(self, train: Train) -> Train:
        """As ``Strategy.train``."""
        return train

    def step(self, base: Tensors, change: Tensors, state: State) -> Move:
        """As ``Strategy.step``."""
        speed = state.get("speed", [np.zeros_like(each) for each in change])
        speed = [self.momentum * old + new for old, new in zip(speed, change, strict=True)]
        return Move([self.rate * each for each in speed], {"speed": speed})


@dataclass(frozen=True, slots=True)
class Adaptive:
    """FedAdam, or FedYogi where ``yogi``: steps divided by the root of the mean squared change.

    Rates are in units of each tensor's first change (its root mean square), so that they mean the same for every model.
    """

    rate: float
    momentum: float
    yogi: bool

    def train(self, train: Train) -> Train:
        """As ``Strategy.train``."""
        return train

    def step(self, base: Tensors, change: Tensors, state: State) -> Move:
        """As ``Strategy.step``."""
        unit = state.get("unit", [np.full_like(each, max(_rms(each), 1e-12)) for each in change])
        scaled = [each / one for each, one in zip(change, unit, strict=True)]
        mean = state.get("mean", [np.zeros_like(each) for each in change])
        square = state.get("square", [np.full_like(each, TAU**2) for each in change])
        mean = [self.momentum * old + (1 - self.momentum) * new for old, new in zip(mean, scaled, strict=True)]
        square = [self._squared(old, new * new) for old, new in zip(square, scaled, strict=True)]
        moved = [self.rate * one * m / (np.sqrt(v) + TAU) for one, m, v in zip(unit, mean, square, strict=True)]
        return Move(moved, {"unit": unit, "mean": mean, "square": square})

    def _squared(self, old: NDArray[np.float64], new: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.yogi:
            return np.asarray(old - (1 - SECOND) * new * np.sign(old - new))
        return SECOND * old + (1 - SECOND) * new


BUILT_IN: dict[str, Callable[[Options], Strategy]] = {
    "fedavg": lambda options: FedAvg(options.proximal or 0.0),
    "fedprox": lambda options: FedAvg(PROXIMAL if options.proximal is None else options.proximal),
    "fedavgm": lambda options: FedAvgM(_or(options.rate, MOMENTUM_RATE), _or(options.momentum, MOMENTUM)),
    "fedadam": lambda options: Adaptive(_or(options.rate, ADAPTIVE_RATE), _or(options.momentum, FIRST), yogi=False),
    "fedyogi": lambda options: Adaptive(_or(options.rate, ADAPTIVE_RATE), _or(options.momentum, FIRST), yogi=True),
}


def fits(move: Any, base: Tensors) -> bool:
    """Is what a strategy returned a move of this head, and finite? Foreign code made it."""
    if not isinstance(move, Move):
        return False
    groups = [move.change, *move.state.values()]
    shapes = [each.shape for each in base]
    return all(
        [np.shape(each) for each in group] == shapes and all(np.isfinite(each).all() for each in group)
        for group in groups
    )


def encode_state(state: State) -> dict[str, bytes]:
    """Each name's tensors as float32, little endian: what is kept is what the next round gets, restart or not."""
    return {name: b"".join(np.asarray(t, "<f4").tobytes() for t in tensors) for name, tensors in state.items()}


def decode_state(kept: Mapping[str, bytes], shapes: Shapes) -> State:
    """The state that was kept, for tensors of ``shapes``; an empty one when it is of another head."""
    sizes = [math.prod(shape) for shape in shapes]
    if any(len(numbers) != 4 * sum(sizes) for numbers in kept.values()):
        return {}
    ends = np.cumsum(sizes)[:-1]
    return {
        name: [
            part.reshape(shape)
            for part, shape in zip(np.split(np.frombuffer(raw, "<f4").astype(np.float64), ends), shapes, strict=True)
        ]
        for name, raw in kept.items()
    }


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values * values)))
