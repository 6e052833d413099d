# SPDX-License-Identifier: Apache-2.0
"""Block1 bodies from peers that send them as they like."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.net.blocks import BODIES, BODY_BYTES, IDLE_S, Assembler

PATH = ("u",)


def blocks(body: bytes, size: int) -> list[tuple[tuple[int, bool, int], bytes]]:
    last = (len(body) - 1) // size
    return [((n, n < last, size), body[n * size : (n + 1) * size]) for n in range(last + 1)]


@given(st.binary(min_size=2, max_size=3000), st.sampled_from([16, 64, 256, 1024]), st.data())
def test_blocks_in_any_order_come_to_the_body_once(body: bytes, size: int, data: st.DataObject) -> None:
    sent = blocks(body, size)
    some = data.draw(st.lists(st.sampled_from(sent), max_size=40))
    assembler = Assembler()
    came: set[int] = set()
    for block, payload in [*some, *data.draw(st.permutations(sent))]:
        answer = assembler.take("dev", PATH, block, payload, 0.0)
        came.add(block[0])
        if len(came) == len(sent):
            assert answer == body
            came.clear()
        else:
            assert answer == ("2.31" if block[1] or len(sent) - 1 not in came else "4.08")


def test_block_zero_with_other_bytes_begins_anew() -> None:
    assembler = Assembler()
    old, new = blocks(b"a" * 40, 16), blocks(b"b" * 40, 16)
    for block, payload in (*old[:2], new[0]):
        assert assembler.take("dev", PATH, block, payload, 0.0) == "2.31"
    assert assembler.take("dev", PATH, *new[2], 0.0) == "4.08"
    assert assembler.take("dev", PATH, *new[1], 0.0) == b"b" * 40


def test_bodies_left_open_are_bounded() -> None:
    assembler = Assembler()
    first = blocks(b"a" * 40, 16)[0]
    for n in range(BODIES):
        assert assembler.take(f"dev{n}", PATH, *first, 0.0) == "2.31"
    assert assembler.take("one more", PATH, *first, IDLE_S - 1) == "5.03"
    assert assembler.take("one more", PATH, *first, IDLE_S) == "2.31"
    block = (BODY_BYTES // 1024, True, 1024)
    assert assembler.take("one more", PATH, block, b"x" * 1024, IDLE_S) == "4.13"
    assert assembler.take("one more", PATH, (0, True, 1024), b"short", IDLE_S) == "4.00"
