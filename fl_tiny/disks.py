# SPDX-License-Identifier: Apache-2.0
"""What is said of a disk that is full, read-only or failing: which one it is, and what may be deleted."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from fl_tiny.errors import EnvironmentFault

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
FAULTS = FULL | {errno.EROFS, errno.EIO}
LITTLE = 1 << 16  # bytes: twice what SQLite wants for a log's index; it calls it an I/O error when there are none
ROOM = "delete logs, caches or backups there, of DIR update/*.part at most; never state.db or state.db-wal"
WRITABLE = "mount it writable; when the kernel made it read-only, dmesg says why"
HEALTH = "dmesg says more; save DIR to another disk, and replace this one"


def fault_of(number: int | None, path: Path, what: str) -> EnvironmentFault:
    """The fault of an operation on ``path`` that ended with this errno. what: it, as ``DIR/x cannot be written``."""
    number = number or 0
    if number not in FAULTS:
        return EnvironmentFault(f"{what}: {os.strerror(number)}", "is there a right to do it?")
    state, hint = f"fails ({os.strerror(number)})", HEALTH
    if number in FULL:
        state, hint = "is full", ROOM
    elif number == errno.EROFS:
        state, hint = "is read-only", WRITABLE
    return EnvironmentFault(f"{what}: the disk at {mount_of(path)} {state}", hint)


def state_of(path: Path) -> int:
    """The errno with which a little file beside ``path`` cannot be written; 0 when it can, or for another reason."""
    probe = _existing(path.parent) / f".room.{os.getpid()}"
    try:
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(handle, 0, LITTLE)
            os.write(handle, b"room?")
        finally:
            os.close(handle)
            probe.unlink()
    except OSError as cause:
        return cause.errno if cause.errno in FAULTS else 0
    return 0


def mount_of(path: Path) -> Path:
    """Where the disk that ``path`` lies on is mounted."""
    point = _existing(path).resolve()
    while not point.is_mount():
        point = point.parent
    return point


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
