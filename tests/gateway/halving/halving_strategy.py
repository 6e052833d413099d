# SPDX-License-Identifier: Apache-2.0
"""The strategy of docs/strategies.md, half the mean change, and one that fails."""

from fl_tiny.protocol.strategy import Move, Options, State, Tensors
from fl_tiny.protocol.wire import Train


class Halving:
    def train(self, train: Train) -> Train:
        return train

    def step(self, base: Tensors, change: Tensors, state: State) -> Move:
        half = [0.5 * each for each in change]
        return Move(half, {"last": half})


class Broken(Halving):
    def step(self, base: Tensors, change: Tensors, state: State) -> Move:
        raise ZeroDivisionError("no strategy")


def make(options: Options) -> Halving:
    return Halving()


def make_broken(options: Options) -> Broken:
    return Broken()
