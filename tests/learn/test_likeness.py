# SPDX-License-Identifier: Apache-2.0
"""Samples that show the same thing are joined, those that do not are kept apart."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_tiny.learn import judge, likeness

ZERO = -20


def scenes(rng: np.random.Generator, count: int, frames: int, noise: float = 1.5) -> np.ndarray:
    """``frames`` nearly equal samples of each of ``count`` that are far apart, (count * frames, 96)."""
    far = np.clip(rng.normal(ZERO, 50, (count, 96)), -128, 127)
    many = np.repeat(far, frames, axis=0)
    return np.clip(many + rng.normal(0, noise, many.shape), -128, 127).astype(np.int8)


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 99), st.booleans())
def test_the_frames_of_a_scene_are_one_group_in_any_order_and_in_any_portions(
    count: int, frames: int, seed: int, known: bool
) -> None:
    rng = np.random.default_rng(seed)
    codes = scenes(rng, count, frames)
    scene = np.repeat(np.arange(count), frames)
    order = rng.permutation(len(codes))
    codes, scene = codes[order], scene[order]
    half = len(codes) // 2 if known else 0
    first = likeness.join(codes[:half], ZERO) + 1000
    rest = likeness.join(codes[half:], ZERO, [(c.tobytes(), int(g)) for c, g in zip(codes[:half], first, strict=True)])
    groups = np.concatenate([first, rest])
    same = scene[:, None] == scene[None]
    assert ((groups[:, None] == groups[None]) == same).all()


def test_a_chain_of_alike_samples_is_one_group_though_its_ends_differ() -> None:
    rng = np.random.default_rng(1)
    ends = rng.normal(ZERO, 50, (2, 96))
    path = np.linspace(0, 1, 40)[:, None] * ends[1] + np.linspace(1, 0, 40)[:, None] * ends[0]
    codes = np.clip(path, -128, 127).astype(np.int8)
    assert not likeness.alike(codes[:1], codes[-1:], ZERO)[0, 0]
    assert len(set(likeness.join(codes[rng.permutation(40)], ZERO))) == 1


def test_samples_of_one_stretch_are_one_group_and_follow_a_stored_one() -> None:
    codes = scenes(np.random.default_rng(2), 9, 1)
    groups = likeness.join(codes, ZERO, [(codes[4].tobytes(), 77)], stretches=[0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert groups[3:6].tolist() == [77] * 3
    assert len(set(groups[:3])) == len(set(groups[6:])) == 1 and len(set(groups)) == 3


def test_equal_samples_are_alike_even_when_they_are_nothing() -> None:
    nothing = np.full((2, 8), ZERO, np.int8)
    assert likeness.alike(nothing, nothing, ZERO).all()
    assert likeness.join(np.empty((0, 8), np.int8), ZERO).tolist() == []


@settings(max_examples=60)
@given(st.integers(2, 120), st.integers(1, 9), st.integers(0, 99))
def test_no_split_cuts_a_group_and_all_samples_are_judged_once(count: int, frames: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(count), frames)
    labels = np.repeat(rng.integers(0, 3, count), frames)
    if len(labels) < 10:
        return
    parts = judge.splits(labels, groups, rng)
    assert (np.sum(parts, axis=0) == 1).all() and 2 <= len(parts) <= 5
    for part in parts:
        assert part.any() and not np.isin(groups[part], groups[~part]).any()
    assert judge.counted(groups, parts) == count
    large = judge.splits(np.zeros(600, np.int64), np.repeat(np.arange(300), 2), rng)
    assert [int(part.sum()) for part in large] == [100], "fifty groups of two"


def test_one_group_is_taken_apart_and_its_figure_tells_nothing() -> None:
    parts = judge.splits(np.arange(60) % 3, np.zeros(60, np.int64), np.random.default_rng(0))
    assert len(parts) == 5 and judge.counted(np.zeros(60, np.int64), parts) == 1
    assert not judge.tells(60, 1) and not judge.tells(19, 19) and judge.tells(20, 10)
