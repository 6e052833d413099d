# SPDX-License-Identifier: Apache-2.0
"""Many updates become one head: an exact weighted integer sum, divided once at the end (FedAvg).

int64 addition has no rounding, so any order, a restart and a replay give the same bits. Updates are added one at a
time: memory does not grow with the number of devices. Source: McMahan et al., AISTATS 2017 (FedAvg).

No device pulls harder than most do: weights and norms are cut to their medians over the round's devices, and steps
follow the median of peaks (docs/adr/0062).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_tiny.errors import RemoteError
from fl_tiny.protocol.strategy import Move, State, Tensors
from fl_tiny.protocol.update import MAX_CODE, HeadBody, Shapes, decode_head, encode_next, per_parameter
from fl_tiny.protocol.wire import Code

Step = Callable[[Tensors, Tensors], Move]

STRIPE = 1 << 15  # parameters added at a time: product and sum stay in the cache of a small core
STEP_TARGET = 96  # the largest code a round should show; a quarter of the range is head room
STEP_FACTOR = 2.0  # the most that one round may move a step, either way


WHOLE = 256  # the factor of an update that is not cut; |127 * 65535 * 256| < 2^31


@dataclass(frozen=True, slots=True)
class Measure:
    """How large one update is. norm: Euclidean length of the change, in real units.   peaks: largest |q|, a tensor."""

    norm: float
    peaks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """What of one update counts. weight: in samples.   factor: of ``WHOLE``, what its codes are multiplied by."""

    weight: int
    factor: int = WHOLE


def measure(codes: bytes, steps: Sequence[float], shapes: Shapes) -> Measure:
    """The measure of an update. codes: int8, one a parameter.   steps: one a tensor.

    Raises: RemoteError with Code.SHAPE when length or range is wrong.
    """
    q = check_codes(codes, sum(math.prod(shape) for shape in shapes))
    peaks, square, start = [], 0.0, 0
    for step, shape in zip(steps, shapes, strict=True):
        part = q[start : start + math.prod(shape)].astype(np.int32)
        start += len(part)
        peaks.append(int(np.abs(part).max(initial=0)))
        square += step * step * float((part.astype(np.int64) ** 2).sum())
    return Measure(math.sqrt(square), tuple(peaks))


def shares(weights: Sequence[int], measures: Sequence[Measure]) -> list[Share]:
    """What counts of each update of a round: no weight above the median weight, no norm above the median norm."""
    if not weights:
        return []
    most, norm = lower_median(weights), lower_median([m.norm for m in measures])
    factors = [WHOLE if m.norm <= norm else math.floor(WHOLE * norm / m.norm) for m in measures]
    return [Share(min(weight, most), factor) for weight, factor in zip(weights, factors, strict=True)]


def median_peaks(measures: Sequence[Measure]) -> tuple[int, ...]:
    """The lower median of devices' peaks, a tensor: one device alone cannot move the next round's steps."""
    return tuple(lower_median(peaks) for peaks in zip(*(m.peaks for m in measures), strict=True))


def lower_median(values: Sequence[Any]) -> Any:
    """The middle value; of two middle values the smaller one, so that one liar among two gains nothing."""
    return sorted(values)[(len(values) - 1) // 2]


class RunningSum:
    """sum(weight * factor * q) in int64, and how much was added; the order of additions does not matter."""

    def __init__(self, shapes: Shapes) -> None:
        parameters = sum(math.prod(shape) for shape in shapes)
        self.total: NDArray[np.int64] = np.zeros(parameters, np.int64)
        self.weight = 0
        self._product = np.empty(min(STRIPE, parameters), np.int32)

    def add(self, codes: bytes, share: Share) -> None:
        """Add one update. codes: int8, one a parameter.   share: its weight is 1..65535.

        Raises: RemoteError with Code.SHAPE, before anything is added.
        """
        q = check_codes(codes, len(self.total))
        scale = np.int32(share.weight * share.factor)
        for at in range(0, len(q), STRIPE):
            part = q[at : at + STRIPE]
            product = self._product[: len(part)]
            np.multiply(part, scale, out=product, dtype=np.int32)
            self.total[at : at + len(part)] += product
        self.weight += share.weight

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean change in codes, divided once. An update that was cut counts no less in the divisor."""
        return np.asarray(self.total / (WHOLE * self.weight), np.float64)


class Direction:
    """Where a round's updates point on the whole: the sum of all changes, each scaled to length 1."""

    def __init__(self, steps: Sequence[float], shapes: Shapes) -> None:
        self._steps = per_parameter(steps, shapes)
        self._total = np.zeros(len(self._steps))

    def add(self, codes: bytes, norm: float) -> None:
        """Add one update. norm: its length."""
        if norm:
            self._total += self._unit(codes, norm)

    def cosine(self, codes: bytes, norm: float) -> float:
        """Between one update that was added and the sum of the others, from -1 to 1; 0 when either is nothing."""
        if not norm:
            return 0.0
        unit = self._unit(codes, norm)
        others = self._total - unit
        return float(unit @ others) / max(float(np.linalg.norm(others)), 1e-12)

    def _unit(self, codes: bytes, norm: float) -> NDArray[np.float64]:
        return np.frombuffer(codes, np.int8) * (self._steps / norm)


LEAST_COMPARED = 4  # devices; among fewer none can stand out
NORMAL = 1.4826  # a normal distribution's standard deviation over its median absolute deviation
LEAST_SPREAD = 0.05  # of cosines: devices that agree closely are not told apart by what little is left


def standing_out(cosines: Sequence[float]) -> list[float | None]:
    """How far each update points away from the others, in robust standard deviations from the median update.

    None each among fewer than four. One round says little of a device whose samples are few or lopsided: the median of
    its last five rounds stayed below 2.3 for honest devices, and was 3.4 to 5.6 with shuffled or turned labels (watch,
    Fashion at Dirichlet 1.0 and 0.3; at 0.1 nobody can be told apart).
    Source of the robust scale: Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993), section 3.3.
    """
    if len(cosines) < LEAST_COMPARED:
        return [None] * len(cosines)
    middle = float(np.median(cosines))
    spread = max(NORMAL * float(np.median(np.abs(np.asarray(cosines) - middle))), LEAST_SPREAD)
    return [(middle - cosine) / spread for cosine in cosines]


@dataclass(frozen=True, slots=True)
class Published:
    """A new head: its body, and what the body's form rounded away, kept for the next version."""

    head: HeadBody
    residual: bytes  # float32, one a parameter
    state: State = field(default_factory=dict)  # what the strategy remembers


def check_codes(codes: bytes, parameters: int) -> NDArray[np.int8]:
    """``codes`` as int8. Raises: RemoteError with Code.SHAPE when length or range is wrong."""
    if len(codes) != parameters:
        raise RemoteError(f"an update of {len(codes)} codes for {parameters} parameters", code=Code.SHAPE)
    q = np.frombuffer(codes, np.int8)
    if int(q.min()) < -MAX_CODE:
        raise RemoteError("an update holds the code -128", code=Code.SHAPE)
    return q


def publish(
    base: HeadBody,
    residual: bytes,
    shapes: Shapes,
    steps: Sequence[float],
    summed: RunningSum,
    step: Step | None = None,
) -> Published:
    """The next head: base + residual + step * mean, in float64.

    residual: float32, what the form of ``base`` had rounded away (empty: nothing).   step: what a strategy makes of
    the mean change; None takes it as it is (FedAvg).
    """
    assert summed.weight > 0, "a round without updates is aborted, not published"
    before = np.concatenate([tensor.astype(np.float64).ravel() for tensor in decode_head(base, shapes)])
    if residual:
        before += np.frombuffer(residual, "<f4")
    change = per_parameter(steps, shapes) * summed.mean
    state: State = {}
    if step is not None:
        move = step(split(before, shapes), split(change, shapes))
        change, state = np.concatenate([np.asarray(each, np.float64).ravel() for each in move.change]), move.state
    flat = before + change
    head = encode_next(base, split(flat, shapes), shapes)
    rounded = np.concatenate([tensor.ravel() for tensor in decode_head(head, shapes)])
    return Published(head, (flat - rounded).astype("<f4").tobytes(), state)


def split(flat: NDArray[np.float64], shapes: Shapes) -> list[NDArray[np.float64]]:
    """One vector as tensors of ``shapes``."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]


def first_steps(parameters: Sequence[NDArray[np.floating[Any]]]) -> tuple[float, ...]:
    """The steps of a fleet's first round: one round may move a parameter by twice its tensor's largest value.

    A bias that is all zero takes the range of its layer's weights.
    """
    steps: list[float] = []
    widest = 1e-3
    for tensor in parameters:
        peak = float(np.abs(tensor).max())
        widest = max(peak, 1e-3) if tensor.ndim == 2 else max(peak, widest)
        steps.append(2 * widest / MAX_CODE)
    return tuple(steps)


def next_steps(steps: Sequence[float], peaks: Sequence[int]) -> tuple[float, ...]:
    """Steps that follow what the last round showed: finer when codes were small, coarser when they were clipped."""
    moved = []
    for step, peak in zip(steps, peaks, strict=True):
        wanted = STEP_FACTOR if peak >= MAX_CODE else peak / STEP_TARGET
        moved.append(min(max(step * min(max(wanted, 1 / STEP_FACTOR), STEP_FACTOR), 1e-9), 1e9))
    return tuple(moved)


def merge_ranges(reported: Sequence[tuple[float, ...]]) -> tuple[float, ...] | None:
    """The outputs' ranges of the fleet: the widest reported, but no wider than twice the median's, so that one
    device cannot spoil the scale of all. reported: lo, hi of each layer, one tuple a device, all equally long."""
    if not reported:
        return None
    bounds = np.asarray(reported, np.float64)
    middle = np.median(bounds, axis=0)
    lo = np.minimum(np.maximum(bounds[:, 0::2].min(axis=0), 2 * middle[0::2]), 0.0)
    hi = np.maximum(np.minimum(bounds[:, 1::2].max(axis=0), 2 * middle[1::2]), 0.0)
    return tuple(float(v) for pair in zip(lo, hi, strict=True) for v in pair)
