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


@given(st.lists(st.integers(0, len(BLOCKS) - 1), max_size=40), st.permutations(range(len(BLOCKS))))
def test_blocks_in_any_order_come_to_the_whole_once(some: list[int], every: list[int]) -> None:
    assembly, came = Assembly(), set[int]()
    last = len(BLOCKS) - 1
    for number in [*some, *every]:
        found = give(assembly, number)
        came.add(number)
        if len(came) == len(BLOCKS):
            assert found == BODY
            came.clear()
        else:
            assert found == ("4.08" if number == last else "2.31")


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.sampled_from([16, 32]), st.integers(0, 40)), max_size=30),
    st.permutations(range(len(BLOCKS))),
)
def test_whatever_came_before_a_body_that_is_begun_anew_comes_whole(
    odd: list[tuple[int, bool, int, int]], every: list[int]
) -> None:
    assembly = Assembly()
    for number, more, size, length in odd:
        found = assembly.take(1, PUT, (number, more, size), bytes(length), 10_000, 0.0)
        assert isinstance(found, bytes) or found in ("2.31", "4.08")
    answers = [give(assembly, number) for number in every]
    assert answers.count(BODY) == 1


def test_a_block_of_another_body_begins_anew_and_no_two_bodies_mix() -> None:
    assembly = Assembly()
    for number in (0, 1):
        give(assembly, number)
    assert assembly.take(1, PUT, (1, True, SIZE), b"y" * SIZE, 10_000, 0.0) == "2.31"
    assert assembly.take(1, PUT, (2, False, SIZE), b"end", 10_000, 0.0) == "4.08", "block 0 was of the other"
    assert assembly.take(1, PUT, (0, True, SIZE), b"x" * SIZE, 10_000, 0.0) == b"x" * SIZE + b"y" * SIZE + b"end"
    give(assembly, 0)
    assert assembly.take(1, ("PUT", "e"), (1, False, SIZE), b"end", 10_000, 0.0) == "4.08"
    assert assembly.take(2, PUT, (2, True, SIZE), b"short", 10_000, 0.0) == "4.08"
    assert len(assembly) == 1
    assert give(assembly, 2, limit=3 * SIZE - 1) == "4.13"
    assert len(assembly) == 0


def test_three_thousand_half_open_bodies_take_sixteen_places() -> None:
    assembly = Assembly()
    answers = [give(assembly, 0, who, now=who / 1000) for who in range(3000)]
    assert answers.count("2.31") == len(assembly) == BODIES
    assert set(answers[BODIES:]) == {"5.03"}
    assert give(assembly, 1, 0, now=3.0) == "2.31", "whoever had begun goes on"
    assert give(assembly, 0, "late", now=IDLE_S + 1) == "2.31", "those left alone make room"
    assert len(assembly) == 2, "the one that grew does not"
