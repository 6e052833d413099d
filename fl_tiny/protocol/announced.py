# SPDX-License-Identifier: Apache-2.0
"""What a gateway says of itself by DNS-SD, and whether an answer says that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fl_tiny.protocol import signed

SERVICE = "_coaps._udp.local."  # RFC 6763; RFC 7252 section 6.2 names the scheme
MARK_BYTES = 8
MOST_MARKS = 6  # in a record, and in a line of the child that looks for gateways


def mark_of(gateway_pk: bytes) -> str:
    """The first bytes of the gateway key's hash, hexadecimal: a device tries a match first and believes none."""
    return signed.digest(gateway_pk)[:MARK_BYTES].hex()


def txt_of(keys: Sequence[bytes]) -> dict[str, str]:
    """The TXT record of a gateway. keys: its public key, then former ones: devices that were off look for those."""
    return {"fl": "1", "gw": ",".join(map(mark_of, keys[:MOST_MARKS]))}


def marks_in(txt: Mapping[bytes, bytes | None]) -> tuple[str, ...]:
    """The marks in the TXT record of an answer; none when it is no gateway's of ours."""
    marks = (txt.get(b"gw") or b"").lower()
    one = rb"[0-9a-f]{%d}" % (2 * MARK_BYTES)
    if txt.get(b"fl") != b"1" or not re.fullmatch(one + rb"(,%s){0,%d}" % (one, MOST_MARKS - 1), marks):
        return ()
    return tuple(marks.decode().split(","))
