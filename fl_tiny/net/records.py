# SPDX-License-Identifier: Apache-2.0
"""DTLS records from outside: where one ends, its epoch, a ClientHello read, how many fit a datagram."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

DATAGRAM_BYTES = 1232  # IPv6's minimum MTU of 1,280 less 40 (IPv6) and 8 (UDP)
HANDSHAKE = b"\x16"  # the first byte of a record
RECORD_HEADER_BYTES = 13  # RFC 6347 section 4.1
_HANDSHAKE_HEADER_BYTES = 12
_HELLO_AT = RECORD_HEADER_BYTES + _HANDSHAKE_HEADER_BYTES
_LEAST_HELLO_BYTES = 42  # version 2, random 32, no session id 1, no cookie 1, one suite 4, one method 2


def records(stream: bytes) -> Iterator[bytes]:
    """The DTLS records that ``stream`` holds one after another; a truncated rest is left out."""
    at = 0
    while at + RECORD_HEADER_BYTES <= len(stream):
        end = at + RECORD_HEADER_BYTES + int.from_bytes(stream[at + 11 : at + 13], "big")
        if end > len(stream):
            return
        yield stream[at:end]
        at = end


def coalesced(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Datagrams of at most DATAGRAM_BYTES made of whole records in order; a longer record travels alone."""
    datagram = b""
    for record in parts:
        if datagram and len(datagram) + len(record) > DATAGRAM_BYTES:
            yield datagram
            datagram = b""
        datagram += record
    if datagram:
        yield datagram


def epoch(record: bytes) -> int:
    """The epoch of a record: 0 in the clear, 1 and above protected."""
    return int.from_bytes(record[3:5], "big")


@dataclass(frozen=True, slots=True)
class Hello:
    """A ClientHello. bound: what the client must repeat when it returns a cookie, RFC 6347 section 4.2.1."""

    random: bytes
    cookie: bytes
    bound: bytes
    sequence: bytes  # number of its record


def read_hello(datagram: bytes) -> Hello | None:
    """The whole ClientHello in epoch 0 that a datagram is; None when it is anything else.

    Source: RFC 6347 sections 4.1, 4.2.1 and 4.2.2, RFC 5246 section 7.4.1.2; extensions are read by OpenSSL alone.
    """
    body = datagram[_HELLO_AT:]
    size = len(body).to_bytes(3, "big")
    if (
        len(body) < _LEAST_HELLO_BYTES
        or datagram[:2] != HANDSHAKE + b"\xfe"  # of DTLS
        or datagram[3:5] != bytes(2)
        or datagram[11:13] != (len(body) + _HANDSHAKE_HEADER_BYTES).to_bytes(2, "big")
        or datagram[13:17] != b"\x01" + size  # client_hello
        or datagram[19:25] != bytes(3) + size  # in one fragment
        or body[0] != 0xFE
    ):
        return None
    session_end = 35 + body[34]
    cookie_end = session_end + 1 + body[session_end] if session_end < len(body) else len(body)
    suites_end = cookie_end + 2 + int.from_bytes(body[cookie_end : cookie_end + 2], "big")
    methods_end = suites_end + 1 + body[suites_end] if suites_end < len(body) else len(body) + 1
    extensions = int.from_bytes(body[methods_end : methods_end + 2], "big")
    if (
        body[34] > 32
        or suites_end - cookie_end < 4
        or suites_end & 1 != cookie_end & 1
        or methods_end - suites_end < 2
        or methods_end > len(body)
        or (methods_end != len(body) and methods_end + 2 + extensions != len(body))
    ):
        return None
    bound = body[:session_end] + body[cookie_end:methods_end]
    return Hello(body[2:34], body[session_end + 1 : cookie_end], bound, datagram[5:11])


def hello_verify_request(hello: Hello, cookie: bytes) -> bytes:
    """The datagram that answers a ClientHello with a cookie, in the version that RFC 6347 section 4.2.1 asks for."""
    body = b"\xfe\xff" + bytes([len(cookie)]) + cookie
    size = len(body).to_bytes(3, "big")
    message = b"\x03" + size + bytes(5) + size + body
    return b"\x16\xfe\xff\0\0" + hello.sequence + len(message).to_bytes(2, "big") + message
