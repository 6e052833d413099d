# SPDX-License-Identifier: Apache-2.0
"""A filesystem that is mounted read-only, such as a card's FAT, made writable for one write."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from fl_tiny.errors import EnvironmentFault

log = logging.getLogger(__name__)

_REMOUNT = 32  # MS_REMOUNT, mount(2)
_STAYING = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME  # as MS_… by their numbers


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """The filesystem that ``path`` lies on can be written within the block. Raises: EnvironmentFault."""
    flags = os.statvfs(path).f_flag
    if not flags & os.ST_RDONLY:
        yield
        return
    point = path.resolve()
    while not point.is_mount():
        point = point.parent
    _remount(point, flags & _STAYING)
    try:
        yield
    finally:
        try:
            _remount(point, flags & _STAYING | os.ST_RDONLY)
        except EnvironmentFault as fault:
            log.warning("filesystem stays writable mount=%s why=%r", point, fault.what)


def _remount(point: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(None, os.fsencode(point), None, ctypes.c_ulong(_REMOUNT | flags), None):
        why = os.strerror(ctypes.get_errno())
        raise EnvironmentFault(f"{point} is read-only and cannot be mounted otherwise: {why}")
