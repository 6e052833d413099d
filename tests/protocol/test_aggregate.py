# SPDX-License-Identifier: Apache-2.0
"""Updates as integers: nothing is lost by rounding, order does not matter, and the sum is FedAvg's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_tiny.errors import MalformedMessage, RemoteError
from fl_tiny.protocol import aggregate, update
from fl_tiny.protocol.residual import undelivered

SHAPES = ((3, 5), (3,), (2, 3), (2,))
COUNT = 15 + 3 + 6 + 2
CODES = hnp.arrays(np.int8, COUNT, elements=st.integers(-127, 127))
SHARES = st.builds(aggregate.Share, st.integers(1, 65_535), st.integers(0, aggregate.WHOLE))


def head(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]


@given(
    hnp.arrays(np.float64, COUNT, elements=st.floats(-100, 100)),
    st.floats(0.01, 10),
    st.integers(0, 2**32 - 1),
)
def test_codes_and_residual_are_the_whole_change(change: np.ndarray, step: float, seed: int) -> None:
    steps = np.full(COUNT, step)
    codes = update.encode_change(change, steps, np.random.default_rng(seed))
    q = np.frombuffer(codes.codes, np.int8).astype(np.float64)
    left = update.decode_residual(codes.residual, steps)
    inside = np.abs(change) < 254 * step
    assert np.abs(q * step + left - change)[inside].max(initial=0.0) <= step / 16
    assert np.abs(q).max() <= 127


def test_rounding_is_right_on_average() -> None:
    rng = np.random.default_rng(3)
    steps = np.ones(1)
    mean = np.mean(
        [np.frombuffer(update.encode_change(np.array([0.3]), steps, rng).codes, np.int8) for _ in range(4000)]
    )
    assert mean == pytest.approx(0.3, abs=0.03)


def test_error_feedback_delivers_a_change_smaller_than_a_step() -> None:
    rng, steps, left, sent = np.random.default_rng(1), np.ones(1), np.zeros(1), 0
    for _ in range(100):
        codes = update.encode_change(np.array([0.25]) + left, steps, rng)
        sent += int(np.frombuffer(codes.codes, np.int8)[0])
        left = update.decode_residual(codes.residual, steps)
    assert sent + float(left[0]) == pytest.approx(25.0)


SHARES = st.builds(aggregate.Share, st.integers(1, 65_535), st.integers(0, aggregate.WHOLE))


@given(CODES, hnp.arrays(np.int16, COUNT, elements=st.integers(-255, 255)))
def test_a_round_that_did_not_count_keeps_the_whole_change(codes: np.ndarray, left: np.ndarray) -> None:
    whole = np.frombuffer(undelivered(codes.tobytes(), left.astype("<i2").tobytes()), "<i2")
    assert (whole == np.clip(codes.astype(np.int32) * 16 + left, -32768, 32767)).all()


@settings(max_examples=50)
@given(st.lists(st.tuples(CODES, SHARES), min_size=1, max_size=12), st.randoms())
def test_the_sum_is_the_same_bits_in_any_order(
    updates: list[tuple[np.ndarray, aggregate.Share]], random: object
) -> None:
    one, other = aggregate.RunningSum(SHAPES), aggregate.RunningSum(SHAPES)
    for codes, share in updates:
        one.add(codes.tobytes(), share)
    random.shuffle(updates)  # type: ignore[attr-defined]
    for codes, share in updates:
        other.add(codes.tobytes(), share)
    assert (one.total == other.total).all() and one.weight == other.weight
    exact = sum((codes.astype(object) * s.weight * s.factor for codes, s in updates), np.zeros(COUNT, object))
    assert (one.total == exact).all()


@settings(max_examples=50)
@given(st.lists(st.tuples(CODES, st.integers(1, 65_535)), min_size=3, max_size=9), CODES, st.integers(1, 65_535))
def test_a_liar_counts_no_more_than_the_median_device(
    honest: list[tuple[np.ndarray, int]], lie: np.ndarray, weight: int
) -> None:
    steps = (0.01, 0.02, 0.03, 0.04)
    per = update.per_parameter(steps, SHAPES)
    everybody = [*honest, (lie, weight)]
    measures = [aggregate.measure(codes.tobytes(), steps, SHAPES) for codes, _ in everybody]
    assert [m.norm for m in measures] == pytest.approx([np.linalg.norm(per * codes) for codes, _ in everybody])
    shares = aggregate.shares([each for _, each in everybody], measures)
    assert shares[-1].weight <= max(each for _, each in honest)
    honest_ones = measures[:-1]
    longest = max(m.norm for m in honest_ones)
    assert measures[-1].norm * shares[-1].factor / aggregate.WHOLE <= longest * (1 + 1e-9)
    for peak, tensor in zip(
        aggregate.median_peaks(measures), zip(*(m.peaks for m in honest_ones), strict=True), strict=True
    ):
        assert peak <= max(tensor), "no step beyond an honest device's"


def test_devices_that_are_alike_count_whole() -> None:
    codes = np.full(COUNT, 3, np.int8).tobytes()
    measures = [aggregate.measure(codes, (0.01,) * 4, SHAPES)] * 5
    assert aggregate.shares([40] * 5, measures) == [aggregate.Share(40)] * 5
    assert aggregate.shares([], []) == []


def test_a_published_head_is_the_weighted_mean_of_the_changes() -> None:
    base, rng = update.encode_head(head(0)), np.random.default_rng(5)
    steps = (0.01, 0.02, 0.03, 0.04)
    per = update.per_parameter(steps, SHAPES)
    summed, mean, weight = aggregate.RunningSum(SHAPES), np.zeros(COUNT), 0
    for samples in (10, 200, 3000):
        codes = rng.integers(-127, 128, COUNT, dtype=np.int8)
        summed.add(codes.tobytes(), aggregate.Share(samples))
        mean, weight = mean + samples * codes.astype(np.float64) * per, weight + samples
    new = aggregate.publish(base, b"", SHAPES, steps, summed)
    wanted = update.flatten(update.decode_head(base, SHAPES)) + mean / weight
    got = update.flatten(update.decode_head(new.head, SHAPES)) + np.frombuffer(new.residual, "<f4")
    assert np.abs(got - wanted).max() < 1e-5


def test_what_a_heads_form_rounds_away_is_not_lost_over_many_rounds() -> None:
    body, left = update.encode_head(head(0)), b""
    start = update.flatten(update.decode_head(body, SHAPES))
    steps = (1e-4,) * 4  # far below the body's own resolution
    for _ in range(200):
        summed = aggregate.RunningSum(SHAPES)
        summed.add(np.full(COUNT, 5, np.int8).tobytes(), aggregate.Share(1))
        new = aggregate.publish(body, left, SHAPES, steps, summed)
        body, left = new.head, new.residual
    moved = update.flatten(update.decode_head(body, SHAPES)) + np.frombuffer(left, "<f4") - start
    assert np.abs(moved - 0.1).max() < 1e-3


def test_a_head_goes_there_and_back_within_its_form() -> None:
    params = head(2)
    back = update.decode_head(update.encode_head(params), SHAPES)
    for before, after in zip(params, back, strict=True):
        bound = np.abs(before).max() / 254 * 1.001 if before.ndim == 2 else 2e-3
        assert np.abs(before - after).max() <= bound


@pytest.mark.parametrize("size", [0, COUNT - 1, COUNT + 1, 10 * COUNT])
def test_an_update_of_another_length_is_refused_and_changes_nothing(size: int) -> None:
    summed = aggregate.RunningSum(SHAPES)
    with pytest.raises(RemoteError):
        summed.add(bytes(size), aggregate.Share(1))
    assert summed.weight == 0 and not summed.total.any()


def test_the_code_minus_128_is_refused() -> None:
    with pytest.raises(RemoteError):
        aggregate.RunningSum(SHAPES).add(b"\x80" + bytes(COUNT - 1), aggregate.Share(1))


def test_a_body_that_does_not_fit_its_manifest_is_refused() -> None:
    good = update.encode_head(head(0))
    for bad in (
        update.HeadBody(good.body[:-1], good.scales),
        update.HeadBody(good.body, good.scales[:1]),
        update.HeadBody(good.body[:-4] + b"\x00\x7c\x00\x7c", good.scales),  # float16 infinity
    ):
        with pytest.raises(MalformedMessage):
            update.decode_head(bad, SHAPES)


def test_steps_follow_what_the_last_round_showed() -> None:
    finer, same, coarser = aggregate.next_steps((1.0, 1.0, 1.0), (10, 96, 127))
    assert finer == 0.5 and same == 1.0 and coarser == 2.0


def test_one_device_cannot_spoil_the_scale_of_all() -> None:
    honest = [(-1.0, 2.0)] * 4
    assert aggregate.merge_ranges([*honest, (-1e9, 1e9)]) == (-2.0, 4.0)
    assert aggregate.merge_ranges([(-1.0, 2.0), (-0.5, 2.5)]) == (-1.0, 2.5)
    assert aggregate.merge_ranges([]) is None
