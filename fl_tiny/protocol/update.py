# SPDX-License-Identifier: Apache-2.0
"""A head and its change as bytes: the canonical body that goes down, the integer codes that come up.

A weight tensor (rank 2) travels as int8 with one scale, a bias (rank 1) as float16, both little endian and in C order.
A change travels as integer codes: change = q * step (protocol/codes.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import MalformedMessage
from fl_tiny.protocol.codes import INT4_MAX, INT4_STEPS, named, packed
from fl_tiny.protocol.delta import COARSEST
from fl_tiny.protocol.residual import FRACTION
from fl_tiny.protocol.wire import Encoding

Parameters = list[NDArray[np.float32]]
Shapes = Sequence[tuple[int, ...]]

MAX_CODE = 127  # -128 is malformed: the range is symmetric, so that a sum has no drift
FLOAT16_MAX = 65504.0
LEAST_SCALE = 1e-12
ROOM = 1.25  # a scale made for deltas reaches so far beyond the largest weight
NARROW = 64  # the largest code of a tensor whose scale is not too wide
UNSAID = 0.1  # of a change, that a delta may leave to the next


@dataclass(frozen=True, slots=True)
class HeadBody:
    """A head as it is named and sent. scales: one a weight tensor, in canonical order."""

    body: bytes
    scales: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Codes:
    """One device's change. codes: as they travel.   residual: int16, what was not sent, in step / 16."""

    codes: bytes
    residual: bytes


def encode_head(parameters: Sequence[NDArray[np.floating[Any]]], room: float = 1.0) -> HeadBody:
    """The canonical body of a head. parameters: weights (out, in) and biases (out,), canonical order, real units.

    room: how far beyond the largest weight a scale reaches.
    """
    pieces: list[bytes] = []
    scales: list[float] = []
    for tensor in parameters:
        if tensor.ndim == 1:
            pieces.append(np.clip(tensor, -FLOAT16_MAX, FLOAT16_MAX).astype("<f2").tobytes())
            continue
        scale = float(np.float32(max(room * float(np.abs(tensor).max()) / MAX_CODE, LEAST_SCALE)))
        pieces.append(np.clip(np.rint(tensor / scale), -MAX_CODE, MAX_CODE).astype(np.int8).tobytes())
        scales.append(scale)
    return HeadBody(b"".join(pieces), tuple(scales))


def encode_next(base: HeadBody, parameters: Sequence[NDArray[np.floating[Any]]], shapes: Shapes) -> HeadBody:
    """The canonical body of the head behind ``base``, so that a delta leads to it wherever one can.

    Weights keep the scales of ``base`` and change by at most 7 times a number of codes, one number a tensor, which a
    delta of int4 holds; it is 1 unless changes are larger, as those of first rounds are. What that leaves unsaid is for
    the caller's residual. Where much is cut off, or a scale is too narrow or too wide, the body is made anew, with room
    for weights to grow.
    """
    scales, at, pieces = iter(base.scales), 0, []
    for tensor, shape in zip(parameters, shapes, strict=True):
        if tensor.ndim == 1:
            pieces.append(np.clip(tensor, -FLOAT16_MAX, FLOAT16_MAX).astype("<f2").tobytes())
            at += 2 * math.prod(shape)
            continue
        old = np.frombuffer(base.body, np.int8, math.prod(shape), at).astype(np.int64)
        at += old.size
        wanted = np.rint(np.asarray(tensor, np.float64).ravel() / next(scales))
        said = _said(old, wanted) if NARROW <= np.abs(wanted).max() <= ROOM * MAX_CODE else None
        if said is None:
            return encode_head(parameters, ROOM)
        pieces.append((old + said).astype(np.int8).tobytes())
    return HeadBody(b"".join(pieces), base.scales)


def _said(old: NDArray[np.int64], wanted: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """What a delta says of a tensor's change in codes; None where it would cut off more than UNSAID of it."""
    change, least, most = wanted - old, -MAX_CODE - old, MAX_CODE - old
    for coarse in range(1, COARSEST + 1):
        limit = INT4_MAX * coarse
        kept = np.clip(change, np.maximum(-limit, least), np.minimum(limit, most))
        if np.abs(change - kept).sum() <= UNSAID * np.abs(change).sum():
            low, high = -(-least // coarse), most // coarse  # a multiple must stay a code
            said: NDArray[np.int64] = coarse * np.clip(np.rint(kept / coarse).astype(np.int64), low, high)
            return said
    return None


def decode_head(head: HeadBody, shapes: Shapes) -> Parameters:
    """The parameters of a canonical body, float32, canonical order. Raises: MalformedMessage."""
    weights = sum(len(shape) == 2 for shape in shapes)
    size = sum(math.prod(shape) * (1 if len(shape) == 2 else 2) for shape in shapes)
    if len(head.body) != size or len(head.scales) != weights:
        raise MalformedMessage(f"a head of {len(head.body)} B and {len(head.scales)} scales does not fit its manifest")
    scales = iter(head.scales)
    parameters: Parameters = []
    at = 0
    for shape in shapes:
        count = math.prod(shape)
        if len(shape) == 2:
            codes = np.frombuffer(head.body, np.int8, count, at)
            values = codes.astype(np.float32) * np.float32(next(scales))
            at += count
        else:
            values = np.frombuffer(head.body, "<f2", count, at).astype(np.float32)
            at += 2 * count
        if not np.isfinite(values).all():
            raise MalformedMessage("a head holds a value that is not finite")
        parameters.append(values.reshape(shape))
    return parameters


def flatten(parameters: Sequence[NDArray[np.floating[Any]]]) -> NDArray[np.float64]:
    """All parameters in one vector, canonical order."""
    return np.concatenate([np.asarray(tensor, np.float64).ravel() for tensor in parameters])


def per_parameter(steps: Sequence[float], shapes: Shapes) -> NDArray[np.float64]:
    """One step a parameter from one step a tensor. Raises: MalformedMessage when the counts differ."""
    if len(steps) != len(shapes):
        raise MalformedMessage(f"{len(steps)} steps for {len(shapes)} tensors")
    return np.repeat(np.asarray(steps, np.float64), [math.prod(shape) for shape in shapes])


def encode_change(
    change: NDArray[np.float64],
    steps: NDArray[np.float64],
    rng: np.random.Generator,
    encoding: int = Encoding.INT8,
    kept: int = 1,
) -> Codes:
    """``change`` as integers, by stochastic rounding; what rounding, clipping and top-k dropped is the residual.

    change: (parameters,), real units, the last residual already added.   steps: (parameters,), > 0.
    kept: how many parameters top-k names.

    With q the codes in steps of int8, q * 16 + residual = change / step * 16 to the nearest integer, exactly,
    unless a change is beyond what both can hold: 254 steps, 239 with int4, 127 where top-k does not name it.
    """
    unit = INT4_STEPS if encoding == Encoding.INT4 else 1
    most = INT4_MAX if encoding == Encoding.INT4 else MAX_CODE
    bound = (unit * most + MAX_CODE) * FRACTION
    fine = np.clip(np.rint(change / steps * FRACTION), -bound, bound).astype(np.int32)
    dither = rng.integers(0, unit * FRACTION, size=fine.shape, dtype=np.int32)
    codes = np.clip((fine + dither) // (unit * FRACTION), -most, most)
    if encoding == Encoding.TOPK:
        dropped = np.argsort(-np.abs(change), kind="stable")[kept:]
        codes[dropped] = 0
        fine[dropped] = np.clip(fine[dropped], -MAX_CODE * FRACTION, MAX_CODE * FRACTION)
    residual = (fine - codes * (unit * FRACTION)).astype("<i2").tobytes()
    if encoding == Encoding.TOPK:
        places = np.flatnonzero(codes)
        return Codes(named(codes[places].tolist(), places.tolist()), residual)
    plain = codes.astype(np.int8).tobytes()
    return Codes(packed(plain) if encoding == Encoding.INT4 else plain, residual)


def decode_residual(residual: bytes, steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """A stored residual in real units. steps: those of the round it is from."""
    return np.frombuffer(residual, "<i2").astype(np.float64) * steps / FRACTION
