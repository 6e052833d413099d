# SPDX-License-Identifier: Apache-2.0
"""Chunks of the open round on the disk, for uploads to go on behind a restart; written in groups, never one by one."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Iterator

from fl_tiny.errors import EnvironmentFault
from fl_tiny.gateway.store import Store

log = logging.getLogger(__name__)

_OF_ROUND = """SELECT did, sid, at, body FROM chunk
  WHERE rid=?1 AND did NOT IN (SELECT did FROM ledger WHERE rid=?1) ORDER BY did, at"""
GROUP = 16  # chunks in one transaction
WAIT_S = 0.05  # the longest that a chunk waits for others


class Chunks:
    """The table ``chunk``: what uploads have brought so far, until their round closes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rid = b""
        self._waiting: dict[tuple[bytes, int], tuple[str, bytes]] = {}  # (did, at) -> sid, body
        self._written: set[bytes] = set()  # devices with rows
        self._stale: set[bytes] = set()  # devices whose rows are to go
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, rid: bytes) -> Iterator[tuple[bytes, str, int, bytes]]:
        """(did, sid, at, body) of each chunk that the open round has brought; what belongs to no upload goes."""
        self._forget()
        self._rid = rid
        if self._store.rows("SELECT 1 FROM chunk LIMIT 1"):
            self._delete("DELETE FROM chunk WHERE rid!=?1 OR did IN (SELECT did FROM ledger WHERE rid=?1)", rid)
        for row in self._store.rows(_OF_ROUND, rid):
            self._written.add(row[0])
            yield row

    def make_room(self) -> None:
        """Write what waits, if that is a group. Raises: EnvironmentFault, when it cannot; then nothing is lost."""
        if len(self._waiting) >= GROUP:
            self.flush()

    def add(self, did: bytes, sid: str, at: int, body: bytes) -> None:
        """Write a chunk soon. One at the same place is part of it."""
        self._waiting[did, at] = (sid, body)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(WAIT_S, self._tick, context=contextvars.Context())  # for many members

    def drop(self, did: bytes) -> None:
        """A device's upload is of no further use: its rows go with the next group."""
        self._waiting = {key: value for key, value in self._waiting.items() if key[0] != did}
        if did in self._written:
            self._stale.add(did)

    def clear(self) -> None:
        """The round is closed: all rows go."""
        written = bool(self._written)
        self._forget()
        if written:
            self._delete("DELETE FROM chunk")

    def flush(self) -> None:
        """What was added is on the disk when this returns. Raises: EnvironmentFault."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            return
        rows = [(did, sid, at, self._rid, body) for (did, at), (sid, body) in self._waiting.items()]
        with self._store.write() as db:
            db.executemany("DELETE FROM chunk WHERE did=?", [(did,) for did in self._stale])
            db.executemany("INSERT OR REPLACE INTO chunk VALUES(?,?,?,?,?)", rows)
        self._written = (self._written - self._stale) | {row[0] for row in rows}
        self._stale.clear()
        self._waiting.clear()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()
        self._written.clear()
        self._stale.clear()

    def _delete(self, sql: str, *values: bytes) -> None:
        """Rows go, or stay until a round begins: a full disk must not keep one from closing."""
        try:
            with self._store.write() as db:
                db.execute(sql, values)
        except EnvironmentFault as fault:
            log.error("chunks not written: %s", fault)

    def _tick(self) -> None:
        self._timer = None
        try:
            self.flush()
        except EnvironmentFault as fault:  # they wait on; ``make_room`` and ``flush`` tell who asks
            log.error("chunks not written: %s", fault)
