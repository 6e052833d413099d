# SPDX-License-Identifier: Apache-2.0
"""Sums that devices send: what no samples can add up to is refused, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.errors import RemoteError
from fl_tiny.learn.gram import Plan, Sums, to_bytes
from fl_tiny.protocol.aggregate import lower_median
from fl_tiny.protocol.grams import GramSum, config_of, factors
from fl_tiny.protocol.wire import Code

WIDTH, OUTPUTS = 5, 3
PLAN = Plan(0, WIDTH, OUTPUTS)


def sums(n: int = 40, seed: int = 0) -> Sums:
    rng = np.random.default_rng(seed)
    f = np.hstack([rng.integers(-128, 128, (n, WIDTH)), np.ones((n, 1), int)])
    t = (rng.integers(0, OUTPUTS, n)[:, None] == np.arange(OUTPUTS)).astype(int)
    return Sums(f.T @ f, f.T @ t)


@given(n=st.integers(10, 300), seed=st.integers(0, 1000))
def test_what_samples_add_up_to_is_taken(n: int, seed: int) -> None:
    total = GramSum(PLAN, 10, exclusive=True)
    body = to_bytes(sums(n, seed))
    total.check(body, n)
    total.add(body)
    total.add(body)
    assert np.array_equal(total.total.gram, 2 * sums(n, seed).gram)
    total.add(body, 3)
    assert np.array_equal(total.total.moments, (2 + 3 / 256) * sums(n, seed).moments)


@given(st.lists(st.integers(1, 65_535), min_size=1, max_size=30))
def test_no_device_counts_for_more_samples_than_the_median_device(samples: list[int]) -> None:
    middle = lower_median(samples)
    for n, factor in zip(samples, factors(samples), strict=True):
        assert 1 <= factor <= 256 and (factor == 256) == (n <= middle)
        assert n * factor / 256 <= max(middle, n / 256)


def changed(change: Callable[[Sums], object]) -> bytes:
    found = sums()
    change(found)
    return to_bytes(found)


def both(found: Sums, i: int, j: int, value: int) -> None:
    found.gram[i, j] = found.gram[j, i] = value


def forged_moments(found: Sums) -> None:
    """Each class's moments as far as each of them alone may go; together no samples have them."""
    signs = np.where(np.arange(WIDTH)[:, None] % 2 == np.arange(OUTPUTS) % 2, 120, -120)
    found.moments[:-1] = signs * found.moments[-1]


def forged_products(found: Sums) -> None:
    """Every pair of features against each other, though three cannot be against one another."""
    roots = np.sqrt(np.diag(found.gram)[:WIDTH])
    found.gram[:WIDTH, :WIDTH] = -0.9 * np.outer(roots, roots) + 1.9 * np.diag(roots**2)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: both(s, 0, 0, -1),
        lambda s: both(s, 0, 0, 40 * 128**2 + 1),
        lambda s: both(s, 0, 1, int(np.sqrt(s.gram[0, 0] * s.gram[1, 1])) + 2),
        lambda s: both(s, 0, WIDTH, 40 * 129),
        lambda s: s.moments.__setitem__((WIDTH, 0), -1),
        lambda s: s.moments.__setitem__((WIDTH, 0), s.moments[WIDTH, 0] + 1),
        lambda s: s.moments.__setitem__((0, 0), 128 * s.moments[WIDTH, 0] + 1),
        lambda s: both(s, WIDTH, WIDTH, 41),
        forged_moments,
        forged_products,
    ],
)
def test_a_liar_is_refused(change: Callable[[Sums], object]) -> None:
    with pytest.raises(RemoteError) as refused:
        GramSum(PLAN, 10, exclusive=True).check(changed(change), 40)
    assert refused.value.code == Code.SUMS


def test_another_length_and_too_few_samples_are_refused() -> None:
    total = GramSum(PLAN, 41, exclusive=True)
    with pytest.raises(RemoteError) as refused:
        total.check(to_bytes(sums())[:-4], 40)
    assert refused.value.code == Code.SHAPE
    with pytest.raises(RemoteError) as refused:
        total.check(to_bytes(sums()), 40)
    assert refused.value.code == Code.SUMS
    assert config_of(PLAN, 41).min_samples == 41


def test_labels_of_their_own_need_not_add_up_to_the_samples() -> None:
    found = sums()
    found.moments[:, 0] += found.moments[:, 1]
    GramSum(PLAN, 10, exclusive=False).check(to_bytes(found), 40)
    with pytest.raises(RemoteError):
        GramSum(PLAN, 10, exclusive=True).check(to_bytes(found), 40)
