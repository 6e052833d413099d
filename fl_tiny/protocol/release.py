# SPDX-License-Identifier: Apache-2.0
"""Releases of a board's whole system: which one runs, which of two is newer, what a bundle says that it brings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from fl_tiny.errors import DataError
from fl_tiny.protocol.fields import Key, blob, sentence, shown_text, uint

RELEASE_BYTES = 32
NAME_BYTES = 64
WHY_BYTES = 128  # of a sentence that says why something was refused
BUNDLE_LIMIT = 1 << 30  # bytes
PIECE = 32_768  # bytes of a bundle in one answer, whole but for the last; its blocks go through a window
TRAILER = 8  # bytes at a bundle's end: the length of the signed manifest before them, big endian
MANIFEST_LIMIT = 65_536  # bytes of a signed manifest; RAUC's own limit is 64 MiB, ours have 1 to 3 KiB
_RELEASE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,5}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*", re.ASCII)
_SEQUENCE, _OID, _OCTETS, _EXPLICIT = 0x30, 0x06, 0x04, 0xA0


@dataclass(frozen=True, slots=True)
class Release:
    """A system: the boards it is for (RAUC's ``compatible``), and its number, such as 2026.11.24."""

    board: str
    number: str

    def __post_init__(self) -> None:
        if len(self.board) > NAME_BYTES or not _NAME.fullmatch(self.board):
            raise DataError(f"{self.board!r} is no name of a board", hint="letters, digits, . _ + -")
        if len(self.number) > RELEASE_BYTES or not _RELEASE.fullmatch(self.number):
            raise DataError(f"{self.number!r} is no number of a release", hint="digits and dots, such as 2026.11.24")

    @property
    def rank(self) -> tuple[int, ...]:
        """A release of higher rank is newer; zeros at the end mean nothing."""
        return rank_of(self.number)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A release that a device should fetch: SHA-256 and bytes of the file, the release's number."""

    digest: Annotated[bytes, Key(1, blob(32))]
    size: Annotated[int, Key(2, uint(1, BUNDLE_LIMIT))]
    release: Annotated[str, Key(3, shown_text(1, RELEASE_BYTES))]


@dataclass(frozen=True, slots=True)
class BundleRefusal:
    """Why a device did not take a bundle, or left its release: 8 bytes of the digest, a problem code, a sentence."""

    name: Annotated[bytes, Key(1, blob(8))]
    code: Annotated[int, Key(2, uint(0, 99))]
    why: Annotated[str, Key(3, sentence(0, WHY_BYTES))]


def rank_of(number: str) -> tuple[int, ...]:
    """As ``Release.rank``, of a release's number that has been checked."""
    parts = [int(part) for part in number.split(".")]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def read_release(text: str) -> Release:
    """A release from the lines COMPATIBLE= and RELEASE= of a file. Raises: DataError."""
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    lacking = [key for key in ("COMPATIBLE", "RELEASE") if key not in found]
    if lacking:
        raise DataError(f"a release without {' and '.join(lacking)}")
    return Release(found["COMPATIBLE"].strip().strip('"'), found["RELEASE"].strip().strip('"'))


def manifest_size(trailer: bytes) -> int:
    """How long the signed manifest is that stands before a bundle's last 8 bytes. Raises: DataError."""
    size = int.from_bytes(trailer, "big")
    if len(trailer) != TRAILER or not 1 <= size <= MANIFEST_LIMIT:
        raise DataError("this is no RAUC bundle", hint="rauc bundle makes one, with [bundle] format=verity")
    return size


def read_manifest(signed: bytes) -> Release:
    """What the manifest in a verity bundle's CMS says. **No signature is checked**: RAUC does that on the board.

    Raises: DataError. Source: RFC 5652 sections 3, 5.1, 5.2; RAUC's manual, "Bundle Formats".
    """
    try:
        content = _content(signed).decode("utf-8")
    except (IndexError, UnicodeDecodeError) as cause:
        raise DataError("this bundle's signature holds no manifest", "format=verity is wanted") from cause
    found = re.search(r"^\[update\]\n((?:[^\[\n][^\n]*\n|\n)*)", content, re.MULTILINE)
    if found is None:
        raise DataError("a bundle whose manifest has no [update]")
    lines = dict(line.split("=", 1) for line in found.group(1).splitlines() if "=" in line)
    return Release(lines.get("compatible", "").strip(), lines.get("version", "").strip())


def _content(signed: bytes) -> bytes:
    """The encapsulated content of a CMS SignedData in DER. Raises: IndexError when it is something else."""
    inner = _within(_within(signed, _SEQUENCE), _OID, _EXPLICIT)  # ContentInfo
    data = _within(_within(inner, _SEQUENCE), 0x02, 0x31, _SEQUENCE)  # version, digest algorithms, content
    return _within(_within(data, _OID, _EXPLICIT), _OCTETS)


def _within(data: bytes, *tags: int) -> bytes:
    """What the last of the elements at ``data``'s begin holds, when they have these tags."""
    at, found = 0, b""
    for tag in tags:
        if data[at] != tag:
            raise IndexError(tag)
        length, at = data[at + 1], at + 2
        if length >= 0x80:
            count = length & 0x7F
            if not 1 <= count <= 3:
                raise IndexError(length)
            length, at = int.from_bytes(data[at : at + count], "big"), at + count
        if at + length > len(data):
            raise IndexError(length)
        found, at = data[at : at + length], at + length
    return found
