# SPDX-License-Identifier: Apache-2.0
"""Releases of boards' systems that a gateway offers: bundles beside the ledger, each for a share of its boards.

A gateway believes a bundle's manifest for what it is worth, who gets it; whether it may be installed is for the board,
which checks its signature (docs/cli-update.md).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_tiny import statedir
from fl_tiny.errors import ConfigError, DataError, EnvironmentFault, MalformedMessage
from fl_tiny.files import open_plain, sha256, sync_directory, written
from fl_tiny.gateway.models import in_share
from fl_tiny.gateway.store import Store
from fl_tiny.protocol import release, wire
from fl_tiny.protocol.release import BUNDLE_LIMIT, PIECE, Bundle, BundleRefusal, Release, rank_of

log = logging.getLogger(__name__)

FOLDER = "bundle"  # below DIR
SUFFIX = ".raucb"
MARGIN_BYTES = 64 << 20  # left free for the ledger


@dataclass(frozen=True, slots=True)
class Offered:
    """A bundle that is offered: to whom, and to which share of them."""

    bundle: Bundle
    board: str
    share: float


@dataclass(frozen=True, slots=True)
class Runs:
    """What a device's system is, as it said last. refused: the name of a bundle that it did not keep."""

    board: str
    release: str
    refused: bytes | None = None


class Bundles:
    """What a running gateway knows of boards' systems and of releases for them."""

    def __init__(self, store: Store) -> None:
        self._store, self._folder = store, store.folder / FOLDER
        rows = store.rows("SELECT did, board, release, refused FROM runs")
        self._runs: dict[bytes, Runs] = {}
        for did, board, number, refused in rows:
            with contextlib.suppress(DataError):  # what a device says at its next start takes a damaged row's place
                known = Release(board, number)
                self._runs[did] = Runs(known.board, known.number, refused)
        self._offered: dict[str, Offered] = {}  # by board
        self.refresh()

    def refresh(self) -> None:
        """Look for what a command beside us has added or withdrawn."""
        found = {one.board: one for one in offered(self._store) if path_of(self._folder, one.bundle.digest).exists()}
        if found != self._offered:
            for one in found.values():
                log.info("bundle offered board=%s release=%s share=%g", one.board, one.bundle.release, one.share)
        self._offered = found

    def registered(self, did: bytes, said: wire.Register) -> None:
        """Keep which release a device's board runs; a device that says nothing gets no offer."""
        known = self._runs.get(did)
        if said.board is None or said.release is None:
            if known is not None and said.boots is not None:  # a daemon said so, not an enrolment
                del self._runs[did]
                with self._store.write() as db:
                    db.execute("DELETE FROM runs WHERE did=?", (did,))
            return
        try:
            runs = Release(said.board, said.release)
        except DataError as cause:
            raise MalformedMessage(cause.what) from cause
        if known is not None and (known.board, known.release) == (runs.board, runs.number):
            return
        self._runs[did] = Runs(runs.board, runs.number, known.refused if known else None)
        log.info("board runs device=%s board=%s release=%s", did.hex()[:8], runs.board, runs.number)
        with self._store.write() as db:
            db.execute(
                "INSERT INTO runs(did, board, release) VALUES(?,?,?)"
                " ON CONFLICT(did) DO UPDATE SET board=excluded.board, release=excluded.release",
                (did, runs.board, runs.number),
            )

    def refused(self, did: bytes, said: BundleRefusal) -> None:
        """Keep why a device did not take a bundle, or left its release."""
        known = self._runs.get(did)
        if known is None or known.refused == said.name:
            return
        self._runs[did] = Runs(known.board, known.release, said.name)
        log.warning("bundle refused device=%s code=%d why=%r", did.hex()[:8], said.code, said.why)
        with self._store.write() as db:
            row = (said.name, said.code, said.why, did)
            db.execute("UPDATE runs SET refused=?, code=?, why=? WHERE did=?", row)

    def wanted(self, did: bytes) -> Bundle | None:
        """The bundle that a device should fetch: newer than what runs there, for its board, not refused before."""
        runs = self._runs.get(did)
        one = self._offered.get(runs.board) if runs else None
        if runs is None or one is None or not in_share(did, one.share):
            return None
        if one.bundle.digest[:8] == runs.refused or rank_of(one.bundle.release) <= rank_of(runs.release):
            return None
        return one.bundle

    def piece(self, did: bytes, name: str, number: int) -> bytes | None:
        """A piece of the bundle that a device should fetch; None: there is no such thing for it."""
        bundle = self.wanted(did)
        if bundle is None or name != wire.name_of(bundle.digest) or number * PIECE >= bundle.size:
            return None
        try:
            with path_of(self._folder, bundle.digest).open("rb") as file:
                file.seek(number * PIECE)
                return file.read(PIECE)
        except FileNotFoundError:  # withdrawn a moment ago
            return None
        except OSError as cause:
            raise EnvironmentFault(f"cannot read a bundle: {cause.strerror}") from cause


def add(directory: Path, store: Store, file: Path, share: float) -> Offered:
    """Offer the release in ``file`` to a share of its boards; a running gateway acts within seconds.

    The one offered to these boards before goes. Raises: DataError when it is no verity bundle; ConfigError when a newer
    release is offered; EnvironmentFault.
    """
    with open_plain(file, BUNDLE_LIMIT) as source:
        size = source.seek(0, os.SEEK_END)
        source.seek(max(0, size - release.TRAILER))
        length = release.manifest_size(source.read(release.TRAILER))
        source.seek(max(0, size - release.TRAILER - length))
        brings = release.read_manifest(source.read(length))
        source.seek(0)
        digest = sha256(source)
        made = Offered(Bundle(digest, size, brings.number), brings.board, share)
        before = next((one for one in offered(store) if one.board == brings.board), None)
        if before and rank_of(before.bundle.release) > brings.rank:
            hint = f"fl-tiny gateway bundle withdraw {directory} {brings.board}"
            raise ConfigError(f"release {before.bundle.release} is offered, and {brings.number} is older", hint)
        target = path_of(directory / FOLDER, digest)
        if not target.exists():
            _room(directory, size)
            target.parent.mkdir(mode=0o750, exist_ok=True)
            source.seek(0)
            with written(target, 0o640) as copy:
                shutil.copyfileobj(source, copy)
    with store.write() as db:
        db.execute("DELETE FROM bundle WHERE board=?", (made.board,))
        db.execute("INSERT INTO bundle VALUES(?,?,?,?,?)", (digest, made.board, brings.number, size, share))
    _sweep(directory, store)
    return made


def withdraw(directory: Path, store: Store, board: str) -> Offered:
    """Offer these boards nothing any more; what runs there stays. Raises: ConfigError when nothing is offered."""
    found = next((one for one in offered(store) if one.board == board), None)
    if found is None:
        raise ConfigError(f"no bundle is offered to {board}", hint=f"fl-tiny gateway bundle list {directory}")
    with store.write() as db:
        db.execute("DELETE FROM bundle WHERE board=?", (board,))
    _sweep(directory, store)
    return found


def offered(store: Store) -> list[Offered]:
    """What is offered, ordered by board."""
    rows = store.rows("SELECT digest, size, release, board, share FROM bundle ORDER BY board")
    return [Offered(Bundle(digest, size, number), board, share) for digest, size, number, board, share in rows]


def listed(store: Store) -> list[dict[str, Any]]:
    """What ``gateway bundle list`` and ``gateway status`` say: each offer, how many boards run it or refused it."""
    found = []
    for one in offered(store):
        runs = store.rows("SELECT release, refused, why FROM runs JOIN device USING(did) WHERE board=?", one.board)
        refusals = [why for _, refused, why in runs if refused == one.bundle.digest[:8]]
        found.append(
            {
                "board": one.board,
                "release": one.bundle.release,
                "share": one.share,
                "size": one.bundle.size,
                "digest": one.bundle.digest.hex(),
                "boards": len(runs),
                "running": sum(rank_of(number) == rank_of(one.bundle.release) for number, _, _ in runs),
                "refused": len(refusals),
                "why": refusals[-1] if refusals else None,
            }
        )
    return found


def path_of(folder: Path, digest: bytes) -> Path:
    """Where the bundle of this digest is kept."""
    return folder / (digest[:8].hex() + SUFFIX)


def _room(directory: Path, size: int) -> None:
    free = statedir.free_bytes(directory)
    if free < size + MARGIN_BYTES:
        raise EnvironmentFault(f"{size} bytes and {free} free in {directory}", hint="withdraw another, or make room")


def _sweep(directory: Path, store: Store) -> None:
    """Files that no offer names any more go; a cut before is met by the next command."""
    kept = {path_of(directory / FOLDER, one.bundle.digest) for one in offered(store)}
    for path in (directory / FOLDER).glob(f"*{SUFFIX}"):
        if path not in kept:
            path.unlink()
    if (directory / FOLDER).is_dir():
        sync_directory(directory / FOLDER)
