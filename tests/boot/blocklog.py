# SPDX-License-Identifier: Apache-2.0
"""What a machine wrote to its disk, in order, as QEMU's driver blklogwrites records it; the disk at any time of it.

Source: Linux, Documentation/admin-guide/device-mapper/log-writes.rst; QEMU 7.2, block/blklogwrites.c
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC, VERSION = 0x6A736677736872, 1
FLUSH, FUA, DISCARD = 1, 2, 4
UNIT = 512  # bytes that a disk writes whole or not at all


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that were handed to the disk, without a word that they stay."""

    at: int
    length: int
    log_at: int  # where the log holds them


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log: a flush of all that came before, then perhaps a write. end: where it ends in the log."""

    end: int
    flush: bool
    fua: bool
    write: Write | None


def entries(log: Path) -> Iterator[Entry]:
    """All whole entries, as they came."""
    size = log.stat().st_size
    with log.open("rb") as file:
        magic, version, count, sector = struct.unpack("<QQQL", file.read(28))
        assert (magic, version) == (MAGIC, VERSION), "no log of blklogwrites"
        at = sector
        for _ in range(count):
            file.seek(at)
            first, sectors, flags, data = struct.unpack("<QQQQ", file.read(32))
            length = 0 if flags & DISCARD else sectors * sector
            start, at = at + sector, at + sector + length
            if at > size:
                return
            assert not data, "a mark; QEMU makes none"
            write = Write(first * sector, length, start) if length else None
            yield Entry(at, bool(flags & FLUSH), bool(flags & FUA), write)


class Replay:
    """A disk as the log's entries make it: what the last flush has made lasting is in the file, the rest waits."""

    def __init__(self, disk: Path, log: Path) -> None:
        """``disk`` is as it was before the first entry, and is written to."""
        self._disk = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
        self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        self.waiting: list[Write] = []
        self.lasting = 0  # writes that last

    def take(self, entry: Entry) -> None:
        """The next entry."""
        if entry.flush:
            for write in self.waiting:
                self._apply(write)
            self.waiting.clear()
        if entry.write is not None and entry.fua:
            self._apply(entry.write)
        elif entry.write is not None:
            self.waiting.append(entry.write)

    def bytes_of(self, write: Write) -> bytes:
        """What was written."""
        return os.pread(self._log, write.length, write.log_at)

    def close(self) -> None:
        os.close(self._disk)
        os.close(self._log)

    def _apply(self, write: Write) -> None:
        os.pwrite(self._disk, self.bytes_of(write), write.at)
        self.lasting += 1


def survivors(waiting: list[Write]) -> Iterator[list[tuple[Write, int]]]:
    """Which of the writes that wait a power cut may have left, each with how many of its bytes.

    None, all; each alone, all but each; all, the last one torn at each sector. There are too many subsets for all.
    """
    whole = [(write, write.length) for write in waiting]
    yield []
    if not whole:
        return
    yield whole
    for number, one in enumerate(whole):
        yield [one]
        yield whole[:number] + whole[number + 1 :]
    last = waiting[-1]
    for kept in range(UNIT, min(last.length, 16 * UNIT), UNIT):
        yield [*whole[:-1], (last, kept)]
