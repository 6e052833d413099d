# SPDX-License-Identifier: Apache-2.0
"""Codes in each encoding: what goes in comes out, nothing of a change is lost, and damaged codes are refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_tiny.errors import MalformedMessage
from fl_tiny.protocol import codes, update
from fl_tiny.protocol.residual import undelivered
from fl_tiny.protocol.wire import MAX_CODES, Encoding

COUNT, KEPT = 203, 20
CHANGES = hnp.arrays(np.float64, COUNT, elements=st.floats(-126, 126))


def sent(encoding: int, change: np.ndarray, seed: int = 1) -> tuple[update.Codes, np.ndarray]:
    """What is sent of a change in steps of 1, and it read back."""
    made = update.encode_change(change, np.ones(COUNT), np.random.default_rng(seed), encoding, KEPT)
    return made, np.frombuffer(codes.expanded(made.codes, encoding, COUNT, KEPT), np.int8).astype(np.int64)


@pytest.mark.parametrize("encoding", Encoding)
@given(change=CHANGES, seed=st.integers(0, 99))
def test_what_is_sent_and_what_is_left_are_the_change(encoding: int, change: np.ndarray, seed: int) -> None:
    made, q = sent(encoding, change, seed)
    left = np.frombuffer(made.residual, "<i2").astype(np.int64)
    assert (q * 16 + left == np.rint(change * 16)).all()
    whole = np.frombuffer(undelivered(made.codes, made.residual, encoding), "<i2")
    assert (whole == np.rint(change * 16)).all()  # a round that did not count keeps all of it


@pytest.mark.parametrize("encoding", Encoding)
def test_a_hundred_rounds_with_losses_deliver_what_was_trained(encoding: int) -> None:
    """failures.md row 93: residual + delivered = trained, exactly, in 1/16 of a step."""
    rng = np.random.default_rng(5)
    trained, delivered, left = np.zeros(COUNT, np.int64), np.zeros(COUNT, np.int64), np.zeros(COUNT, np.int64)
    for number in range(100):
        change = np.rint(rng.normal(scale=0.6, size=COUNT) * 16).astype(np.int64)
        trained += change
        made, q = sent(encoding, (change + left) / 16, number)
        raw = made.residual
        if rng.random() < 0.3:  # the round was closed before it came
            raw = undelivered(made.codes, made.residual, encoding)
        else:
            delivered += q * 16
        left = np.frombuffer(raw, "<i2").astype(np.int64)
        assert (delivered + left == trained).all()
    assert np.abs(left).max() < 120 * 16, "nothing was clipped on the way"


def test_each_encoding_is_as_small_as_it_says() -> None:
    change = np.random.default_rng(2).normal(size=12_810) * 20
    size = {
        encoding: len(update.encode_change(change, np.ones(12_810), np.random.default_rng(1), encoding, 640).codes)
        for encoding in Encoding
    }
    assert size[Encoding.INT8] == 12_810 and size[Encoding.INT4] == 6_405 and size[Encoding.TOPK] < 1_320


def test_int4_uses_its_range_and_rounds_right_on_average() -> None:
    made = [sent(Encoding.INT4, np.full(COUNT, 40.0), seed)[1] for seed in range(40)]
    assert np.mean(made) == pytest.approx(40.0, abs=0.5)
    assert set(np.unique(sent(Encoding.INT4, np.linspace(-126, 126, COUNT))[1])) == set(range(-112, 113, 16))


def test_topk_names_the_largest() -> None:
    change = np.zeros(COUNT)
    change[[3, 50, 202]] = 9.0, -70.0, 4.0
    q = sent(Encoding.TOPK, change)[1]
    assert q[[3, 50, 202]].tolist() == [9, -70, 4] and np.count_nonzero(q) == 3


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (Encoding.INT8, bytes(COUNT - 1)),
        (Encoding.INT8, bytes(COUNT + 1)),
        (Encoding.INT8, b"\x80" + bytes(COUNT - 1)),
        (Encoding.INT4, bytes(101)),
        (Encoding.INT4, bytes(103)),
        (Encoding.INT4, b"\x08" + bytes(101)),
        (Encoding.INT4, b"\x80" + bytes(101)),
        (Encoding.INT4, bytes(101) + b"\x10"),  # a code behind the last parameter
        (Encoding.TOPK, b""),
        (Encoding.TOPK, b"\x01"),
        (Encoding.TOPK, b"\x01\x05"),
        (Encoding.TOPK, b"\x01\x05\x00"),  # the code 0
        (Encoding.TOPK, b"\x01\x05\x80"),  # the code -128
        (Encoding.TOPK, b"\x01\x05\x01\x01"),  # a byte behind
        (Encoding.TOPK, b"\x01\x85\x00\x01"),  # 5, not in its shortest form
        (Encoding.TOPK, b"\x01\xcb\x01\x01"),  # parameter 203 of 0..202
        (Encoding.TOPK, b"\x02\xca\x01\x01\x00\x01"),  # the second is past the end
        (Encoding.TOPK, b"\x01\xff\xff\xff\x7f\x01"),  # a number of four bytes
        (Encoding.TOPK, b"\x15" + b"\x00\x01" * 21),  # one more than may be named
    ],
)
def test_damaged_codes_are_refused(encoding: int, body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        codes.expanded(body, encoding, COUNT, KEPT)


@given(st.binary(max_size=120), st.sampled_from(list(Encoding)))
def test_any_bytes_are_refused_or_are_codes_of_every_parameter(body: bytes, encoding: int) -> None:
    try:
        whole = codes.expanded(body, encoding, COUNT, KEPT)
    except MalformedMessage:
        return
    assert len(whole) == COUNT and 0x80 not in whole


def test_a_gap_past_the_end_allocates_nothing() -> None:
    tracemalloc.start()
    with pytest.raises(MalformedMessage):
        codes.expanded(b"\x01\xff\xff\x7f\x01", Encoding.TOPK, MAX_CODES)
    assert tracemalloc.get_traced_memory()[1] < 16_384
    tracemalloc.stop()
