# SPDX-License-Identifier: Apache-2.0
"""A release that the gateway offers: fetched piece by piece at a low pace, checked whole, left where root looks for it.

The daemon installs nothing: fl-tiny-update.path sees DIR/update/NAME.raucb, and `device update` notes its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_tiny import statedir
from fl_tiny.device.link import Link
from fl_tiny.device.machine import UPDATE, Machine, Record
from fl_tiny.errors import FlTinyError, RemoteError
from fl_tiny.files import is_plain, sync_directory
from fl_tiny.protocol.codepoints import Code
from fl_tiny.protocol.fields import cut_text
from fl_tiny.protocol.release import PIECE, WHY_BYTES, Bundle, BundleRefusal, Release

log = logging.getLogger(__name__)

PAUSE_S = 0.02  # between two pieces at least
IDLE, BUSY = 0.25, 1.0  # of the time that a piece took, until the next: a fifth or half of the way is others' (guess)
SYNC_EVERY = 32  # pieces: a cut costs 1 MiB
MARGIN_BYTES = 32 << 20  # left free for samples and rounds
DAMAGED = 2  # wrong digests in a row that make a refusal: one may be the card's doing
LEFT = ("refused", "fell back")


class Fetch:
    """One device's way to the release that its gateway offers."""

    def __init__(self, directory: Path, machine: Machine, emit: Callable[[str, dict[str, Any]], None]) -> None:
        self._folder, self._machine, self._emit = directory / UPDATE, machine, emit
        self._wanted: Bundle | None = None
        self._refused: Record | None = None  # by us, before root saw it
        self._damaged = 0
        self._told = False
        self._swept = False  # is nothing there any more of what was offered before this start?
        self._running: Release | None = None
        try:
            self._running = machine.release() if machine.rauc_config.exists() else None
        except FlTinyError as fault:
            log.error("release unknown why=%r", str(fault))

    @property
    def is_on(self) -> bool:
        """Is there something to fetch?"""
        return self._wanted is not None

    @property
    def is_told(self) -> bool:
        """Is this a system with slots, whose release is told to the gateway?"""
        return self._running is not None

    def connected(self) -> None:
        """A session begins."""
        self._told = False

    def runs(self) -> tuple[str | None, str | None]:
        """Board and release, for ``wire.Register``; nothing on a system without slots."""
        return (self._running.board, self._running.number) if self._running else (None, None)

    def refusal(self) -> BundleRefusal | None:
        """What a heartbeat says of a bundle that did not stay, once a session."""
        record = None if self._told or self._running is None else self._left()
        self._told = True
        return (
            BundleRefusal(bytes.fromhex(record.name), record.code, cut_text(record.why, WHY_BYTES)) if record else None
        )

    def offered(self, bundle: Bundle | None) -> None:
        """What the gateway's last word offers."""
        if (bundle == self._wanted and self._swept) or self._running is None:
            return
        self._wanted, self._swept = None, True
        name = bundle.digest[:8].hex() if bundle else ""
        left = self._left()
        if left is not None and left.name == name:
            self._told = False
            return
        for path in self._folder.glob("*.part") if self._folder.is_dir() else ():
            if path.name != f"{name}.part":
                with contextlib.suppress(OSError):  # a folder is none of ours
                    path.unlink()
        if bundle is None or (self._folder / f"{name}.raucb").exists() or self._is_taken(name):
            return
        free = statedir.free_bytes(self._folder.parent)
        if free < bundle.size + MARGIN_BYTES:
            log.warning("no room for a release bytes=%d free_bytes=%d", bundle.size, free)
            return
        self._wanted = bundle
        self._say("fetching", bundle)

    async def pieces(
        self, link: Link, seconds: float, pause: float = IDLE, is_enough: Callable[[], bool] = lambda: False
    ) -> None:
        """Fetch for so long, until it is whole, or until something else is to be done.

        pause: IDLE, or BUSY while this board trains or sends.   Raises: EnvironmentFault when the gateway is gone.
        """
        end = time.monotonic() + seconds
        while self._wanted is not None and (now := time.monotonic()) < end and not is_enough():
            try:
                await self._piece(link, self._wanted)
            except RemoteError as fault:
                log.warning("no piece of a release why=%r", fault.what)
                self._wanted = None  # withdrawn; the next heartbeat says what is offered instead
                return
            except OSError as fault:  # the card's: rounds go on without the release
                log.warning("release not kept why=%r", str(fault))
                self._wanted = None
                return
            await asyncio.sleep(max(PAUSE_S, pause * (time.monotonic() - now)))

    async def _piece(self, link: Link, bundle: Bundle) -> None:
        self._folder.mkdir(mode=0o750, exist_ok=True)
        path = self._folder / f"{bundle.digest[:8].hex()}.part"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o640)
        try:
            state = os.fstat(handle)
            if not is_plain(state):
                path.unlink()
                raise OSError(errno.EINVAL, "a link or a pipe stood in its place")
            have = min(state.st_size, bundle.size)
            if have < bundle.size:
                number = have // PIECE
                at = number * PIECE
                data = await link.piece(bundle.digest, number, min(PIECE, bundle.size - at))
                os.ftruncate(handle, at)
                os.pwrite(handle, data, at)
                have = at + len(data)
                if number % SYNC_EVERY == SYNC_EVERY - 1:
                    os.fsync(handle)
            if have == bundle.size:
                os.ftruncate(handle, have)
                os.fsync(handle)
                await self._finish(handle, path, bundle)
        finally:
            os.close(handle)

    async def _finish(self, handle: int, path: Path, bundle: Bundle) -> None:
        found = hashlib.sha256()
        for at in range(0, bundle.size, 1 << 20):
            found.update(os.pread(handle, 1 << 20, at))
            await asyncio.sleep(0)
        self._wanted = None
        if found.digest() == bundle.digest:
            path.replace(path.with_suffix(".raucb"))
            sync_directory(self._folder)
            self._say("fetched", bundle)
            return
        path.unlink()
        self._damaged += 1
        log.error("release damaged on the way times=%d", self._damaged)
        if self._damaged >= DAMAGED:
            why = "it has another digest than was said"
            self._refused = Record(bundle.digest[:8].hex(), bundle.release, "refused", False, int(Code.CONFLICT), why)
            self._told = False

    def _left(self) -> Record | None:
        """The bundle that did not stay."""
        record = self._refused or self._machine.record()
        if record is None or record.state not in LEFT or len(record.name) != 16:
            return None
        return record if all(digit in "0123456789abcdef" for digit in record.name) else None

    def _is_taken(self, name: str) -> bool:
        """Does root install it, or has it?"""
        if (self._machine.work / f"{name}.raucb").exists():
            return True
        record = self._machine.record()
        return record is not None and record.name == name and record.state == "installed"

    def _say(self, state: str, bundle: Bundle) -> None:
        self._emit("release", {"release": bundle.release, "state": state})
        log.info("release offered state=%s number=%s bytes=%d", state, bundle.release, bundle.size)
