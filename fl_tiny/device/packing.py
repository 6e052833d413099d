# SPDX-License-Identifier: Apache-2.0
"""How a round's bytes lie in the device's database: each of them is written to a card that wears out. No numpy.

Bytes are added and subtracted as one long integer: the idle agent reads its head at each heartbeat.
"""

from __future__ import annotations

import zlib

from fl_tiny.device.schema import HINT
from fl_tiny.errors import DataError
from fl_tiny.protocol import wire
from fl_tiny.protocol.residual import from_256ths

FOLDED = 2  # the form of a residual in the table, as it is written
_WORTH = 2  # a body is stored as its difference when that is so many times smaller
_PLANES = 1  # the form before: in 1/256 of a step, upper bytes as they are; and before that None, in the order of int16
_LIMIT = 2 * wire.MAX_CODES  # bytes of codes, or of their residual
_SIGN = bytes(255 * (low > 127) for low in range(256))  # the upper byte of an int16 that its lower one says all of


def packed_codes(codes: bytes) -> bytes:
    """Codes deflated."""
    return zlib.compress(codes)


def codes_of(stored: bytes) -> bytes:
    """The codes of such bytes. Raises: DataError."""
    return _inflated(stored)


def packed_residual(residual: bytes) -> bytes:
    """A residual in the form ``FOLDED``: its lower bytes, then of its upper ones what they say besides; deflated."""
    low = residual[::2]
    return zlib.compress(low + _folded(residual[1::2], low))


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
    residual[::2], residual[1::2] = low, upper if form == _PLANES else _folded(upper, low)
    return from_256ths(bytes(residual)) if form == _PLANES else bytes(residual)


def body_difference(body: bytes, near: bytes) -> bytes | None:
    """A head's body as its difference to another one's, deflated; None where the body itself is not much longer."""
    if len(body) != len(near):
        return None
    new, old, (high, low) = _number(body), _number(near), _bits(len(body))
    change = ((new | high) - (old & low)) ^ ((new ^ old ^ high) & high)  # byte for byte: none borrows from the next
    found = zlib.compress(change.to_bytes(len(body), "little"))
    return found if _WORTH * len(found) <= len(body) else None


def body_of(difference: bytes, near: bytes) -> bytes:
    """The body that such a difference was made of; b"", which no gateway has signed, when it is damaged."""
    try:
        change = zlib.decompressobj().decompress(difference, len(near) + 1)
    except zlib.error:
        return b""
    if len(change) != len(near):
        return b""
    by, old, (high, low) = _number(change), _number(near), _bits(len(near))
    body = ((by & low) + (old & low)) ^ ((by ^ old) & high)  # byte for byte: none carries into the next
    return body.to_bytes(len(near), "little")


def _folded(upper: bytes, low: bytes) -> bytes:
    """Upper bytes of int16, 0 where they only repeat the sign of the lower one; and back."""
    sign = low[: len(upper)].translate(_SIGN)
    return (_number(upper) ^ _number(sign)).to_bytes(len(upper), "little")


def _bits(size: int) -> tuple[int, int]:
    """Of each byte of such a number the highest bit, and all others."""
    return _number(b"\x80" * size), _number(b"\x7f" * size)


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _inflated(stored: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(stored, _LIMIT)
    except zlib.error as cause:
        raise DataError(f"the device's state is damaged: an update: {cause}", hint=HINT) from cause
