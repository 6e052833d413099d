# SPDX-License-Identifier: Apache-2.0
"""CoAP messages made safe for aiocoap: bytes in, the same message without what we do not know out, or a refusal.

aiocoap 0.4.17 keeps every option number and content format it ever met in a table that never shrinks, takes token
lengths that RFC 7252 reserves, and leaves unknown critical options to the application. All of that ends here.
"""

from __future__ import annotations

from collections.abc import Iterator

CONTENT_FORMAT, ACCEPT = 12, 17
KNOWN: dict[int, int] = {  # option number -> longest value; RFC 7252 section 5.10, RFC 7641, RFC 7959, RFC 7967
    3: 255,  # Uri-Host
    4: 8,  # ETag
    6: 3,  # Observe
    7: 2,  # Uri-Port
    8: 255,  # Location-Path
    11: 255,  # Uri-Path
    12: 2,  # Content-Format
    14: 4,  # Max-Age
    15: 255,  # Uri-Query
    17: 2,  # Accept
    20: 255,  # Location-Query
    23: 3,  # Block2
    27: 3,  # Block1
    28: 4,  # Size2
    60: 4,  # Size1
    258: 1,  # No-Response
}
FORMATS = 1024  # content formats from here on are read as unknown; the registry's lie below but for two of LwM2M
MOST_OPTIONS = 64
EMPTY_MESSAGE_BYTES = 4
BAD_OPTION = 0x82  # 4.02


def sift(message: bytes) -> tuple[bytes, bytes]:
    """The message without unknown elective options, and an answer to send at once; either may be empty.

    Both are empty for what is no CoAP message, and for a critical option that is unknown where no answer may be given.
    Source: RFC 7252 sections 3 and 5.4.
    """
    token_bytes = message[0] & 15 if message else 0
    head = EMPTY_MESSAGE_BYTES + token_bytes
    if len(message) < head or message[0] >> 6 != 1 or token_bytes > 8:
        return b"", b""
    if message[1] == 0:  # an empty message is a header and nothing else, section 4.1
        return (message, b"") if len(message) == EMPTY_MESSAGE_BYTES else (b"", b"")
    try:
        options, rest = _options(message, head)
    except ValueError:
        return b"", b""
    kept = [(number, value) for number, value in options if _is_known(number, value)]
    if any(number & 1 and not _is_known(number, value) for number, value in options):
        return b"", _refusal(message)
    if len(kept) == len(options):
        return message, b""
    return message[:head] + b"".join(_encoded(kept)) + message[rest:], b""


def is_request(message: bytes) -> bool:
    """Whether a sifted message asks for something: method codes are 0.01 to 0.31."""
    return 1 <= message[1] < 32


def is_confirmable(message: bytes) -> bool:
    """Whether the sender repeats a sifted message until it is acknowledged."""
    return message[0] >> 4 & 3 == 0


def message_id(message: bytes) -> int:
    """The message ID of a sifted message."""
    return int.from_bytes(message[2:4], "big")


def _is_known(number: int, value: bytes) -> bool:
    if len(value) > KNOWN.get(number, -1):
        return False
    return number not in (CONTENT_FORMAT, ACCEPT) or int.from_bytes(value, "big") < FORMATS


def _refusal(message: bytes) -> bytes:
    """4.02 to a confirmable request, piggybacked; nothing to anything else."""
    if not (is_confirmable(message) and is_request(message)):
        return b""
    token_bytes = message[0] & 15
    acknowledgement = bytes([0x60 | token_bytes, BAD_OPTION])
    return acknowledgement + message[2 : EMPTY_MESSAGE_BYTES + token_bytes]


def _options(message: bytes, at: int) -> tuple[list[tuple[int, bytes]], int]:
    """The options, and where the payload marker or the end is. Raises: ValueError."""
    options: list[tuple[int, bytes]] = []
    number = 0
    while at < len(message) and message[at] != 0xFF:
        delta, length = message[at] >> 4, message[at] & 15
        delta, at = _extended(message, at + 1, delta)
        length, at = _extended(message, at, length)
        number += delta
        if at + length > len(message) or len(options) == MOST_OPTIONS:
            raise ValueError("option beyond the end, or too many")
        options.append((number, message[at : at + length]))
        at += length
    if at == len(message) - 1:
        raise ValueError("a payload marker without a payload")
    return options, at


def _extended(message: bytes, at: int, nibble: int) -> tuple[int, int]:
    extra = {13: 1, 14: 2}.get(nibble, 0)
    if nibble == 15 or at + extra > len(message):
        raise ValueError("reserved or truncated option header")
    if not extra:
        return nibble, at
    return int.from_bytes(message[at : at + extra], "big") + (13 if extra == 1 else 269), at + extra


def _encoded(options: list[tuple[int, bytes]]) -> Iterator[bytes]:
    last = 0
    for number, value in options:
        (delta, delta_more), (length, length_more) = _split(number - last), _split(len(value))
        yield bytes([delta << 4 | length]) + delta_more + length_more + value
        last = number


def _split(value: int) -> tuple[int, bytes]:
    if value < 13:
        return value, b""
    if value < 269:
        return 13, bytes([value - 13])
    return 14, (value - 269).to_bytes(2, "big")
