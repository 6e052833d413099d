# SPDX-License-Identifier: Apache-2.0
"""What a round stores comes back as it was, in fewer bytes, also from the forms of older versions."""

from __future__ import annotations

import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fl_tiny.device import packing
from fl_tiny.device.store import DeviceStore
from fl_tiny.errors import DataError

from .test_store import head

COUNT = 12_810  # parameters of a 1280x10 head
SHORTS = hnp.arrays("<i2", st.integers(0, 300), elements=st.integers(-32768, 32767))


@given(SHORTS)
def test_a_residual_comes_back(residual: np.ndarray) -> None:
    raw = residual.tobytes()
    assert packing.residual_of(packing.packed_residual(raw), len(raw), packing.FOLDED) == raw


@given(SHORTS)
def test_an_older_residual_comes_back_in_sixteenths(residual: np.ndarray) -> None:
    raw = residual.tobytes()
    planes = zlib.compress(raw[::2] + raw[1::2])
    found = [packing.residual_of(*row) for row in ((raw, None, None), (zlib.compress(raw), len(raw), None))]
    found.append(packing.residual_of(planes, len(raw), 1))
    for each in found:
        assert np.abs(np.frombuffer(each, "<i2") * 16.0 - residual).max(initial=0) <= 8


def test_what_rounding_to_a_step_leaves_takes_five_bits_a_parameter() -> None:
    rng = np.random.default_rng(1)
    left = rng.integers(-15, 16, COUNT).astype("<i2").tobytes()
    assert len(packing.packed_residual(left)) < 2 / 3 * COUNT


@given(
    st.binary(min_size=200, max_size=400), st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), max_size=30)
)
def test_a_body_comes_back_from_its_difference(near: bytes, changes: list[tuple[int, int]]) -> None:
    body = bytearray(near)
    for at, byte in changes:
        body[at] = byte
    difference = packing.body_difference(bytes(body), near)
    assert difference is not None and packing.body_of(difference, near) == body


def test_a_damaged_difference_is_a_head_that_is_fetched_again(tmp_path: Path) -> None:
    first = bytes(range(256)) * 50
    second = bytes(each + (at % 97 == 0) & 255 for at, each in enumerate(first))
    with closing(DeviceStore.create(tmp_path / "state.db")) as store:
        store.put_head(head(1, first))
        store.put_head(head(2, second))
        (size,) = store.row("SELECT length(body) FROM head WHERE version=2")
        assert size < len(second) / 10
        assert store.head() == head(2, second) and store.head().rank == (0, 2)
        for damage in (b"", b"x" * size, zlib.compress(bytes(7)), zlib.compress(bytes(10**6))):
            store._db.execute("UPDATE head SET body=? WHERE version=2", (damage,))
            assert store.head().rank == (-1, -1)
        store.put_head(head(2, second))
        assert store.head().rank == (0, 2)


def test_a_damaged_residual_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="enrol anew"):
        packing.residual_of(b"no deflate", 10, packing.FOLDED)
