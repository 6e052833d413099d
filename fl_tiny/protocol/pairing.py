# SPDX-License-Identifier: Apache-2.0
"""A pairing code as text: a token id, a secret, a check digit, and the gateway's address as a hint."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

from fl_tiny.errors import RemoteError
from fl_tiny.protocol.identity import Identity, Kind
from fl_tiny.protocol.wire import Code

PREFIX = "FL1"
TOKEN_BYTES = 8
SECRET_BYTES = 16
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"  # RFC 4648 base32: no 0, 1, 8
_HINT = "copy the whole code, from FL1: to its end"


@dataclass(frozen=True, slots=True)
class PairingCode:
    """What one device needs to enrol. address: ``host:port`` (IPv6 in brackets) or empty."""

    token: bytes
    secret: bytes
    address: str = ""

    @property
    def identity(self) -> str:
        """The PSK identity of the one enrolment this code is for."""
        return Identity(Kind.PAIRING, self.token).text


def to_text(code: PairingCode) -> str:
    """``FL1:<token>:<secret><check digit>[:<host:port>]``."""
    body = f"{_base32(code.token)}:{_base32(code.secret)}"
    tail = f":{code.address}" if code.address else ""
    return f"{PREFIX}:{body}{_check_digit(body + tail)}{tail}"


def from_text(text: str) -> PairingCode:
    """The code behind ``text``; case and outer white space do not matter. Raises: RemoteError with the likely cause."""
    found = re.fullmatch(r"FL1:([A-Z2-7]{13}):([A-Z2-7]{26})([A-Z2-7])(?::(\S+))?", text.strip(), re.IGNORECASE)
    if not found:
        raise RemoteError("this is not a pairing code", _HINT, Code.PAIRING)
    token, secret, digit = (found[i].upper() for i in (1, 2, 3))
    address = found[4] or ""
    tail = f":{address}" if address else ""
    if _check_digit(f"{token}:{secret}{tail}") != digit:
        raise RemoteError("the pairing code's check digit is wrong", _HINT, Code.PAIRING)
    return PairingCode(_bytes(token, TOKEN_BYTES), _bytes(secret, SECRET_BYTES), address)


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=")


def _bytes(text: str, size: int) -> bytes:
    return base64.b32decode(text + "=" * (-len(text) % 8))[:size]


def _check_digit(body: str) -> str:
    return _ALPHABET[hashlib.sha256(body.lower().encode()).digest()[0] & 31]
