# SPDX-License-Identifier: Apache-2.0
"""A pairing code or a password in a file, such as a card's fl-tiny.toml: read, and erased once it is of no more use."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from fl_tiny.errors import DataError, EnvironmentFault
from fl_tiny.files import read_bounded, write_atomic

log = logging.getLogger(__name__)

LIMIT = 65_536  # bytes, as of a file of settings
_LINE = re.compile(rb"^[ \t]*pairing_code[ \t]*=.*(?:\r?\n|\Z)", re.MULTILINE)
# A key and its value on one line, as a person writes it; nothing but a comment behind it.
_VALUE = rb"""^[ \t]*(?:%s)[ \t]*=[ \t]*("(?:[^"\\\r\n]|\\.)*"|'[^'\r\n]*')(?=[ \t]*(?:#.*)?\r?$)"""
_CODE = re.compile(rb"FL1:[A-Za-z2-7:]+[^\s\"']*")


def read_code(path: Path) -> str:
    """The code in a file. Raises: DataError."""
    try:
        found = read_bounded(path, LIMIT, DataError).decode()
    except UnicodeDecodeError as cause:
        raise DataError(f"cannot read the code from {path}: {cause}") from cause
    start = found.find("FL1:")
    return found[start:].split('"')[0].split("\n")[0] if start >= 0 else found


def erase_code(path: Path) -> bool:
    """Rewrite a file without the code in it, on the disk when this returns; False when there is none, or it stays.

    That the file cannot be written is no fault of the device: the log says so. FAT keeps old sectors: this is
    tidiness; a code is bound to one key, and expires.
    """
    try:
        data = read_bounded(path, LIMIT, DataError)
        rest = _CODE.sub(b"", _LINE.sub(b"", data))
        if rest == data:
            return False
        write_atomic(path, rest, path.stat().st_mode & 0o777)
    except (DataError, EnvironmentFault, OSError) as fault:
        log.warning("pairing code stays file=%s why=%r", path, str(fault))
        return False
    log.info("pairing code erased file=%s", path)
    return True


def blanked(data: bytes, password: str) -> bytes:
    """The text of a settings file, as long as it was, without the code and with ``password`` for a Wi-Fi password.

    What is written in another way than a person would, such as over several lines, stays.
    """
    made = bytearray(data)
    for found in re.finditer(_VALUE % rb"pairing_code", data, re.MULTILINE):
        size = found.end() - found.start()
        made[found.start() : found.end()] = b"# the pairing code has been taken".ljust(size)[:size]
    for found in re.finditer(_VALUE % rb"(?:network[ \t]*\.[ \t]*)?password", data, re.MULTILINE):
        word, size = f'"{password}"'.encode(), found.end(1) - found.start(1)
        if size >= len(word):
            made[found.start(1) : found.end(1)] = word.ljust(size)
    return bytes(made)
