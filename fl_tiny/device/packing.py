# SPDX-License-Identifier: Apache-2.0
"""How a round's bytes lie in the device's database: each byte of them is written to a card that wears. No numpy."""

from __future__ import annotations

import zlib

from fl_tiny.device.schema import HINT
from fl_tiny.errors import DataError
from fl_tiny.protocol import wire
from fl_tiny.protocol.residual import from_256ths

FOLDED = 2  # the form of a residual in the table, as it is written
_PLANES = 1  # the form before: in 1/256 of a step, upper bytes as they are; and before that None, in the order of int16
_LIMIT = 2 * wire.MAX_CODES  # bytes of codes, or of their residual
_SIGN = bytes(255 * (low > 127) for low in range(256))  # the upper byte of an int16 that its lower one says all of
WORTH = 2  # a body is stored as its difference when that is so many times smaller


def packed_codes(codes: bytes) -> bytes:
    """Codes deflated."""
    return zlib.compress(codes)


def codes_of(stored: bytes) -> bytes:
    """The codes of such bytes. Raises: DataError."""
    return _inflated(stored)


def packed_residual(residual: bytes) -> bytes:
    """A residual in the form ``FOLDED``: its lower bytes, then of its upper ones what they say besides; deflated."""
    low = residual[::2]
    upper = bytes(high ^ sign for high, sign in zip(residual[1::2], low.translate(_SIGN), strict=False))
    return zlib.compress(low + upper)


def residual_of(stored: bytes, size: int | None, form: int | None) -> bytes:
    """The residual of stored bytes, int16, in 1/16 of a step.

    size: of the residual, None for one that is not deflated, as before version 5 of the tables.
    Raises: DataError.
    """
    raw = stored if size is None else _inflated(stored)
    if form is None:
        return from_256ths(raw)
    half = (len(raw) + 1) // 2
    low, upper = raw[:half], raw[half:]
    residual = bytearray(raw)
    residual[::2] = low
    if form == _PLANES:
        residual[1::2] = upper
        return from_256ths(bytes(residual))
    residual[1::2] = bytes(high ^ sign for high, sign in zip(upper, low.translate(_SIGN), strict=False))
    return bytes(residual)


def body_difference(body: bytes, near: bytes) -> bytes | None:
    """A head's body as its difference to another one's, deflated; None where the body itself is not much longer."""
    if len(body) != len(near):
        return None
    found = zlib.compress(bytes(new - old & 255 for new, old in zip(body, near, strict=True)))
    return found if WORTH * len(found) <= len(body) else None


def body_of(difference: bytes, near: bytes) -> bytes:
    """The body that such a difference was made of; b"", which no gateway has signed, when it is damaged."""
    try:
        change = zlib.decompressobj().decompress(difference, len(near) + 1)
    except zlib.error:
        return b""
    return bytes(old + by & 255 for old, by in zip(near, change, strict=True)) if len(change) == len(near) else b""


def _inflated(stored: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(stored, _LIMIT)
    except zlib.error as cause:
        raise DataError(f"the device's state is damaged: an update: {cause}", hint=HINT) from cause
