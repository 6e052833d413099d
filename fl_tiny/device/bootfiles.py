# SPDX-License-Identifier: Apache-2.0
"""The files that say which slot boots: read, and changed so that a cut at any byte leaves a slot that boots."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from fl_tiny.device import bootstate
from fl_tiny.device.bootstate import BLOCK, SECTOR, Files, Phase
from fl_tiny.errors import ConfigError, EnvironmentFault
from fl_tiny.files import sync_directory

PLACES = ("fl-state/0/env", "fl-state/1/env")  # below the boot partition, a folder each: no directory sector is shared
TRIED = "fl-state/tried/env"

Writable = Callable[[Path], AbstractContextManager[None]]


@contextlib.contextmanager
def as_it_is(_boot: Path) -> Iterator[None]:
    """A boot partition that may be written already."""
    yield


class BootFiles:
    """The boot partition of this board. booted: the slot that runs; writable: makes it so for the time of a write."""

    def __init__(self, boot: Path, booted: str | None, writable: Writable = as_it_is) -> None:
        self._boot, self._writable = boot, writable
        self.booted = booted

    def read(self) -> Files:
        """The three files as they are."""
        return Files((self._read(PLACES[0]), self._read(PLACES[1])), self._read(TRIED))

    def phase(self) -> Phase:
        """Where the board stands."""
        return bootstate.phase(self.read(), self.booted)

    def good(self) -> str:
        """The slot that boots unless another one is tried."""
        found = bootstate.newest(self.read())
        return found[1].good if found else self.booted or bootstate.SLOTS[0]

    def next(self) -> str:
        """The slot that the next start boots."""
        found, stands = bootstate.newest(self.read()), self.phase()
        return found[1].trial or "" if found and stands is Phase.STAGED else self.good()

    def is_good(self, slot: str) -> bool:
        """May this slot boot: is it the good one, or one that is to be tried or is being tried?"""
        found = bootstate.newest(self.read())
        waits = self.phase() in (Phase.STAGED, Phase.TRYING)
        return slot == self.good() or bool(waits and found and found[1].trial == slot)

    def stage(self, slot: str) -> None:
        """Try ``slot`` at the next start, once; the good slot ends what was staged. Raises: ConfigError in a try."""
        self._refuse_in_a_try()
        good = self.good()
        self._put(good, None if slot == good else slot)

    def drop(self, slot: str) -> None:
        """``slot`` is about to be written: it boots no more. Raises: ConfigError for the good one, or in a try."""
        self._refuse_in_a_try()
        if slot == self.good():
            raise ConfigError(f"slot {slot} is the good one", hint="it is what the board falls back to")
        self._put(self.good(), None)

    def confirm(self) -> None:
        """The slot that runs is the good one from now on. Nothing is written when it is so already."""
        if self.booted is None:
            raise ConfigError("this system runs from no slot")
        if self.phase() is Phase.TRYING or self.good() != self.booted:
            self._settle(self.booted)

    def settle(self) -> None:
        """After a fall back: nothing is to be tried any more, and GRUB can mark the next try."""
        if self.phase() is Phase.FELL_BACK:
            self._settle(self.good())

    def _settle(self, good: str) -> None:
        """Both files say so, one behind the other: the loss of one brings no older state back."""
        self._put(good, None)
        self._put(good, None)

    def _refuse_in_a_try(self) -> None:
        if self.phase() is Phase.TRYING:
            raise ConfigError(
                f"slot {self.booted} is being tried", hint="it is confirmed or left within minutes; then again"
            )

    def _put(self, good: str, trial: str | None) -> None:
        files = self.read()
        number, state = bootstate.successor(files, good, trial)
        try:
            with self._writable(self._boot):
                if bootstate.decode_tried(files.tried) is None:  # before there is something to try
                    _overwrite(self._boot / TRIED, files.tried, bootstate.encode_tried(bootstate.FIRST))
                _overwrite(self._boot / PLACES[number], files.states[number], bootstate.encode(state))
        except OSError as cause:
            raise EnvironmentFault(f"cannot write {self._boot}: {cause.strerror or cause}") from cause

    def _read(self, name: str) -> bytes | None:
        try:
            with (self._boot / name).open("rb") as file:
                return file.read(BLOCK + 1)
        except OSError:
            return None


def _overwrite(path: Path, before: bytes | None, block: bytes) -> None:
    """Make ``path`` hold ``block``: in place and by one sector where only that differs, on the disk when it returns."""
    if before is not None and len(before) == BLOCK:
        tail = b"" if before[SECTOR:] == block[SECTOR:] else block[SECTOR:]
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    else:  # a file that does not boot anything as it is
        path.parent.mkdir(parents=True, exist_ok=True)
        tail = block[SECTOR:]
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if tail:
            os.pwrite(handle, tail, SECTOR)
            os.fsync(handle)
        os.pwrite(handle, block[:SECTOR], 0)
        os.fsync(handle)
    finally:
        os.close(handle)
    if tail:
        sync_directory(path.parent)
