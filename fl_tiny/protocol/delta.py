# SPDX-License-Identifier: Apache-2.0
"""From one head to the next by what differs: codes of weights that changed, biases whole; without numpy.

A head made for this (``encode_next`` in protocol/update.py) keeps the scales of the one before, so a delta is whole
codes, and what a device makes of it is the next head's body, byte by byte; its digest is signed. Codes of a fleet that
has learned are mostly 0: int4 shrinks to a third by DEFLATE (RFC 1951). First rounds change weights by more than 7
codes: then every change of a tensor is a multiple of one number, which stands before the codes.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Sequence
from itertools import accumulate

from fl_tiny.errors import MalformedMessage
from fl_tiny.protocol.codes import INT4_MAX, INT4_STEPS, expanded, named, packed
from fl_tiny.protocol.wire import COARSE, DEFLATED, Encoding

Shapes = Sequence[tuple[int, ...]]

COARSEST = 18  # 7 times it is the largest change of a code
RAW = -15  # DEFLATE without a header, a window of 32 KiB

_ONES = bytes((byte if byte < 128 else byte - 256) // INT4_STEPS & 0xFF for byte in range(256))  # a code of int4 is 1


def difference(old: bytes, new: bytes, shapes: Shapes) -> tuple[int, bytes] | None:
    """The smallest delta from a body to another of the same scales; None where none is smaller than the body."""
    before, _ = _parted(old, shapes)
    after, biases = _parted(new, shapes)
    if not after:
        return None
    changes = [b - a for a, b in zip(array("b", before), array("b", after), strict=True)]
    widest = max(map(abs, changes))
    places = [place for place, change in enumerate(changes) if change]
    found: list[tuple[int, bytes]] = []
    if widest <= 127 and 2 * len(places) < len(changes):
        found.append((Encoding.TOPK.value, named([changes[place] for place in places], places) + biases))
    multiples = [math.gcd(*changes[start:end]) or 1 for start, end in _tensors(shapes)]
    if widest <= INT4_MAX:
        codes = packed(array("b", changes).tobytes())
        found.append((Encoding.INT4.value, codes + biases))
        found.append((DEFLATED, _deflated(codes) + biases))
    elif max(multiples) <= COARSEST:
        for (start, end), multiple in zip(_tensors(shapes), multiples, strict=True):
            changes[start:end] = [change // multiple for change in changes[start:end]]
        if max(map(abs, changes)) <= INT4_MAX:
            codes = packed(array("b", changes).tobytes())
            found.append((COARSE, bytes(multiples) + _deflated(codes) + biases))
    smallest = min(found, key=lambda each: len(each[1]), default=None)
    return smallest if smallest and len(smallest[1]) < len(new) else None


def applied(old: bytes, delta: bytes, encoding: int, shapes: Shapes) -> bytes:
    """The body that ``delta`` leads to. Raises: MalformedMessage; whoever asks checks the result's digest."""
    before, biases = _parted(old, shapes)
    end = len(delta) - len(biases)
    codes = delta[:end]
    if encoding not in (Encoding.INT4, Encoding.TOPK, DEFLATED, COARSE) or end < 0:
        raise MalformedMessage(f"a delta of {len(delta)} B for a head of {len(old)} B")
    multiples = b""
    if encoding == COARSE:
        tensors = len(_tensors(shapes))
        multiples, codes, encoding = codes[:tensors], codes[tensors:], DEFLATED
        if len(multiples) < tensors:
            raise MalformedMessage(f"a delta of {len(delta)} B for a head of {tensors} tensors")
    if encoding == DEFLATED:
        codes, encoding = _inflated(codes, (len(before) + 1) // 2), Encoding.INT4
    changes = expanded(codes, encoding, len(before))
    if encoding == Encoding.INT4:
        changes = changes.translate(_ONES)
    for (first, last), multiple in zip(_tensors(shapes), multiples, strict=False):
        times = bytes((byte if byte < 128 else byte - 256) * multiple & 0xFF for byte in range(256))
        changes = changes[:first] + changes[first:last].translate(times) + changes[last:]
    weights = bytes(a + b & 0xFF for a, b in zip(before, changes, strict=True))
    return _joined(weights, delta[end:], shapes)


def _tensors(shapes: Shapes) -> list[tuple[int, int]]:
    """Where each weight tensor begins and ends in the row of all weights."""
    ends = list(accumulate(math.prod(shape) for shape in shapes if len(shape) > 1))
    return list(zip([0, *ends], ends, strict=False))


def _deflated(codes: bytes) -> bytes:
    deflate = zlib.compressobj(9, wbits=RAW)
    return deflate.compress(codes) + deflate.flush()


def _inflated(data: bytes, size: int) -> bytes:
    """``data`` inflated to exactly ``size`` bytes; no more than that is ever made. Raises: MalformedMessage."""
    inflate = zlib.decompressobj(wbits=RAW)
    try:
        whole = inflate.decompress(data, size + 1)
    except zlib.error as cause:
        raise MalformedMessage(f"a delta that does not inflate: {cause}") from cause
    if len(whole) != size or not inflate.eof or inflate.unused_data:
        raise MalformedMessage(f"a delta that does not inflate to {size} B")
    return whole


def _parted(body: bytes, shapes: Shapes) -> tuple[bytes, bytes]:
    """All weights of a body, all biases. Raises: MalformedMessage."""
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    at = 0
    for shape in shapes:
        is_bias = len(shape) == 1
        size = math.prod(shape) * (2 if is_bias else 1)
        parts[is_bias].append(body[at : at + size])
        at += size
    if at != len(body):
        raise MalformedMessage(f"a head of {len(body)} B instead of {at}")
    return b"".join(parts[0]), b"".join(parts[1])


def _joined(weights: bytes, biases: bytes, shapes: Shapes) -> bytes:
    """The body of these parts: undoes ``_parted``."""
    body = bytearray()
    places = [0, 0]
    for shape in shapes:
        is_bias = len(shape) == 1
        size = math.prod(shape) * (2 if is_bias else 1)
        body += (biases if is_bias else weights)[places[is_bias] : places[is_bias] + size]
        places[is_bias] += size
    return bytes(body)
