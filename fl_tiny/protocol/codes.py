# SPDX-License-Identifier: Apache-2.0
"""Codes of a change as bytes, three ways, and all of them back as one int8 a parameter; without numpy.

int8   one code a byte, -127..127.
int4   two codes a byte, the earlier in the low four bits, -7..7; a code counts 16 steps, so that both cover a like
       range with the same step. An odd last parameter leaves four bits of zero.
top-k  how many, then for each, in the manifest's order: how many parameters are passed over, and an int8 code that is
       not 0. Numbers are LEB128 in their shortest form.

What comes back is in steps of int8, so that a round adds them all up exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

from fl_tiny.errors import MalformedMessage
from fl_tiny.protocol.wire import Encoding

INT4_STEPS = 16  # of int8 in one code of int4: 7 * 16 = 112 of 127, and a whole number, so that sums stay exact
INT4_MAX = 7
LEB_BYTES = 3  # 2^21 numbers: more than a head has parameters

_NIBBLES = [(n - 16 if n > 7 else n) * INT4_STEPS & 0xFF for n in range(16)]
_LOW = bytes(_NIBBLES[byte & 15] for byte in range(256))
_HIGH = bytes(_NIBBLES[byte >> 4] for byte in range(256))
_VALID = bytes(byte for byte in range(256) if byte & 15 != 8 and byte >> 4 != 8)


def fits(encoding: int, size: int, parameters: int, kept: int) -> bool:
    """May codes of this encoding be ``size`` bytes long? kept: the most parameters that top-k may name; 0: none."""
    if encoding == Encoding.TOPK:
        return kept > 0 and 1 <= size <= most_bytes(encoding, parameters, kept)
    return size == most_bytes(encoding, parameters, kept)


def most_bytes(encoding: int, parameters: int, kept: int) -> int:
    """The longest that codes of this encoding are; of int8 and int4 the only length."""
    if encoding == Encoding.TOPK:
        return LEB_BYTES + kept * (LEB_BYTES + 1)
    return parameters if encoding == Encoding.INT8 else (parameters + 1) // 2


def expanded(codes: bytes, encoding: int, parameters: int, kept: int | None = None) -> bytes:
    """int8, one a parameter, in steps of int8. kept: as in ``fits``; None: any number.

    Raises: MalformedMessage, before anything of the size that ``codes`` name is allocated.
    """
    if not fits(encoding, len(codes), parameters, parameters if kept is None else kept):
        raise MalformedMessage(f"an update of {len(codes)} B for {parameters} parameters")
    if encoding == Encoding.INT4:
        return _from_int4(codes, parameters)
    if encoding == Encoding.TOPK:
        return _from_topk(codes, parameters, parameters if kept is None else kept)
    if 0x80 in codes:
        raise MalformedMessage("an update holds the code -128")
    return codes


def named(values: Sequence[int], places: Sequence[int]) -> bytes:
    """Codes as top-k. values: -127..127, not 0.   places: of each, rising."""
    body = bytearray(_leb(len(values)))
    last = -1
    for place, value in zip(places, values, strict=True):
        body += _leb(place - last - 1)
        body.append(value & 0xFF)
        last = place
    return bytes(body)


def packed(values: bytes) -> bytes:
    """Codes as int4. values: int8, -7..7, one a parameter."""
    low, high = values[0::2], values[1::2] + bytes(len(values) % 2)
    return bytes(a & 15 | (b & 15) << 4 for a, b in zip(low, high, strict=True))


def _from_int4(codes: bytes, parameters: int) -> bytes:
    if codes.translate(None, _VALID):
        raise MalformedMessage("an update holds the code -8")
    if parameters % 2 and codes[-1] >> 4:
        raise MalformedMessage("an update says more than there are parameters")
    whole = bytearray(2 * len(codes))
    whole[0::2], whole[1::2] = codes.translate(_LOW), codes.translate(_HIGH)
    return bytes(whole[:parameters])


def _from_topk(codes: bytes, parameters: int, kept: int) -> bytes:
    count, at = _read_leb(codes, 0)
    if count > min(kept, parameters) or len(codes) - at < 2 * count:
        raise MalformedMessage(f"an update of {len(codes)} B names {count} parameters, at most {kept}")
    found: list[tuple[int, int]] = []
    place = -1
    for _ in range(count):
        gap, at = _read_leb(codes, at)
        place += 1 + gap
        if place >= parameters or at >= len(codes):
            raise MalformedMessage("an update names a parameter that the head does not have, or no code for it")
        if codes[at] in (0, 0x80):
            raise MalformedMessage("an update names a parameter with the code 0 or -128")
        found.append((place, codes[at]))
        at += 1
    if at != len(codes):
        raise MalformedMessage("bytes behind the last code")
    whole = bytearray(parameters)
    for place, code in found:
        whole[place] = code
    return bytes(whole)


def _leb(number: int) -> bytes:
    body = bytearray()
    while number > 0x7F:
        body.append(number & 0x7F | 0x80)
        number >>= 7
    body.append(number)
    return bytes(body)


def _read_leb(body: bytes, at: int) -> tuple[int, int]:
    """The number at ``at`` and where the next byte is. Raises: MalformedMessage."""
    number = 0
    for i in range(LEB_BYTES):
        if at + i >= len(body):
            break
        byte = body[at + i]
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if i and not byte:
                break  # not the shortest
            return number, at + i + 1
    raise MalformedMessage("a number that is cut, too long, or not in its shortest form")
