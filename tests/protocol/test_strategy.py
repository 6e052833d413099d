# SPDX-License-Identifier: Apache-2.0
"""Server strategies: each by its paper's formula, the state whole after a restart, foreign answers checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.protocol import wire
from fl_tiny.protocol.strategy import (
    BUILT_IN,
    FIRST,
    SECOND,
    TAU,
    Move,
    Options,
    Strategy,
    Tensors,
    decode_state,
    encode_state,
    fits,
)

SHAPES = ((3, 4), (3,))


def tensors(seed: int, scale: float = 1.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) * scale for shape in SHAPES]


def moves(strategy: Strategy, changes: list[Tensors]) -> list[Tensors]:
    """What a fleet's head moves by, round by round, with the state kept as bytes in between."""
    kept: dict[str, bytes] = {}
    made = []
    for change in changes:
        move = strategy.step(tensors(0), change, decode_state(kept, SHAPES))
        assert fits(move, tensors(0))
        kept = encode_state(move.state)
        made.append(move.change)
    return made


def test_fedavg_moves_by_the_mean_change_and_remembers_nothing() -> None:
    change = tensors(1)
    move = BUILT_IN["fedavg"](Options()).step(tensors(0), change, {})
    assert all(np.array_equal(a, b) for a, b in zip(move.change, change, strict=True))
    assert not move.state


def test_fedprox_is_fedavg_that_tells_clients_its_pull() -> None:
    train = wire.Train(4, 16, 0.1)
    assert BUILT_IN["fedavg"](Options()).train(train) == train
    assert BUILT_IN["fedprox"](Options()).train(train).proximal == 0.1
    assert BUILT_IN["fedprox"](Options(proximal=0.5)).train(train).proximal == 0.5


def test_momentum_adds_what_earlier_rounds_moved() -> None:
    changes = [tensors(seed) for seed in (1, 2, 3)]
    made = moves(BUILT_IN["fedavgm"](Options(rate=0.5, momentum=0.8)), changes)
    for place in range(2):
        wanted = 0.5 * (0.64 * changes[0][place] + 0.8 * changes[1][place] + changes[2][place])
        assert made[2][place] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_adaptive_steps_follow_the_papers_recursion(name: str) -> None:
    changes = [tensors(seed) for seed in range(1, 6)]
    made = moves(BUILT_IN[name](Options(rate=0.2)), changes)
    for place, shape in enumerate(SHAPES):
        unit = np.sqrt(np.mean(changes[0][place] ** 2))
        mean, square = np.zeros(shape), np.full(shape, TAU**2)
        for change in changes:
            d = change[place] / unit
            mean = FIRST * mean + (1 - FIRST) * d
            if name == "fedadam":
                square = SECOND * square + (1 - SECOND) * d**2
            else:
                square = square - (1 - SECOND) * d**2 * np.sign(square - d**2)
        assert made[-1][place] == pytest.approx(0.2 * unit * mean / (np.sqrt(square) + TAU), rel=1e-4)


@pytest.mark.parametrize("name", BUILT_IN)
@given(scale=st.floats(1e-6, 1e6))
def test_what_a_strategy_does_scales_with_the_changes(name: str, scale: float) -> None:
    """A model whose numbers are a thousand times as large learns as fast: no rate is in absolute units."""
    one = moves(BUILT_IN[name](Options()), [tensors(1), tensors(2)])
    other = moves(BUILT_IN[name](Options()), [tensors(1, scale), tensors(2, scale)])
    for a, b in zip(one[1], other[1], strict=True):
        assert b == pytest.approx(a * scale, rel=1e-3, abs=1e-5 * scale)


def test_a_foreign_strategys_answer_is_checked() -> None:
    base = tensors(0)
    assert not fits(None, base)
    assert not fits(Move(base[:1], {}), base)
    assert not fits(Move([base[0].T, base[1]], {}), base)
    assert not fits(Move([base[0] * np.nan, base[1]], {}), base)
    assert not fits(Move(base, {"speed": base[:1]}), base)
