# SPDX-License-Identifier: Apache-2.0
"""A text is cut by bytes, since bytes are what a field bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fl_tiny.protocol import wire
from fl_tiny.protocol.fields import cut_text
from fl_tiny.protocol.release import WHY_BYTES, BundleRefusal


@given(st.text(), st.integers(0, 200))
def test_a_text_that_is_cut_fits_and_is_a_beginning(value: str, size: int) -> None:
    short = cut_text(value, size)
    assert len(short.encode()) <= size and value.startswith(short)
    assert short == value or len(value[: len(short) + 1].encode()) > size


def test_a_heartbeat_with_a_long_reason_can_be_sent() -> None:
    """A hundred times ü is 200 bytes; cut to 100 characters it was a heartbeat that nobody could send."""
    refusal = BundleRefusal(bytes(8), 9, cut_text("ü" * 100, WHY_BYTES))
    beat = wire.Heartbeat(0, 0, bundle=refusal)
    assert wire.decode(wire.Heartbeat, wire.encode(beat)) == beat
