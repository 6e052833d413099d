# SPDX-License-Identifier: Apache-2.0
"""Bodies in blocks: gaps, repetitions, restarts, and bodies that are begun and left."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.net.assembly import BODIES, IDLE_S, Assembly

SIZE = 64
BODY = bytes(range(256)) * 2 + b"the end"
BLOCKS = [BODY[at : at + SIZE] for at in range(0, len(BODY), SIZE)]
PUT = ("PUT", "u")


def give(assembly: Assembly, number: int, who: object = 1, now: float = 0.0, limit: int = 10_000) -> bytes | str:
    more = number < len(BLOCKS) - 1
    return assembly.take(who, PUT, (number, more, SIZE), BLOCKS[number], limit, now)


@given(st.lists(st.integers(0, len(BLOCKS) - 1), max_size=40))
def test_any_order_of_blocks_gives_the_whole_once_or_a_refusal(order: list[int]) -> None:
    assembly, have = Assembly(), None
    for number in order:
        found = give(assembly, number)
        if number == 0:
            expected: bytes | str = "2.31"
            have = 1
        elif have is None or number > have or (number < have and number == len(BLOCKS) - 1):
            expected = "4.08"
        elif number < have:
            expected = "2.31"
        else:
            expected, have = ("2.31", have + 1) if number < len(BLOCKS) - 1 else (BODY, None)
        assert found == expected
    for number in range(len(BLOCKS) - 1):
        assert give(assembly, number) == "2.31"
    assert give(assembly, len(BLOCKS) - 1) == BODY
    assert len(assembly) == 0


def test_a_block_that_says_something_else_or_goes_elsewhere_is_refused() -> None:
    assembly = Assembly()
    give(assembly, 0)
    give(assembly, 1)
    assert assembly.take(1, PUT, (1, True, SIZE), b"y" * SIZE, 10_000, 0.0) == "4.08"
    assert assembly.take(1, PUT, (2, True, SIZE), b"short", 10_000, 0.0) == "4.08"
    assert assembly.take(1, ("PUT", "e"), (2, True, SIZE), BLOCKS[2], 10_000, 0.0) == "4.08"
    assert assembly.take(2, PUT, (2, True, SIZE), BLOCKS[2], 10_000, 0.0) == "4.08"
    assert give(assembly, 2, limit=3 * SIZE - 1) == "4.13"
    assert len(assembly) == 0


def test_three_thousand_half_open_bodies_take_sixteen_places() -> None:
    assembly = Assembly()
    answers = [give(assembly, 0, who, now=who / 1000) for who in range(3000)]
    assert answers.count("2.31") == len(assembly) == BODIES
    assert set(answers[BODIES:]) == {"5.03"}
    assert give(assembly, 1, 0, now=3.0) == "2.31", "whoever had begun goes on"
    assert give(assembly, 0, "late", now=IDLE_S + 1) == "2.31", "those left alone make room"
    assert give(assembly, 2, 0, now=IDLE_S + 1) == "2.31", "the one that grew does not"
    assembly.drop("late")
    assembly.drop(0)
    assert len(assembly) == 0
