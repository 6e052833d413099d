# SPDX-License-Identifier: Apache-2.0
"""Deltas between heads: they lead to the next body byte by byte, they are small, and nothing is lost over rounds."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.errors import MalformedMessage
from fl_tiny.protocol import aggregate, update
from fl_tiny.protocol.delta import applied, difference
from fl_tiny.protocol.wire import COARSE, DEFLATED, Encoding

SHAPES = ((10, 128), (10,), (7, 10), (7,))
COUNT = 1280 + 10 + 70 + 7


def start(seed: int) -> update.HeadBody:
    rng = np.random.default_rng(seed)
    return update.encode_head([rng.normal(size=shape).astype(np.float32) for shape in SHAPES], update.ROOM)


def moved(base: update.HeadBody, change: np.ndarray, residual: bytes = b"") -> aggregate.Published:
    """The head that a round publishes whose only update is ``change``, in real units."""
    steps = (float(np.abs(change).max()) / 100 + 1e-9,) * 4
    summed = aggregate.RunningSum(SHAPES)
    summed.add(np.rint(change / steps[0]).astype(np.int8).tobytes(), aggregate.Share(1))
    return aggregate.publish(base, residual, SHAPES, steps, summed)


@given(st.integers(0, 999), st.sampled_from([1e-4, 1e-3, 1e-2]))
def test_a_delta_leads_to_the_very_next_body(seed: int, scale: float) -> None:
    base = start(seed)
    new = moved(base, np.random.default_rng(seed).normal(scale=scale, size=COUNT)).head
    assert new.scales == base.scales
    found = difference(base.body, new.body, SHAPES)
    assert found is not None and len(found[1]) <= 1350 // 2 + 2 * 17
    assert applied(base.body, found[1], found[0], SHAPES) == new.body


def test_a_hundred_rounds_of_deltas_lose_nothing() -> None:
    rng = np.random.default_rng(7)
    head, residual, held = start(1), b"", start(1).body
    wanted = update.flatten(update.decode_head(head, SHAPES))
    deltas = 0
    for _ in range(100):
        change = rng.normal(scale=0.01, size=COUNT)
        step = float(np.abs(change).max()) / 100 + 1e-9
        wanted = wanted + np.rint(change / step) * step
        new = moved(head, change, residual)
        found = difference(head.body, new.head.body, SHAPES) if new.head.scales == head.scales else None
        held = applied(held, found[1], found[0], SHAPES) if found else new.head.body
        deltas += found is not None
        head, residual = new.head, new.residual
        assert held == head.body
    got = update.flatten(update.decode_head(head, SHAPES)) + np.frombuffer(residual, "<f4")
    assert np.abs(got - wanted).max() < 1e-4 and deltas > 90


@given(st.integers(0, 999), st.sampled_from([0.05, 0.1, 0.2, 0.4]))
def test_a_first_rounds_delta_is_one_of_multiples_and_loses_nothing(seed: int, scale: float) -> None:
    """From a model's own head, whose largest weight fills its scale, by changes of many codes."""
    rng = np.random.default_rng(seed)
    base = update.encode_head([rng.normal(size=shape).astype(np.float32) for shape in SHAPES])
    change = rng.normal(scale=scale, size=COUNT)
    new = moved(base, change)
    found = difference(base.body, new.head.body, SHAPES) if new.head.scales == base.scales else None
    assert found is not None or scale > 0.15
    if found is not None:
        assert applied(base.body, found[1], found[0], SHAPES) == new.head.body
        assert len(found[1]) <= 1350 // 2 + 30 + 2 * 17
    steps = float(np.abs(change).max()) / 100 + 1e-9
    wanted = update.flatten(update.decode_head(base, SHAPES)) + np.rint(change / steps) * steps
    got = update.flatten(update.decode_head(new.head, SHAPES)) + np.frombuffer(new.residual, "<f4")
    assert np.abs(got - wanted).max() < 1e-5


def test_few_changes_take_few_bytes_and_none_take_none() -> None:
    base = start(3)
    body = bytearray(base.body)
    body[5] = (body[5] + 90) % 256
    found = difference(base.body, bytes(body), SHAPES)
    assert found is not None and found[0] == Encoding.TOPK and len(found[1]) == 3 + 2 * 17
    same = difference(base.body, base.body, SHAPES)
    assert same is not None and applied(base.body, same[1], same[0], SHAPES) == base.body


def test_a_head_that_moved_far_or_grew_is_sent_whole() -> None:
    base = start(4)
    far = moved(base, np.random.default_rng(1).normal(scale=1.0, size=COUNT)).head
    assert far.scales != base.scales
    for before, after in zip(update.decode_head(base, SHAPES), update.decode_head(far, SHAPES), strict=True):
        assert before.shape == after.shape
    assert difference(b"", b"", ()) is None
    assert difference(bytes(2 * 10), bytes(2 * 10), ((10,),)) is None  # biases alone


@given(st.binary(max_size=900), st.integers(0, 5))
def test_any_bytes_are_refused_or_are_a_body(delta: bytes, encoding: int) -> None:
    base = start(5).body
    with contextlib.suppress(MalformedMessage):
        assert len(applied(base, delta, encoding, SHAPES)) == len(base)


def test_a_delta_for_another_model_is_refused() -> None:
    with pytest.raises(MalformedMessage):
        applied(start(6).body, bytes(675 + 34), Encoding.INT4, ((10, 127), (10,)))


def test_a_delta_that_inflates_to_gigabytes_is_refused_at_once() -> None:
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(64)) + deflate.flush()
    tracemalloc.start()
    with pytest.raises(MalformedMessage):
        applied(start(8).body, bomb + bytes(34), DEFLATED, SHAPES)
    with pytest.raises(MalformedMessage):
        applied(start(8).body, b"\x01\x01" + bomb + bytes(34), COARSE, SHAPES)
    assert tracemalloc.get_traced_memory()[1] < 1 << 18
    tracemalloc.stop()


def test_a_fleet_that_has_learned_needs_a_third() -> None:
    base = start(9)
    new = moved(base, np.random.default_rng(2).normal(scale=0.01, size=COUNT)).head
    found = difference(base.body, new.body, SHAPES)
    assert found is not None and found[0] == DEFLATED and len(found[1]) < 450
