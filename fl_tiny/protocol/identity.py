# SPDX-License-Identifier: Apache-2.0
"""Whom a DTLS session belongs to: a PSK identity, in the one spelling that it has, as a value and back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What an identity names, and what stands before it."""

    DEVICE = ""
    NEXT = "next:"  # a device, under the PSK that it is to use next
    PAIRING = "pair:"  # a pairing code, for one enrolment
    PEER = "peer:"


ID_BYTES = {Kind.DEVICE: 16, Kind.NEXT: 16, Kind.PAIRING: 8}


@dataclass(frozen=True, slots=True)
class Identity:
    """id: of a device, or the token of a code; of a peer its name as UTF-8."""

    kind: Kind
    id: bytes

    @property
    def text(self) -> str:
        """As a client says it: hexadecimal in small letters, without blanks."""
        return self.kind.value + (self.id.decode() if self.kind is Kind.PEER else self.id.hex())

    @property
    def is_device(self) -> bool:
        """Is it an enrolled device's, by its present PSK or by the next one?"""
        return self.kind in (Kind.DEVICE, Kind.NEXT)


def identity_of(text: str) -> Identity | None:
    """What an identity names; None unless it is spelled as ``Identity.text`` spells it."""
    kind = next((kind for kind in (Kind.NEXT, Kind.PAIRING, Kind.PEER) if text.startswith(kind.value)), Kind.DEVICE)
    name = text[len(kind.value) :]
    try:
        found = Identity(kind, name.encode() if kind is Kind.PEER else bytes.fromhex(name))
    except ValueError:
        return None
    sized = len(found.id) == ID_BYTES[kind] if kind in ID_BYTES else bool(found.id)
    return found if sized and found.text == text else None
