# SPDX-License-Identifier: Apache-2.0
"""What a gateway says of itself by DNS-SD, and whether an answer says that."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fl_tiny.protocol import signed

SERVICE = "_coaps._udp.local."  # RFC 6763; RFC 7252 section 6.2 names the scheme
MARK_BYTES = 8


def mark_of(gateway_pk: bytes) -> str:
    """The first bytes of the gateway key's hash, hexadecimal: a device tries a match first and believes none."""
    return signed.digest(gateway_pk)[:MARK_BYTES].hex()


def txt_of(gateway_pk: bytes) -> dict[str, str]:
    """The TXT record of a gateway."""
    return {"fl": "1", "gw": mark_of(gateway_pk)}


def mark_in(txt: Mapping[bytes, bytes | None]) -> str | None:
    """The mark in the TXT record of an answer; None when it is no gateway's of ours."""
    mark = (txt.get(b"gw") or b"").lower()
    if txt.get(b"fl") != b"1" or not re.fullmatch(rb"[0-9a-f]{%d}" % (2 * MARK_BYTES), mark):
        return None
    return mark.decode()
