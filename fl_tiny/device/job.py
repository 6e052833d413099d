# SPDX-License-Identifier: Apache-2.0
"""What the agent asks of its training child and what the child answers: messages by the rules of protocol/fields.py."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, ClassVar

from fl_tiny.protocol import cbor, wire
from fl_tiny.protocol.consent import MIN_CLASS, MIN_SAMPLES, Floors
from fl_tiny.protocol.fields import Key, blob, number, part, text, uint
from fl_tiny.protocol.release import WHY_BYTES
from fl_tiny.protocol.wire import H256, MAX_CODES, RANGES, Metrics

LENGTH = struct.Struct(">I")
FRAME_LIMIT = 4 * MAX_CODES  # codes, a residual of two bytes each, and a little
BACKGROUND = "--background"  # the word of the child's command line by which it gives way to other programs
FLAG = uint(0, 1)
SHARE = number(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Job:
    """choose: 1 to choose the board's model too.   offer: the round to train for, encoded; absent: none.

    head, body: the signed head to start from and its canonical body.
    trial, manifest: a slot whose model is to be tried, and nothing else done; what was signed of that model.
    last: the youngest sample that sums may be of.   metrics: 0 when the owner keeps to the board how well heads do.
    min_samples, min_class: the owner's floors (protocol/consent.py).
    """

    KIND: ClassVar[int] = 100
    choose: Annotated[int, Key(1, FLAG)]
    epochs: Annotated[int, Key(2, uint(1, 1000))]
    head: Annotated[bytes, Key(3, blob(1, cbor.CONTROL_LIMIT))]
    body: Annotated[bytes, Key(4, blob(1, 2 * MAX_CODES))]
    offer: Annotated[bytes | None, Key(5, blob(1, cbor.CONTROL_LIMIT))] = None
    trial: Annotated[str | None, Key(6, text(1, 1))] = None
    manifest: Annotated[bytes | None, Key(7, blob(1, cbor.CONTROL_LIMIT))] = None
    last: Annotated[int | None, Key(8, uint(0, 2**63 - 1))] = None
    metrics: Annotated[int, Key(9, FLAG)] = 1
    min_samples: Annotated[int, Key(10, uint(1, wire.U16))] = MIN_SAMPLES
    min_class: Annotated[int, Key(11, uint(1, wire.U16))] = MIN_CLASS

    @property
    def floors(self) -> Floors:
        """The owner's floors."""
        return Floors(metrics=bool(self.metrics), min_samples=self.min_samples, min_class=self.min_class)


@dataclass(frozen=True, slots=True)
class Trained:
    """A client update, or its sums, not signed yet. samples: trained on, or summed.   residual: int16, step / 16
    (protocol/update.py).   residual, ranges: absent for sums."""

    KIND: ClassVar[int] = 101
    codes: Annotated[bytes, Key(1, blob(1, MAX_CODES))]
    samples: Annotated[int, Key(3, uint(1, wire.U16))]
    residual: Annotated[bytes | None, Key(2, blob(2, 2 * MAX_CODES))] = None
    ranges: Annotated[tuple[float, ...] | None, Key(4, RANGES)] = None
    metrics: Annotated[Metrics | None, Key(5, part(Metrics))] = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which candidate is best. digest: SHA-256 of model/current.tflite with it; absent: the file in place stays.

    patch: what makes it of the slot's file (device/derived.py).
    fitted: 1 when it was fine-tuned here.   previous, fleet, personal: accuracies on samples that none was trained on.
    judged, groups: how many of those there are, of how many groups.   chosen_on: samples that decided.
    """

    KIND: ClassVar[int] = 102
    kept: Annotated[str, Key(1, text(1, 16))]
    fitted: Annotated[int, Key(2, FLAG)]
    digest: Annotated[bytes | None, Key(3, H256)] = None
    previous: Annotated[float | None, Key(4, SHARE)] = None
    fleet: Annotated[float | None, Key(5, SHARE)] = None
    personal: Annotated[float | None, Key(6, SHARE)] = None
    patch: Annotated[bytes | None, Key(7, blob(1, FRAME_LIMIT))] = None
    judged: Annotated[int, Key(8, uint(0, wire.U16))] = 0
    groups: Annotated[int, Key(9, uint(0, wire.U16))] = 0
    chosen_on: Annotated[int, Key(10, uint(0, wire.U16))] = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The child could not do its job. code: a problem code when it would not; absent: it failed."""

    KIND: ClassVar[int] = 103
    why: Annotated[str, Key(1, text(1, 512))]
    code: Annotated[int | None, Key(2, uint(0, 99))] = None


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of a trial: a problem code, 0 for none, and why.   same: 1 when the samples go on with the model."""

    KIND: ClassVar[int] = 104
    code: Annotated[int, Key(1, uint(0, 99))]
    why: Annotated[str | None, Key(2, text(0, WHY_BYTES))] = None
    same: Annotated[int | None, Key(3, FLAG)] = None


Answer = Trained | Chosen | Failed | Tried


def frame(message: object) -> bytes:
    """A message with its length in front."""
    body = wire.encode(message)
    return LENGTH.pack(len(body)) + body


def parse(body: bytes) -> Answer:
    """What the child said. Raises: MalformedMessage."""
    kind = _kind_of(body)
    if kind == Trained.KIND:
        return wire.decode(Trained, body, limit=FRAME_LIMIT)
    if kind == Chosen.KIND:
        return wire.decode(Chosen, body, limit=FRAME_LIMIT)
    if kind == Tried.KIND:
        return wire.decode(Tried, body)
    return wire.decode(Failed, body)


def _kind_of(body: bytes) -> int:
    """The kind of an encoded message: a map head, key 0, then the kind in one byte behind 0x18."""
    return body[3] if len(body) > 3 and body[1] == 0 and body[2] == 0x18 else -1
