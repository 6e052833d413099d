# SPDX-License-Identifier: Apache-2.0
"""Whom a session belongs to: a PSK identity in its one spelling, as a value and back; what a device may be named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fl_tiny.errors import MalformedMessage
from fl_tiny.protocol.fields import is_shown


class Kind(Enum):
    """What an identity names, and what stands before it."""

    DEVICE = ""
    NEXT = "next:"  # a device, under the PSK that it is to use next
    PAIRING = "pair:"  # a pairing code, for one enrolment
    PEER = "peer:"


NAME_BYTES = 64  # of a device's name
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


def name_fault(name: str) -> str:
    """Why a device may not have this name: an operator reads names, and chooses devices by them. Empty: it may."""
    if not 1 <= len(name.encode("utf-8", "replace")) <= NAME_BYTES:
        return f"it does not have 1 to {NAME_BYTES} bytes"
    if not is_shown(name):
        return "it holds what cannot be seen, or begins or ends with a blank"
    return "it could be the id of a device" if re.fullmatch(r"[0-9A-Fa-f]{32}", name) else ""


def device_name(value: Any, where: str) -> str:
    """A name that a device may have, as ``fields.Read``."""
    if not isinstance(value, str):
        raise MalformedMessage(f"{where} is not a text")
    if fault := name_fault(value):
        raise MalformedMessage(f"{where}: {fault}")
    return value
