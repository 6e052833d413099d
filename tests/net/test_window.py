# SPDX-License-Identifier: Apache-2.0
"""The send window over made-up networks, with a clock that is an argument."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.net.window import FIRST, LARGEST, MOST, UNIT, Piece, Way, Window


class Network:
    """Carries each piece there and back in ``rtt_s`` (and up to as much again), or not at all."""

    def __init__(self, seed: int, lose: float = 0.0, rtt_s: float = 0.05, hole: int = 10_000) -> None:
        self._random, self._lose, self._rtt_s, self._hole = random.Random(seed), lose, rtt_s, hole
        self.now, self.sent = 0.0, 0
        self.pieces: list[Piece] = []
        self.most_in_flight = 0

    def carry(self, window: Window, until: float = 3600.0) -> None:
        """Until the window is done."""
        coming: list[tuple[float, int]] = []
        flying: dict[int, Piece] = {}
        while not window.done:
            assert self.now < until, f"{window.left} units still lack after {self.now:.0f} s"
            window.tick(self.now)
            while (piece := window.send(self.now)) is not None:
                self.pieces.append(piece)
                if piece.length <= self._hole and self._random.random() >= self._lose:
                    coming.append((self.now + self._rtt_s * (1 + self._random.random()), piece.number))
                flying = {n: p for n, p in flying.items() if p.deadline > self.now} | {piece.number: piece}
                self.most_in_flight = max(self.most_in_flight, len(flying))
            self.now = max(self.now, min([window.wake(self.now), *(when for when, _ in coming)])) + 1e-6
            for arrival in [a for a in coming if a[0] <= self.now]:
                coming.remove(arrival)
                flying.pop(arrival[1], None)
                window.answered(arrival[1], self.now)


@given(
    size=st.integers(1, 40_000),
    held=st.binary(max_size=40),
    lose=st.floats(0, 0.6),
    rtt_s=st.floats(0.001, 3),
    hole=st.sampled_from([128, 200, 300, 600, 1024]),
    seed=st.integers(0, 1 << 16),
)
def test_every_byte_arrives_in_pieces_of_whole_units(
    size: int, held: bytes, lose: float, rtt_s: float, hole: int, seed: int
) -> None:
    network, window = Network(seed, lose, rtt_s, hole), Window(Way(2.0), size, held)
    network.carry(window, 100_000)
    covered = {unit for piece in network.pieces for unit in piece.units}
    lacked = {u for u in range(-(-size // UNIT)) if u // 8 >= len(held) or not held[u // 8] >> u % 8 & 1}
    assert covered == lacked
    for piece in network.pieces:
        assert piece.size in (128, 256, 512, 1024) and piece.at % piece.size == 0
        assert piece.length == min(piece.size, size - piece.at) > 0
    assert network.most_in_flight <= MOST


def test_a_clean_way_opens_the_window_and_sends_nothing_twice() -> None:
    network, window = Network(1), Window(Way(2.0), 300_000)
    network.carry(window)
    assert len(network.pieces) == -(-300_000 // LARGEST)
    assert window.most == MOST and network.now < 300_000 / LARGEST * 0.075 / FIRST


def test_nothing_is_sent_beyond_a_window_that_nobody_answers() -> None:
    window = Window(Way(2.0), 100 * LARGEST)
    sent = 0
    while window.send(1.0) is not None:
        sent += 1
    window.tick(2.9)
    assert sent == FIRST and window.send(2.9) is None
    window.answered(0, 2.9)
    assert window.send(2.9) is not None


def test_each_loss_of_a_flight_halves_the_window_once() -> None:
    way = Way(1.0)
    window = Window(way, 100 * LARGEST)
    numbers = [window.send(0.0).number for _ in range(FIRST)]  # type: ignore[union-attr]
    for number in numbers:
        window.answered(number, 0.1)
    assert window.most == FIRST + 1
    now = 0.2
    sent = 0
    while (piece := window.send(now)) is not None or sent < FIRST + 1:
        sent += piece is not None
        now += 0.01
    window.tick(now + 5)
    assert window.most == 2


def test_a_black_hole_is_passed_by_smaller_pieces_and_remembered() -> None:
    way = Way(0.5)
    first = Network(2, hole=600)
    first.carry(Window(way, 13_000))
    assert first.now < 12 and way.size == 512
    again = Network(3, hole=600)
    again.now = first.now
    again.carry(Window(way, 13_000))
    assert {piece.size for piece in again.pieces} == {512} and again.now - first.now < 1.5


def test_loss_alone_does_not_make_pieces_small_for_long() -> None:
    wasted = 0
    for seed in range(20):
        network = Network(seed, lose=0.51, rtt_s=0.01)
        network.carry(Window(Way(2.0), 12_810), 180)
        wasted += len(network.pieces) > 60
    assert wasted <= 3


def test_a_late_answer_counts() -> None:
    window = Window(Way(0.5), LARGEST)
    piece = window.send(0.0)
    assert piece is not None
    window.tick(0.6)
    assert window.send(0.6) is not None
    window.answered(piece.number, 0.7)
    assert window.done


def test_a_piece_that_is_put_off_comes_again_then_and_counts_as_no_loss() -> None:
    way = Way(0.5)
    window = Window(way, 8 * LARGEST)
    first = window.send(0.0)
    assert first is not None
    window.put_off(first.number, 0.1, 5.0)
    assert window.send(5.0) is None and window.left == 64
    network = Network(1)
    network.now = window.wake(4.0)
    assert network.now == 5.1
    network.carry(window)
    assert {piece.at for piece in network.pieces} == {LARGEST * n for n in range(8)} and way.size == LARGEST
