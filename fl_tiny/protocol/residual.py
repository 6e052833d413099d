# SPDX-License-Identifier: Apache-2.0
"""What is left of a change that no round counted; without numpy, since the idle agent settles rounds."""

from __future__ import annotations

import sys
from array import array

from fl_tiny.protocol.codes import expanded
from fl_tiny.protocol.wire import Encoding

FRACTION = 16  # a residual counts in 1/16 of a step: finer ones are noise, and each bit is written to a card


def undelivered(codes: bytes, residual: bytes, encoding: int = Encoding.INT8) -> bytes:
    """The whole change as a residual: codes * 16 + residual, saturating.

    codes: as they were sent (protocol/codes.py).   residual and result: int16, little endian, in step / 16.
    """
    left = _shorts(residual)
    sent = array("b", expanded(codes, encoding, len(left)))
    whole = array("h", (max(-32768, min(32767, FRACTION * q + r)) for q, r in zip(sent, left, strict=True)))
    return _swapped(whole).tobytes()


def from_256ths(residual: bytes) -> bytes:
    """A residual as it was kept before version 7 of the device's tables, in 1/256 of a step; rounded to nearest."""
    return _swapped(array("h", ((r + 8) >> 4 for r in _shorts(residual)))).tobytes()


def _shorts(raw: bytes) -> array[int]:
    values = array("h")
    values.frombytes(raw)
    return _swapped(values)


def _swapped(values: array[int]) -> array[int]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
