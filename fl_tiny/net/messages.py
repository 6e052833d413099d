# SPDX-License-Identifier: Apache-2.0
"""Requests and responses as our own data, to and from aiocoap's messages; a long body is cut to the block asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fl_tiny.net.transport import Remote, Timing, message

BLOCK_BYTES = 1024
PAYLOAD_BYTES = 1152 - 64  # of one message: the largest CoAP message less header, token and options
METHODS = ("GET", "POST", "PUT", "DELETE", "FETCH", "PATCH", "IPATCH")  # codes 0.01 to 0.07, RFC 7252 and RFC 8132
_RESERVED_EXPONENT = 7  # RFC 7959 section 2.2
_ETAG_BYTES = 8


class SessionHandle(Protocol):
    """What a handler may do with the session its request came over."""

    identity: str

    def exporter(self, label: bytes, length: int) -> bytes:
        """Keying material that only the two ends of the session have. Source: RFC 5705."""

    def close(self) -> None:
        """End the session, once the request in hand is answered."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a server's handler gets."""

    method: str  # one of METHODS
    path: tuple[str, ...]
    payload: bytes
    content_format: int | None
    block2: tuple[int, int] | None  # number and size in bytes of the block asked for
    etag: bytes | None  # the first one
    identity: str  # what the DTLS session was authenticated as
    session: SessionHandle


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. A server may return a payload of any length: without ``block2`` it is cut to the block asked for."""

    code: str  # dotted, as in RFC 7252: "2.05"
    payload: bytes = b""
    content_format: int | None = None
    etag: bytes | None = None
    max_age: int | None = None  # seconds
    block2: tuple[int, bool, int] | None = None  # number, more follow, size in bytes
    size2: int | None = None  # bytes of the whole
    block1: tuple[int, bool, int] | None = None  # of the request that this answers


Handler = Callable[[Request], Awaitable[Response]]


def refusal(received: Any, payload_bytes: int, assembled: tuple[str, ...] | None) -> Response | None:
    """Why a request never reaches the handler, if it does not. assembled: the path that takes bodies in blocks."""
    block1, block2 = received.opt.block1, received.opt.block2
    if len(received.payload) > payload_bytes or (
        block1 is not None and (block1.more or block1.block_number) and tuple(received.opt.uri_path) != assembled
    ):
        return Response("4.13", size2=None)
    if any(block is not None and block.size_exponent == _RESERVED_EXPONENT for block in (block1, block2)):
        return Response("4.00")
    if not 1 <= received.code <= len(METHODS):
        return Response("4.05")
    return None


def to_request(received: Any, session: SessionHandle) -> Request:
    """A request of aiocoap as ours."""
    opt = received.opt
    return Request(
        method=METHODS[received.code - 1],
        path=tuple(opt.uri_path),
        payload=received.payload,
        content_format=None if opt.content_format is None else int(opt.content_format),
        block2=None if opt.block2 is None else (opt.block2.block_number, opt.block2.size),
        etag=next(iter(opt.etags), None),
        identity=session.identity,
        session=session,
    )


def from_request(
    method: str,
    path: tuple[str, ...],
    payload: bytes,
    *,
    content_format: int | None,
    etag: bytes | None,
    block2: tuple[int, int] | None,
    timing: Timing,
    remote: Remote,
) -> Any:
    """A request of ours as aiocoap's, to one session."""
    assert len(payload) <= PAYLOAD_BYTES, f"a request with {len(payload)} B fits no datagram"
    block = None if block2 is None else (block2[0], False, _exponent(block2[1]))
    return message(
        METHODS.index(method) + 1,
        payload,
        timing,
        remote,
        uri_path=path,
        content_format=content_format,
        etags=None if etag is None else (etag,),
        block2=block,
    )


def to_response(received: Any) -> Response:
    """A response of aiocoap as ours."""
    opt = received.opt
    block2 = opt.block2
    return Response(
        code=received.code.dotted,
        payload=received.payload,
        content_format=None if opt.content_format is None else int(opt.content_format),
        etag=opt.etag,
        max_age=opt.max_age,
        block2=None if block2 is None else (block2.block_number, bool(block2.more), block2.size),
        size2=opt.size2,
    )


def from_response(response: Response, timing: Timing) -> Any:
    """A response of ours as aiocoap's, or 5.00 as an assertion when its code is none."""
    kind, dot, detail = response.code.partition(".")
    assert dot and kind in "245" and len(detail) == 2 and int(detail) < 32, f"{response.code} is no response code"
    assert len(response.payload) <= PAYLOAD_BYTES, f"{response.code} with {len(response.payload)} B fits no datagram"
    block1, block2 = response.block1, response.block2
    return message(
        int(kind) << 5 | int(detail),
        response.payload,
        timing,
        content_format=response.content_format,
        etag=response.etag,
        max_age=response.max_age,
        block2=None if block2 is None else (block2[0], block2[1], _exponent(block2[2])),
        size2=response.size2,
        block1=None if block1 is None else (block1[0], block1[1], _exponent(block1[2])),
    )


def cut(response: Response, asked: tuple[int, int] | None) -> Response:
    """The block of a whole response that was asked for; the response itself when it is short or was cut already.

    Blocks are cut anew for each request, so they may be asked for in any order; the ETag shows that they fit together.
    Source: RFC 7959 section 2.4.
    """
    number, size = asked or (0, BLOCK_BYTES)
    whole = response.payload
    if response.block2 is not None or response.code != "2.05" or (len(whole) <= size and number == 0):
        return response
    if number * size >= len(whole):
        return Response("4.00")
    return replace(
        response,
        payload=whole[number * size : (number + 1) * size],
        etag=response.etag or hashlib.sha256(whole).digest()[:_ETAG_BYTES],
        block2=(number, (number + 1) * size < len(whole), size),
        size2=len(whole) if number == 0 else None,
    )


def block1_of(received: Any) -> tuple[int, bool, int] | None:
    """Number, whether more follow, and size of the block of a longer body that a request carries, if it does."""
    block = received.opt.block1
    if block is None or not (block.more or block.block_number):
        return None
    return block.block_number, bool(block.more), block.size


def _exponent(size_bytes: int) -> int:
    exponent = size_bytes.bit_length() - 5
    assert 0 <= exponent < _RESERVED_EXPONENT and 1 << (exponent + 4) == size_bytes, f"{size_bytes} is no block size"
    return exponent
