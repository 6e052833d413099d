# SPDX-License-Identifier: Apache-2.0
"""Messages between a process and its child: a JSON header and bytes, each behind its length."""

from __future__ import annotations

import json
import struct
from typing import IO, Any

LENGTH = struct.Struct("<Q")

Header = dict[str, Any]


def send(sink: IO[bytes], header: Header, body: bytes) -> None:
    """One message, on its way when this returns."""
    text = json.dumps(header).encode()
    sink.write(LENGTH.pack(len(text)) + text + LENGTH.pack(len(body)))
    sink.write(body)
    sink.flush()


def receive(source: IO[bytes]) -> tuple[Header, bytes]:
    """One message. Raises: EOFError when the other end is gone."""
    header = json.loads(_exactly(source, LENGTH.unpack(_exactly(source, LENGTH.size))[0]))
    return header, _exactly(source, LENGTH.unpack(_exactly(source, LENGTH.size))[0])


def _exactly(source: IO[bytes], size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data
