# SPDX-License-Identifier: Apache-2.0
"""What a board lets leave it: floors, all or none of a class, one set of samples, one body a round."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.protocol import wire
from fl_tiny.protocol.consent import Floors, Past, Reply, Stock, reply, summable
from fl_tiny.protocol.wire import Code, Said

TRAIN = wire.Offer(b"r" * 8, 1, b"h" * 32, 1000, (0.1, 0.1), wire.Train(1, 16, 0.1), 100)
SUMS = replace(TRAIN, gram=wire.GramConfig(0, 96, 10, 10), max_samples=65_535)
ENOUGH = {0: 100, 1: 100}  # of 194 that sums of 96 numbers need


def said(offer: wire.Offer, stock: Stock, past: Past | None = None, floors: Floors | None = None) -> Said:
    answer = reply(offer, floors or Floors(), stock, past or Past())
    assert (answer.said is Said.NOT_ALLOWED) == (answer.code == Code.PRIVACY)
    assert bool(answer.why) == (answer.said in (Said.NOT_ALLOWED, Said.TOO_FEW_SAMPLES))
    return answer.said


@pytest.mark.parametrize(("samples", "classes"), [(0, 0), (9, 3), (100, 1)])
def test_a_board_with_too_few_samples_or_one_class_declines(samples: int, classes: int) -> None:
    assert said(TRAIN, Stock(samples, samples // 5, classes, {})) is Said.TOO_FEW_SAMPLES
    assert said(TRAIN, Stock(60, 12, 3, {}), floors=Floors(min_samples=61)) is Said.TOO_FEW_SAMPLES


def test_what_training_takes_is_asked_last() -> None:
    assert said(TRAIN, Stock(60, 12, 3, {}, able=False)) is Said.NO_BUDGET
    assert said(TRAIN, Stock(60, 12, 3, {}, able=False), floors=Floors(rounds=False)) is Said.NOT_ALLOWED


@pytest.mark.parametrize(
    ("summed", "most", "answer"),
    [
        (ENOUGH, 65_535, Said.JOIN),
        ({0: 193}, 65_535, Said.NOT_ALLOWED),
        ({0: 194}, 65_535, Said.JOIN),
        ({0: 193, 1: 7}, 65_535, Said.NOT_ALLOWED),  # a rare class is left out, and then they are too few
        ({0: 186, 1: 8}, 65_535, Said.JOIN),
        ({0: 194, 1: 1}, 65_535, Said.JOIN),  # a class with one sample is left out
        (ENOUGH, 1, Said.NOT_ALLOWED),
        (ENOUGH, 199, Said.NOT_ALLOWED),  # 199, then 200: the difference is a sample
        (ENOUGH, 200, Said.JOIN),
    ],
)
def test_sums_are_of_many_samples_or_of_none(summed: dict[int, int], most: int, answer: Said) -> None:
    total = sum(summed.values())
    assert said(replace(SUMS, max_samples=most), Stock(total + 50, 50, 2, summed)) is answer


@given(st.dictionaries(st.integers(0, 9), st.integers(1, 90_000), max_size=9), st.integers(8, 200))
def test_a_class_is_in_sums_whole_or_not_at_all(summed: dict[int, int], least: int) -> None:
    classes, count = summable(summed, Floors(min_class=least))
    assert classes == {label for label in summed if summed[label] >= least}
    assert count == min(sum(summed[label] for label in classes), 65_535)


def test_there_is_one_set_of_samples_that_sums_are_of() -> None:
    stock = Stock(250, 50, 2, ENOUGH)
    assert said(SUMS, stock, Past(summed=200)) is Said.JOIN
    assert said(SUMS, stock, Past(summed=201)) is Said.NOT_ALLOWED  # one of them was forgotten since
    assert said(TRAIN, stock, Past(summed=201)) is Said.JOIN


def test_one_body_leaves_for_a_round_and_few_from_one_head() -> None:
    stock = Stock(250, 50, 2, ENOUGH)
    assert said(TRAIN, stock, Past(same=True)) is Said.NOT_ALLOWED
    assert said(TRAIN, stock, Past(bodies=255)) is Said.JOIN
    assert said(TRAIN, stock, Past(bodies=256)) is Said.NOT_ALLOWED


def test_an_owner_can_refuse_sums_or_all() -> None:
    stock = Stock(250, 50, 2, ENOUGH)
    assert said(SUMS, stock, floors=Floors(sums=False)) is Said.NOT_ALLOWED
    assert said(TRAIN, stock, floors=Floors(sums=False)) is Said.JOIN
    assert said(TRAIN, stock, floors=Floors(rounds=False)) is Said.NOT_ALLOWED
    assert reply(SUMS, Floors(min_samples=201), stock, Past()) == Reply(
        Said.NOT_ALLOWED, Code.PRIVACY, "sums of 200 samples would show them; 201 are the fewest"
    )


def test_the_gateways_own_floor_for_sums_holds_too() -> None:
    offer = replace(SUMS, gram=wire.GramConfig(0, 4, 10, 40))
    assert said(offer, Stock(50, 10, 1, {0: 40})) is Said.JOIN
    assert said(offer, Stock(50, 11, 1, {0: 39})) is Said.TOO_FEW_SAMPLES
