# SPDX-License-Identifier: Apache-2.0
"""DTLS records from outside: where one ends, its epoch, whether it is a ClientHello, how many fit a datagram."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

DATAGRAM_BYTES = 1232  # IPv6's minimum MTU of 1,280 less 40 (IPv6) and 8 (UDP)
RECORD_HEADER_BYTES = 13  # RFC 6347 section 4.1


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


def hello_random(datagram: bytes) -> bytes:
    """The 32 random bytes of a whole ClientHello in epoch 0 at the datagram's start; empty when it starts otherwise."""
    hello = (
        len(datagram) >= 59  # record header 13, handshake header 12, version 2, random 32
        and datagram[0] == 22  # content type handshake
        and epoch(datagram) == 0
        and datagram[13] == 1  # client_hello
        and datagram[14:17] == datagram[22:25]  # one fragment holds the whole message, RFC 6347 section 4.2.2
    )
    return datagram[27:59] if hello else b""
