# SPDX-License-Identifier: Apache-2.0
"""Codes on their way in: one upload a device, put together from chunks that may repeat and come in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fl_tiny.errors import EnvironmentFault, RemoteError
from fl_tiny.gateway.chunks import Chunks
from fl_tiny.protocol.wire import UNIT, Code, Held, name_of

LIMIT_BYTES = 64 << 20  # of all uploads


class Uploads:
    """Chunks by device: put together in memory, kept on the disk behind it."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._size = 0
        self._takes: Callable[[int], bool] = lambda whole: whole == self._size
        self._by_device: dict[bytes, _Upload] = {}

    def begin(self, rid: bytes, size: int, takes: Callable[[int], bool] | None = None) -> None:
        """A round is open, new or from before a restart.

        size: the most that an upload of it may have.   takes: may it have so many? None: exactly ``size``.
        """
        self._size, self._takes = size, takes or (lambda whole: whole == size)
        self._by_device.clear()
        for did, sid, at, body in self._chunks.begin(rid):
            if at + len(body) <= size:
                upload = self._by_device.setdefault(did, _Upload(sid, size))
                upload.put(at // UNIT, body)

    def is_under_way(self, did: bytes, sid: str) -> bool:
        """Has a chunk of this upload come, and of no other of the device since?"""
        upload = self._by_device.get(did)
        return upload is not None and upload.sid == sid

    def put(self, did: bytes, sid: str, unit: int, body: bytes) -> None:
        """Take a chunk that starts at unit ``unit``. Another sid starts the device's upload anew.

        Raises: RemoteError: QUOTA beyond the size, SHAPE when a chunk is not whole units, CONFLICT when other bytes
        came for the same place. EnvironmentFault, when the disk or the memory for uploads is full.
        """
        at = unit * UNIT
        if not body or at + len(body) > self._size:
            raise RemoteError(f"a chunk of {len(body)} B at {at} of {self._size} B", code=Code.QUOTA)
        if len(body) % UNIT and not self._takes(at + len(body)):
            raise RemoteError(f"a chunk of {len(body)} B is not whole units of {UNIT} B", code=Code.SHAPE)
        self._chunks.make_room()
        upload = self._by_device.get(did)
        if upload is None or upload.sid != sid:
            upload = self._anew(did, sid)
        for start, new in upload.put(unit, body):
            self._chunks.add(did, sid, start * UNIT, new)

    def held(self, did: bytes, sid: str, raw_sid: bytes, size: int | None = None) -> Held:
        """What has come of the upload ``sid`` and is on the disk. Raises: EnvironmentFault.

        size: of the upload, None when its update has not said.
        """
        self._chunks.flush()
        upload = self._by_device.get(did)
        bitmap = bytes(upload.bitmap) if upload is not None and upload.sid == sid else b""
        whole = self._size if size is None else size
        return Held(raw_sid, whole, bitmap[: -(-whole // UNIT // 8)])

    def whole(self, did: bytes, digest: bytes, size: int) -> bytes | None:
        """The codes of ``size`` bytes, when all of them have come and have this SHA-256.

        Raises: RemoteError when they have another.
        """
        upload = self._by_device.get(did)
        if upload is None or upload.sid != name_of(digest) or not upload.is_complete(size):
            return None
        codes = bytes(upload.body[:size])
        if hashlib.sha256(codes).digest() != digest:
            self.drop(did)
            raise RemoteError("the codes have another digest than the update says", code=Code.CONFLICT)
        return codes

    def drop(self, did: bytes) -> None:
        """Forget a device's upload."""
        if self._by_device.pop(did, None) is not None:
            self._chunks.drop(did)

    def clear(self) -> None:
        """Forget all uploads: the round is closed."""
        self._by_device.clear()
        self._chunks.clear()

    def save(self) -> None:
        """All that came is on the disk when this returns. Raises: EnvironmentFault."""
        self._chunks.flush()

    def _anew(self, did: bytes, sid: str) -> _Upload:
        self.drop(did)
        if (len(self._by_device) + 1) * self._size > LIMIT_BYTES:
            raise EnvironmentFault(f"uploads of {LIMIT_BYTES >> 20} MiB are on their way already")
        upload = self._by_device[did] = _Upload(sid, self._size)
        return upload


class _Upload:
    def __init__(self, sid: str, size: int) -> None:
        self.sid = sid
        self.body = bytearray(size)
        self.bitmap = bytearray(-(-size // UNIT // 8))

    def put(self, unit: int, body: bytes) -> list[tuple[int, bytes]]:
        """What was new, as its first unit and its bytes: no unit is written twice. Raises: RemoteError."""
        at = unit * UNIT
        units = range(unit, unit + -(-len(body) // UNIT))
        for u in units:
            piece = body[(u - unit) * UNIT : (u - unit + 1) * UNIT]
            if self.bitmap[u // 8] >> u % 8 & 1 and self.body[u * UNIT : u * UNIT + len(piece)] != piece:
                raise RemoteError("other bytes came for the same chunk", code=Code.CONFLICT)
        self.body[at : at + len(body)] = body
        new: list[tuple[int, bytes]] = []
        for u in units:
            if not self.bitmap[u // 8] >> u % 8 & 1:
                self.bitmap[u // 8] |= 1 << u % 8
                piece = body[(u - unit) * UNIT : (u - unit + 1) * UNIT]
                if new and new[-1][0] * UNIT + len(new[-1][1]) == u * UNIT:
                    new[-1] = (new[-1][0], new[-1][1] + piece)
                else:
                    new.append((u, piece))
        return new

    def is_complete(self, size: int) -> bool:
        return all(self.bitmap[u // 8] >> u % 8 & 1 for u in range(-(-size // UNIT)))
