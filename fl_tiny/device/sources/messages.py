# SPDX-License-Identifier: Apache-2.0
"""What programs and the service say to each other over its socket: CBOR maps, each behind its length.

docs/sources.md has the format for people who write a client.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fl_tiny.errors import MalformedMessage
from fl_tiny.protocol import cbor
from fl_tiny.protocol.fields import Key, blob, choice, from_map, text, to_map, uint

LENGTH = struct.Struct(">I")
LIMIT = 8 << 20  # bytes of a message: a sample of 800 x 800 x 3 floats
DTYPES = ("int8", "uint8", "int16", "float32")
SUFFIXES = ("png", "jpg", "bmp", "webp", "wav", "flac", "ogg", "mp3", "npy")


def _label(value: Any, where: str) -> int | str:
    label: int | str = text(1, 192)(value, where) if isinstance(value, str) else uint(0, 65_535)(value, where)
    return label


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample as the model's input takes it. label: to be learnt; None: to be predicted."""

    KIND: ClassVar[int] = 1
    dtype: Annotated[str, Key(1, choice(*DTYPES))]
    data: Annotated[bytes, Key(2, blob(1, LIMIT))]
    label: Annotated[int | str | None, Key(3, _label)] = None


@dataclass(frozen=True, slots=True)
class File:
    """A file's bytes, which the fleet's preprocessing makes a sample of."""

    KIND: ClassVar[int] = 2
    suffix: Annotated[str, Key(1, choice(*SUFFIXES))]
    data: Annotated[bytes, Key(2, blob(1, LIMIT))]
    label: Annotated[int | str | None, Key(3, _label)] = None


@dataclass(frozen=True, slots=True)
class Correct:
    """The right label of a sample that was predicted."""

    KIND: ClassVar[int] = 3
    id: Annotated[bytes, Key(1, blob(8))]
    label: Annotated[int | str, Key(3, _label)]


@dataclass(frozen=True, slots=True)
class Label:
    """What the camera sees from now on; None: nobody knows, so its frames are predicted."""

    KIND: ClassVar[int] = 4
    label: Annotated[int | str | None, Key(3, _label)] = None


@dataclass(frozen=True, slots=True)
class Last:
    """What was predicted last of the camera's frames?"""

    KIND: ClassVar[int] = 5


Request = Sample | File | Correct | Label | Last
REQUESTS: dict[int, type[Any]] = {kind.KIND: kind for kind in (Sample, File, Correct, Label, Last)}
DONE, REFUSED, LATER = 0, 1, 2  # an answer's state: done; not as it is; the same may work later


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. added: samples stored.   known: those that were stored already."""

    state: Annotated[int, Key(0, uint(0, 2))]
    added: Annotated[int | None, Key(1, uint(0, 65_535))] = None
    id: Annotated[bytes | None, Key(2, blob(8))] = None
    number: Annotated[int | None, Key(3, uint(0, 65_535))] = None
    name: Annotated[str | None, Key(4, text(1, 192))] = None
    why: Annotated[str | None, Key(5, text(0, 1024))] = None
    known: Annotated[int | None, Key(6, uint(0, 65_535))] = None


def request_of(data: bytes) -> Request:
    """The request in a message. Raises: MalformedMessage."""
    body = cbor.decode(data, limit=LIMIT)
    kind = body.get(0) if isinstance(body, dict) else None
    if not isinstance(body, dict) or isinstance(kind, bool) or not isinstance(kind, int) or kind not in REQUESTS:
        raise MalformedMessage(f"key 0 is none of {', '.join(map(str, REQUESTS))}")
    cls = REQUESTS[body.pop(0)]
    made: Request = from_map(cls, body, cls.__name__.lower())
    return made


def framed(message: Request | Answer) -> bytes:
    """A message as it goes over the socket."""
    head = {} if isinstance(message, Answer) else {0: message.KIND}
    data = cbor.encode({**head, **to_map(message)})
    return LENGTH.pack(len(data)) + data


def answer_of(data: bytes) -> Answer:
    """The answer in a message. Raises: MalformedMessage."""
    return from_map(Answer, cbor.decode(data), "answer")
