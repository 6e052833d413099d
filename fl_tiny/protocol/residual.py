# SPDX-License-Identifier: Apache-2.0
"""What is left of a change that no round counted; without numpy, since the idle agent settles rounds."""

from __future__ import annotations

import sys
from array import array

_STEP = 256  # a residual counts in 1/256 of a step (protocol/update.py)


def undelivered(codes: bytes, residual: bytes) -> bytes:
    """The whole change as a residual: codes * 256 + residual, saturating.

    codes: int8.   residual and result: int16, little endian, in step / 256.
    """
    left = _shorts(residual)
    whole = array("h", (max(-32768, min(32767, _STEP * q + r)) for q, r in zip(array("b", codes), left, strict=True)))
    return _swapped(whole).tobytes()


def _shorts(raw: bytes) -> array[int]:
    values = array("h")
    values.frombytes(raw)
    return _swapped(values)


def _swapped(values: array[int]) -> array[int]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
