# SPDX-License-Identifier: Apache-2.0
"""Deterministic CBOR: our encoder, and a check of foreign bytes before any decoder sees them.

The profile (docs/protocol.md, "Wire rules"): definite lengths, shortest forms, map keys in the bytewise order of
their encodings, no duplicate keys, finite floats, no tag but the one a caller allows at the top, bounded depth.
Source: RFC 8949, sections 3 and 4.2.1.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import cbor2

from fl_tiny.errors import MalformedMessage

Value: TypeAlias = "int | float | bytes | str | bool | Sequence[Value] | Mapping[int, Value] | None"

MAX_DEPTH = 8
MAX_PAIRS = 64
MAX_ITEMS = 512
CONTROL_LIMIT = 4096  # bytes of a control message; nothing larger travels as CBOR

UINT, NINT, BYTES, TEXT, ARRAY, MAP, TAG, SIMPLE = range(8)
_FOLLOW = {24: 1, 25: 2, 26: 4, 27: 8}  # additional information -> bytes of argument that follow
_LEAST = {24: 24, 25: 1 << 8, 26: 1 << 16, 27: 1 << 32}  # the least value that needs that form


def encode(value: Value) -> bytes:
    """The one deterministic encoding of ``value``. Raises: TypeError for what the profile does not have."""
    match value:
        case None | bool():
            code = {None: b"\xf6", False: b"\xf4", True: b"\xf5"}[value]
        case int():
            code = _head(UINT, value) if value >= 0 else _head(NINT, -1 - value)
        case float():
            code = _encode_float(value)
        case bytes():
            code = _head(BYTES, len(value)) + value
        case str():
            code = _head(TEXT, len(value.encode())) + value.encode()
        case Mapping():
            pairs = sorted((encode(k), encode(v)) for k, v in value.items())
            code = _head(MAP, len(pairs)) + b"".join(k + v for k, v in pairs)
        case Sequence():
            code = _head(ARRAY, len(value)) + b"".join(encode(v) for v in value)
        case _:
            raise TypeError(f"{type(value).__name__} is not in the wire profile")
    return code


def tagged(tag: int, value: Value) -> bytes:
    """``value`` under a CBOR tag (18 is COSE_Sign1, RFC 9052)."""
    return _head(TAG, tag) + encode(value)


def decode(data: bytes, *, limit: int = CONTROL_LIMIT, tag: int | None = None) -> Value:
    """The value that ``data`` encodes by the profile, all of it; ``tag`` must stand at the top when given.

    Raises: MalformedMessage, before the decoder sees a byte that the profile does not allow.
    """
    if len(data) > limit:
        raise MalformedMessage(f"{len(data)} B of CBOR, at most {limit}")
    start = 0
    if tag is not None:
        major, found, start = _read_head(data, 0)
        if (major, found) != (TAG, tag):
            raise MalformedMessage(f"CBOR tag {tag} is missing")
    end = _check(data, start, 0)
    if end != len(data):
        raise MalformedMessage(f"{len(data) - end} B behind the CBOR item")
    try:
        value: Value = cbor2.loads(data[start:])
    except (cbor2.CBORDecodeError, ValueError, TypeError) as cause:  # our check is stricter; this is the second fence
        raise MalformedMessage(f"CBOR: {cause}") from cause
    return value


def _head(major: int, n: int) -> bytes:
    if n < 24:
        return bytes([major << 5 | n])
    for info, size in _FOLLOW.items():
        if n < 1 << 8 * size:
            return bytes([major << 5 | info]) + n.to_bytes(size, "big")
    raise TypeError(f"{n} does not fit 64 bits")


def _encode_float(value: float) -> bytes:
    if not math.isfinite(value):
        raise TypeError(f"{value} is not in the wire profile")
    for info, form in ((25, ">e"), (26, ">f"), (27, ">d")):
        try:
            raw = struct.pack(form, value)
        except OverflowError:
            continue
        if struct.unpack(form, raw)[0] == value:
            return bytes([SIMPLE << 5 | info]) + raw
    raise AssertionError("a float64 always fits its own form")


def _read_head(data: bytes, at: int) -> tuple[int, int, int]:
    """(major type, argument, offset behind the head) of the item at ``at``; only definite, shortest forms."""
    if at >= len(data):
        raise MalformedMessage("CBOR ends early")
    major, info = data[at] >> 5, data[at] & 31
    if info < 24:
        return major, info, at + 1
    size = _FOLLOW.get(info)
    if size is None:
        raise MalformedMessage("CBOR of indefinite length or a reserved form")
    end = at + 1 + size
    if end > len(data):
        raise MalformedMessage("CBOR ends early")
    n = int.from_bytes(data[at + 1 : end], "big")
    if major != SIMPLE and n < _LEAST[info]:
        raise MalformedMessage("a CBOR number is not in its shortest form")
    return major, n, end


def _check(data: bytes, at: int, depth: int) -> int:
    """The offset behind the item at ``at``. One linear pass, recursion bounded by MAX_DEPTH."""
    if depth > MAX_DEPTH:
        raise MalformedMessage(f"CBOR deeper than {MAX_DEPTH}")
    start = at
    major, n, at = _read_head(data, at)
    if major in (UINT, NINT):
        return at
    if major in (BYTES, TEXT):
        if n > len(data) - at:
            raise MalformedMessage("a CBOR string is longer than the message")
        if major == TEXT:
            try:
                data[at : at + n].decode()
            except UnicodeDecodeError as cause:
                raise MalformedMessage("CBOR text is not UTF-8") from cause
        return at + n
    if major == ARRAY:
        if n > MAX_ITEMS:
            raise MalformedMessage(f"a CBOR array of {n} items, at most {MAX_ITEMS}")
        for _ in range(n):
            at = _check(data, at, depth + 1)
        return at
    if major == MAP:
        return _check_map(data, at, n, depth)
    if major == TAG:
        raise MalformedMessage("a CBOR tag where none may stand")
    return _check_simple(data, start, at)


def _check_map(data: bytes, at: int, pairs: int, depth: int) -> int:
    if pairs > MAX_PAIRS:
        raise MalformedMessage(f"a CBOR map of {pairs} pairs, at most {MAX_PAIRS}")
    last = b""
    for _ in range(pairs):
        end = _check(data, at, depth + 1)
        key = data[at:end]
        if data[at] >> 5 not in (UINT, NINT):
            raise MalformedMessage("a CBOR map key is not an integer")
        if key <= last:
            raise MalformedMessage("CBOR map keys are repeated or out of order")
        last = key
        at = _check(data, end, depth + 1)
    return at


def _check_simple(data: bytes, start: int, end: int) -> int:
    info = data[start] & 31
    if info in (20, 21, 22):  # false, true, null
        return end
    form = {25: ">e", 26: ">f", 27: ">d"}.get(info)
    if form is None:
        raise MalformedMessage("a CBOR simple value the protocol does not use")
    value = struct.unpack_from(form, data, start + 1)[0]
    if not math.isfinite(value):
        raise MalformedMessage("a CBOR float is not finite")
    if _encode_float(value) != data[start:end]:
        raise MalformedMessage("a CBOR float is not in its shortest form")
    return end
